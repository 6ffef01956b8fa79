package logger

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// source is one output stream of a task on its way: container -> FIFO -> spool.
//
// splice(2) takes bytes from the FIFO and extends the file in one system call that a signal cannot
// split. So the size of the file always says exactly what was read, whichever process is killed.
type source struct {
	fifo  int           // O_RDWR like the container's own: no EOF, no hang-up
	pipe  int           // capacity of the FIFO in bytes
	file  int           // of the spool
	spool *crilog.Spool // nil: output is read and dropped; closed by the task's Writer
}

const (
	splicePiece = 1 << 20 // maximum bytes per splice
	// bigPipe is the capacity of a busy FIFO. Its pages are charged to the container's memory
	// cgroup.
	bigPipe = 256 << 10
)

// openSource opens the FIFO and the spool file; file "" means that output is dropped.
func openSource(fifo, file string) (*source, error) {
	s := &source{fifo: -1, file: -1}
	var err error
	if s.fifo, err = unixfd.Open(fifo, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	if s.pipe, err = unix.FcntlInt(uintptr(s.fifo), unix.F_GETPIPE_SZ, 0); err != nil {
		s.close()
		return nil, fmt.Errorf("%s is not a FIFO: %w", fifo, err)
	}
	if file == "" {
		return s, nil
	}
	if s.file, err = unixfd.Open(file, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600); err == nil {
		s.spool, err = crilog.OpenSpool(&diskFile{fd: s.file, path: file})
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// fill moves what the FIFO holds, at most splicePiece, and returns the number of bytes; 0 when it
// is empty.
func (s *source) fill(devnull int) (int, error) {
	to, end := devnull, (*int64)(nil)
	if s.spool != nil {
		to, end = s.file, new(s.spool.Size())
	}
	for {
		n, err := unix.Splice(s.fifo, nil, to, end, splicePiece, unix.SPLICE_F_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return 0, nil
		case err != nil:
			return 0, fmt.Errorf("move output into the spool: %w", err)
		}
		if s.spool != nil {
			s.spool.Grow(n)
		}
		return int(n), nil
	}
}

// take reads what the FIFO of a task without a log holds, at most 64 KiB; nothing when it is empty.
func (s *source) take() ([]byte, error) {
	fresh := make([]byte, 64<<10)
	for {
		n, err := unix.Read(s.fifo, fresh)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("read output: %w", err)
		}
		return fresh[:n], nil
	}
}

// held returns the number of bytes in the FIFO.
func (s *source) held() (int, error) { return unix.IoctlGetInt(s.fifo, unix.TIOCINQ) }

// busy enlarges the FIFO of a container that fills it faster than it is read, if the kernel
// permits.
func (s *source) busy() {
	if s.pipe >= bigPipe {
		return
	}
	if n, err := unix.FcntlInt(uintptr(s.fifo), unix.F_SETPIPE_SZ, bigPipe); err == nil {
		s.pipe = n
	} else {
		s.pipe = bigPipe // do not try again; only the speed depends on it
	}
}

// close closes the FIFO. The Writer closes the spool.
func (s *source) close() { unixfd.Close(&s.fifo) }

// pace returns how long to wait before reading a source again that gave n bytes in the time since:
// until its FIFO is a quarter full, so that the container does not block. With attached clients it
// is the minimum.
func (s *source) pace(n int, since time.Duration, attached bool) time.Duration {
	if attached {
		return shortestPace
	}
	quarter := since * time.Duration(s.pipe/4) / time.Duration(n)
	return max(shortestPace, min(quarter, longestPace))
}

// isAt reports whether the FIFO is the file at path.
func (s *source) isAt(path string) bool {
	var now unix.Stat_t
	st, err := unixfd.Stat(s.fifo)
	return err == nil && unix.Stat(path, &now) == nil && st.Ino == now.Ino && st.Dev == now.Dev
}
