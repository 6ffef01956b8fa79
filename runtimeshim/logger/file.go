package logger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Plain descriptors are used instead of os.File because a node has six per container, mostly idle.

// diskFile is a crilog.File on a plain descriptor.
type diskFile struct {
	fd   int
	path string // at the time it was opened; for errors
}

func (f *diskFile) Close() error { unixfd.Close(&f.fd); return nil }

func (f *diskFile) Stat() (crilog.Stat, error) {
	st, err := unixfd.Stat(f.fd)
	return crilog.Stat{Size: st.Size, Removed: st.Nlink == 0}, err
}

func (f *diskFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := unixfd.ReadFull(f.fd, b, off)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

func (f *diskFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = unixfd.Retry(func() error {
		n, err = unix.Pwrite(f.fd, b, off)
		return err
	})
	return n, err
}

func (f *diskFile) Append(b []byte) error {
	if err := unixfd.WriteFull(f.fd, b); err != nil {
		return fmt.Errorf("write log %s: %w", f.path, err)
	}
	return nil
}

func (f *diskFile) Truncate(size int64) error {
	return unixfd.Retry(func() error { return unix.Ftruncate(f.fd, size) })
}

// Punch does nothing on a file system that cannot punch holes: there the space is freed by
// Truncate.
func (f *diskFile) Punch(end int64) {
	_ = unixfd.Retry(func() error {
		return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, end)
	})
}

const logFlags = unix.O_RDWR | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY

// findLogFile opens the log at path. ErrNotFound when there is none, ErrInvalidArgument when it is
// not a regular file.
func findLogFile(path string) (crilog.Log, error) {
	fd, err := unixfd.Open(path, logFlags, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return crilog.Log{}, fmt.Errorf("log %s: %w", path, errdefs.ErrNotFound)
	case errors.Is(err, unix.ELOOP):
		return crilog.Log{}, fmt.Errorf("log %s is a symbolic link: %w", path, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.EISDIR):
		return crilog.Log{}, fmt.Errorf("log %s is not a regular file: %w", path, errdefs.ErrInvalidArgument)
	case err != nil:
		return crilog.Log{}, fmt.Errorf("log: %w", err)
	}
	return checkLogFile(path, fd)
}

// checkLogFile takes ownership of fd, and closes it on error.
func checkLogFile(path string, fd int) (crilog.Log, error) {
	st, err := unixfd.Stat(fd)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("log %s is not a regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		unix.Close(fd)
		return crilog.Log{}, err
	}
	return crilog.Log{File: &diskFile{fd, path}, ID: crilog.FileID{Dev: st.Dev, Ino: st.Ino}}, nil
}

// openLogFile opens the log at path, or creates it; created says which. On error nothing is
// created. ErrNotFound when the folder does not exist.
func openLogFile(path string) (l crilog.Log, created bool, err error) {
	for range 10 { // somebody may create or remove it between the two calls
		if l, err = findLogFile(path); !errors.Is(err, errdefs.ErrNotFound) {
			return l, false, err
		}
		var fd int
		fd, err = unixfd.Open(path, logFlags|unix.O_CREAT|unix.O_EXCL, 0o640)
		switch {
		case errors.Is(err, unix.EEXIST):
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return crilog.Log{}, false, fmt.Errorf("folder of log %s: %w", path, errdefs.ErrNotFound)
		case err != nil:
			return crilog.Log{}, false, fmt.Errorf("log: %w", err)
		}
		_ = unix.Fchmod(fd, 0o640) // independent of our umask
		if l, err = checkLogFile(path, fd); err != nil {
			_ = unix.Unlink(path)
		}
		return l, true, err
	}
	return crilog.Log{}, false, fmt.Errorf("log %s was replaced each time it was opened: %w", path, errdefs.ErrUnavailable)
}

// findRenamed opens the log with this id under any name in dir, because the kubelet rotates by
// renaming. ErrNotFound when it is not there.
func findRenamed(dir string, id crilog.FileID) (crilog.Log, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return crilog.Log{}, err
	}
	for _, e := range entries {
		var st unix.Stat_t
		path := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() {
			continue
		}
		if err := unixfd.Retry(func() error { return unix.Lstat(path, &st) }); err != nil && !errors.Is(err, unix.ENOENT) {
			return crilog.Log{}, fmt.Errorf("look at %s: %w", path, err)
		} else if err != nil || (crilog.FileID{Dev: st.Dev, Ino: st.Ino}) != id {
			continue
		}
		l, err := findLogFile(path)
		if err == nil && l.ID == id {
			return l, nil
		}
		l.Close()
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrInvalidArgument) {
			return crilog.Log{}, err
		}
	}
	return crilog.Log{}, fmt.Errorf("log with inode %d in %s: %w", id.Ino, dir, errdefs.ErrNotFound)
}
