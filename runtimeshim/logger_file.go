package runtimeshim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Plain descriptors instead of os.File: a node has six per container, mostly idle.

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func openFD(path string, flags int, perm uint32) (int, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, perm)
		return err
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func closeFD(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
	}
	*fd = -1
}

func fstat(fd int) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstat(fd, &st) })
	return st, err
}

func preadFull(fd int, buf []byte, off int64) ([]byte, error) {
	n := 0
	for n < len(buf) {
		var got int
		err := retry(func() (err error) {
			got, err = unix.Pread(fd, buf[n:], off+int64(n))
			return err
		})
		if err != nil {
			return nil, err
		}
		if got == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		n += got
	}
	return buf, nil
}

func writeFull(fd int, buf []byte) error {
	for len(buf) > 0 {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Write(fd, buf)
			return err
		})
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

// fileID names a file whatever its path is now. Zero = none.
type fileID struct{ dev, ino uint64 }

// logFile is an open CRI log; fd -1 = none.
type logFile struct {
	fd int
	id fileID
}

const logFlags = unix.O_RDWR | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY

// findLogFile opens the log at path if there is one. ErrNotFound.
func findLogFile(path string) (logFile, error) {
	fd, err := openFD(path, logFlags, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return logFile{fd: -1}, fmt.Errorf("log %s: %w", path, errdefs.ErrNotFound)
	case errors.Is(err, unix.ELOOP):
		return logFile{fd: -1}, fmt.Errorf("log %s is a symbolic link: %w", path, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.EISDIR):
		return logFile{fd: -1}, fmt.Errorf("log %s is no regular file: %w", path, errdefs.ErrInvalidArgument)
	case err != nil:
		return logFile{fd: -1}, fmt.Errorf("log: %w", err)
	}
	return checkLogFile(path, fd)
}

// checkLogFile takes fd; it is closed on error.
func checkLogFile(path string, fd int) (logFile, error) {
	st, err := fstat(fd)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("log %s is no regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		unix.Close(fd)
		return logFile{fd: -1}, err
	}
	return logFile{fd, fileID{st.Dev, st.Ino}}, nil
}

// openLogFile opens the log at path and makes it if there is none; created
// tells which. On error nothing was made. ErrNotFound: there is no such folder.
func openLogFile(path string) (f logFile, created bool, err error) {
	for range 10 { // somebody may make or remove it between the two looks
		if f, err = findLogFile(path); !errors.Is(err, errdefs.ErrNotFound) {
			return f, false, err
		}
		var fd int
		fd, err = openFD(path, logFlags|unix.O_CREAT|unix.O_EXCL, 0o640)
		switch {
		case errors.Is(err, unix.EEXIST):
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return logFile{fd: -1}, false, fmt.Errorf("folder of log %s: %w", path, errdefs.ErrNotFound)
		case err != nil:
			return logFile{fd: -1}, false, fmt.Errorf("log: %w", err)
		}
		_ = unix.Fchmod(fd, 0o640) // whatever our umask is
		if f, err = checkLogFile(path, fd); err != nil {
			_ = unix.Unlink(path)
		}
		return f, true, err
	}
	return logFile{fd: -1}, false, fmt.Errorf("log %s changes all the time: %w", path, errdefs.ErrUnavailable)
}

// findRenamed opens the log with this id under whatever name it has in dir:
// the kubelet rotates by renaming. ErrNotFound.
func findRenamed(dir string, id fileID) (logFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return logFile{fd: -1}, err
	}
	for _, e := range entries {
		var st unix.Stat_t
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() {
			continue
		}
		if err := retry(func() error { return unix.Lstat(path, &st) }); err != nil && !errors.Is(err, unix.ENOENT) {
			return logFile{fd: -1}, fmt.Errorf("look at %s: %w", path, err)
		} else if err != nil || (fileID{st.Dev, st.Ino}) != id {
			continue
		}
		f, err := findLogFile(path)
		if err == nil && f.id == id {
			return f, nil
		}
		closeFD(&f.fd)
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrInvalidArgument) {
			return logFile{fd: -1}, err
		}
	}
	return logFile{fd: -1}, fmt.Errorf("log with inode %d in %s: %w", id.ino, dir, errdefs.ErrNotFound)
}
