package helper

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// HoldLock locks file and folder until release is called or the process ends, and writes the pid
// into the file. release is nil when another process holds one of the locks.
func HoldLock(file, folder string) (release func(), err error) {
	dir, err := unix.Open(folder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open lock %s: %w", folder, err)
	}
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open lock %s: %w", file, err), unix.Close(dir))
	}
	for _, one := range []int{dir, fd} {
		if held, err := flockSoon(one); err != nil || !held {
			return nil, errors.Join(err, unix.Close(dir), unix.Close(fd))
		}
	}
	if err := unix.Ftruncate(fd, 0); err == nil {
		_, _ = unix.Pwrite(fd, []byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for people only
	}
	return func() { unixfd.Close(&fd); unixfd.Close(&dir) }, nil
}

// flockSoon locks fd. It retries for 100 ms, because LockFree takes the lock for an instant.
func flockSoon(fd int) (bool, error) {
	for range 20 {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return false, fmt.Errorf("take lock: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false, nil
}

// LockFree reports whether no process holds either lock, which it takes for an instant to find out.
// The folder is locked too because a locked file can be removed and replaced by an unlocked one,
// while a folder that is not empty cannot.
func LockFree(file, folder string) (bool, error) {
	for path, flags := range map[string]int{file: os.O_RDWR | os.O_CREATE, folder: os.O_RDONLY | unix.O_DIRECTORY} {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return false, err
		}
		err = unix.Flock(unixfd.Of(f), unix.LOCK_SH|unix.LOCK_NB)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}
