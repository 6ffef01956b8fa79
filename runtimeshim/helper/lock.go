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

// HoldLock locks file and folder until release is called or the process ends,
// and writes the pid into the file. No release when another process holds one.
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

// flockSoon locks fd. A caller that only looks whether the lock is free takes
// it for an instant, so it is tried for a while.
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

// LockFree: no process holds the lock, neither by the file nor by the folder.
// Each is taken for an instant to know. A file can be removed while it is
// locked, and a new one of that name is free; a folder in use cannot.
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
