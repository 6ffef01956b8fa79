package runtimeshim

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// spool is one output stream on its way: container -> FIFO -> spool file -> log.
//
// splice(2) takes bytes from the FIFO and lets the file grow inside one system
// call that a signal cannot divide, so the size of the file always tells
// exactly what was consumed, whoever is killed.
//
//	0 ........ hole ........ off ........ size
//	  given back     in the log   waiting
type spool struct {
	fifo int // O_RDWR like the container's own: no end of file, no hang-up
	file int // -1: consumed and dropped
	pipe int // capacity of the FIFO, bytes

	size int64 // of the file
	off  int64 // what is before it is in the log, or in the log's current intent
	hole int64 // what is before it takes no room any more
}

const (
	splicePiece = 1 << 20   // most bytes per splice
	bigPipe     = 256 << 10 // capacity of a busy FIFO; its pages count as the container's memory
	resetAt     = 64 << 10  // a spool that is wholly in the log is emptied from this size on
	punchAt     = 1 << 20   // one that ends in an unfinished line gives back its head
)

// openSpool opens FIFO and spool file; file "" means that output is dropped.
func openSpool(fifo, file string) (*spool, error) {
	s := &spool{fifo: -1, file: -1}
	var err error
	if s.fifo, err = openFD(fifo, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	if s.pipe, err = unix.FcntlInt(uintptr(s.fifo), unix.F_GETPIPE_SZ, 0); err != nil {
		s.close()
		return nil, fmt.Errorf("%s is no FIFO: %w", fifo, err)
	}
	if file == "" {
		return s, nil
	}
	if s.file, err = openFD(file, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600); err == nil {
		err = s.measure()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *spool) measure() error {
	st, err := fstat(s.file)
	s.size = st.Size
	return err
}

// fill moves what the FIFO holds, at most splicePiece, and returns how many
// bytes; 0 when it is empty.
func (s *spool) fill(devnull int) (int, error) {
	to, end := devnull, (*int64)(nil)
	if s.file >= 0 {
		to, end = s.file, new(s.size)
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
		s.size += n
		return int(n), nil
	}
}

// take returns what the FIFO of a task without a log holds, at most one pipe
// full; nothing when it is empty.
func (s *spool) take() ([]byte, error) {
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

// busy enlarges the FIFO of a container that fills it faster than it is read.
// Where that is refused the small one must do.
func (s *spool) busy() {
	if s.pipe >= bigPipe {
		return
	}
	if n, err := unix.FcntlInt(uintptr(s.fifo), unix.F_SETPIPE_SZ, bigPipe); err == nil {
		s.pipe = n
	} else {
		s.pipe = bigPipe // do not ask again; only the pace depends on it
	}
}

// read fills buf from off on and returns the part that was filled.
func (s *spool) read(buf []byte) ([]byte, error) {
	want := min(int64(len(buf)), s.size-s.off)
	return preadFull(s.file, buf[:want], s.off)
}

// empty truncates the file. Only when all of it is in the log; the caller
// records the new offset before the next fill. (A file shorter than the
// recorded offset was truncated: see recover.)
func (s *spool) empty() error {
	if err := retry(func() error { return unix.Ftruncate(s.file, 0) }); err != nil {
		return fmt.Errorf("empty the spool: %w", err)
	}
	s.size, s.off, s.hole = 0, 0, 0
	return nil
}

// punch gives back the room of what is in the log. The caller has recorded
// before that no intent needs it.
func (s *spool) punch() {
	end := s.off &^ 4095
	s.hole = s.off
	// A file system that cannot do it keeps the room until the spool is emptied.
	_ = retry(func() error {
		return unix.Fallocate(s.file, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, end)
	})
}

func (s *spool) close() {
	closeFD(&s.fifo)
	closeFD(&s.file)
}
