package overlay

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	unmountTries = 10
	unmountPause = 20 * time.Millisecond
)

// Unmount unmounts everything that is mounted at target. It returns nil if nothing is mounted or
// target does not exist. If the mount is busy, Unmount retries for a short time and then detaches
// it; the kernel unmounts it when its last user is gone. What the kernel remembers of the files is freed
// afterwards.
func Unmount(ctx context.Context, target string) error {
	defer freeLater(target)()
	for try := 1; ; {
		flags := unix.UMOUNT_NOFOLLOW
		if try >= unmountTries || ctx.Err() != nil {
			flags |= unix.MNT_DETACH
		}
		switch err := unix.Unmount(target, flags); err {
		case nil: // there may be another mount below
		case unix.EINVAL, unix.ENOENT, unix.ENOTDIR:
			return nil
		case unix.EBUSY:
			if flags&unix.MNT_DETACH != 0 {
				return err
			}
			try++
			pause(ctx, unmountPause) // if ctx ends, the next try detaches
		case unix.EINTR:
		default:
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// freeing has one mount freed after the other.
var freeing sync.Mutex

// freeLater returns a function to call when the mount at target is gone. To free what the kernel
// remembers of its files, 5 µs for each, is the work of whoever lets go of the file system last; so a
// second mount of it, which is attached nowhere, is kept until nobody waits. It ends with this process.
func freeLater(target string) func() {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW
	if mounted, err := isMountpoint(target); err != nil || !mounted {
		return func() {}
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, target, flags)
	if err != nil {
		return func() {} // then whoever unmounts does the work
	}
	return func() {
		go func() {
			freeing.Lock()
			defer freeing.Unlock()
			unix.Close(fd)
		}()
	}
}
