package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// New creates a network namespace with lo up and pins it to the file path, where it outlives
// this process. It creates the folder of path if necessary and makes it a shared mount of its own,
// like `ip netns`, so that programs in other mount namespaces see the namespaces. ErrAlreadyExists
// if path exists.
func New(path string) error {
	return pinNetNS(path, func() error { return unix.Unshare(unix.CLONE_NEWNET) })
}

// Pin is New for an existing namespace, which may belong to another user namespace than
// ours.
func Pin(path string, ns *os.File) error {
	return pinNetNS(path, func() error { return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) })
}

// pinNetNS pins the namespace that enter moves the calling thread to.
func pinNetNS(path string, enter func() error) error {
	dir := filepath.Dir(path)
	if err := shareFolder(dir); err != nil {
		return fmt.Errorf("network namespace folder %s: %w", dir, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	f.Close()
	if err := onOwnThread(func() error { return pinOwn(path, enter) }); err != nil {
		return errors.Join(fmt.Errorf("network namespace %s: %w", path, err), Remove(path))
	}
	return nil
}

// onOwnThread runs f on a thread that ends afterwards. The process's first thread does not end, and
// would keep what f has changed: if the goroutine is on it, it waits there while f runs on another
// one.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}

// pinOwn runs on a thread of its own, in the namespace that enter moves it to.
func pinOwn(path string, enter func() error) error {
	if err := enter(); err != nil {
		return fmt.Errorf("enter: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount: %w", err)
	}
	return nil
}

// loopbackUp brings up lo in the calling thread's namespace; the kernel then adds 127.0.0.1 and
// ::1.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// shareFolder creates dir and makes it a shared mount if it is not one.
func shareFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// EINVAL: dir is an ordinary folder, not the root of a mount yet.
	if err := unix.Mount("", dir, "none", unix.MS_SHARED, ""); !errors.Is(err, unix.EINVAL) {
		return err
	}
	f, err := lockFolder(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Mount("", dir, "none", unix.MS_SHARED, ""); !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind mount onto itself: %w", err)
	}
	return unix.Mount("", dir, "none", unix.MS_SHARED, "")
}

// lockFolder keeps two processes from mounting on dir twice; `ip netns` takes the same lock.
// Closing the file unlocks it.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(folderLockTimeout); ; time.Sleep(folderLockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
	}
}

const (
	folderLockTimeout = 5 * time.Second // the lock is held for two system calls
	folderLockPoll    = 5 * time.Millisecond
)

// stackedMounts is how many mounts Remove removes from one path before it gives up.
const stackedMounts = 16

// Remove unpins a namespace and removes its file. It returns nil if path does not exist or is
// an ordinary file. The namespace itself ends with its last process.
func Remove(path string) error {
	for range stackedMounts {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// Is reports whether path is a pinned namespace; an ordinary file that is left of one is not.
// ErrUnavailable when that cannot be determined.
func Is(path string) (bool, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(path, &fs)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("network namespace %s: %w: %w", path, err, errdefs.ErrUnavailable)
	}
	return fs.Type == unix.NSFS_MAGIC, nil
}
