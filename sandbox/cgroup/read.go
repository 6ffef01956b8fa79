package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// readers are kept for their memory.
var readers = sync.Pool{New: func() any { return &reader{at: unix.AT_FDCWD, buf: make([]byte, 8<<10)} }}

// reader reads small files one after another into the same memory. What it returns is good until it
// reads again.
type reader struct {
	at  int // the folder that relative paths begin at
	buf []byte

	scarce error // we had no descriptors or no memory left for some file
	broken error // another error than those of what is gone
}

// begin forgets what happened to an earlier user.
func (r *reader) begin() { r.scarce, r.broken = nil, nil }

// failed takes note of an error that does not say that the file is gone.
func (r *reader) failed(path string, err error) {
	switch {
	case isAny(err, unix.ENOENT, unix.ENOTDIR, unix.ENODEV, unix.ESRCH):
	case isAny(err, unix.EMFILE, unix.ENFILE, unix.ENOMEM):
		r.scarce = fmt.Errorf("read %s: %w", path, err)
	default:
		r.broken = fmt.Errorf("read %s: %w", path, err)
	}
}

// missed returns why figures are missing, of a usage that was read since begin; nil when they do
// not exist.
func (r *reader) missed(u Usage) error {
	switch {
	case r.scarce != nil:
		return fmt.Errorf("%w: %w", r.scarce, errdefs.ErrResourceExhausted)
	case u.None():
		return r.broken
	}
	return nil // a file of its own may be refused, such as one of pressure that the kernel does not measure
}

func isAny(err error, of ...error) bool {
	return slices.ContainsFunc(of, func(one error) bool { return errors.Is(err, one) })
}

// enter makes relative paths begin at dir until leave is called, and returns the path of dir from
// there: to a cgroup it is a long way, and a third of what opening a file costs. A folder that
// cannot be opened, as of a cgroup that is gone, is returned as it is.
func (r *reader) enter(dir string) (here string, leave func()) {
	fd, err := retry(func() (int, error) { return unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return dir, func() {}
	}
	r.at = fd
	return "", func() {
		r.at = unix.AT_FDCWD
		unix.Close(fd)
	}
}

// read returns what a file holds, or nil. The kernel writes such a file in one piece, as far as
// there is room: a read that was not filled was the last one. Nearly all that these files cost is
// system calls, so there are three for each: none to ask for its size, for its end, or to have the
// runtime's poller watch it.
func (r *reader) read(path string) []byte { return r.all(path, false) }

// readList reads a file that the kernel writes line by line, and may give in parts.
func (r *reader) readList(path string) []byte { return r.all(path, true) }

func (r *reader) all(path string, untilEnd bool) []byte {
	fd, err := retry(func() (int, error) { return unix.Openat(r.at, path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		r.failed(path, err)
		return nil
	}
	defer unix.Close(fd)
	for n := 0; ; {
		if n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
		got, err := retry(func() (int, error) { return unix.Read(fd, r.buf[n:]) })
		if err != nil {
			r.failed(path, err)
			return nil
		}
		if n += got; got == 0 || n < len(r.buf) && !untilEnd {
			return r.buf[:n:n]
		}
	}
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// number reads a file of one number, or nil. "max" is math.MaxUint64.
func (r *reader) number(path string) *uint64 {
	return number(bytes.TrimSpace(r.read(path)))
}

func number(b []byte) *uint64 {
	if string(b) == "max" {
		return new(uint64(math.MaxUint64))
	}
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// keys reads a file with a name and a number on each line into the figures of those names. The
// others stay as they are.
func (r *reader) keys(path string, figures map[string]**uint64) {
	eachLine(r.read(path), func(line []byte) {
		name, value, _ := bytes.Cut(line, []byte(" "))
		if figure, ok := figures[string(name)]; ok {
			*figure = number(value)
		}
	})
}

func eachLine(b []byte, line func([]byte)) {
	for l := range bytes.Lines(b) {
		if l = bytes.TrimSpace(l); len(l) > 0 {
			line(l)
		}
	}
}

// scale multiplies a figure that may be nil.
func scale(n *uint64, by uint64) *uint64 {
	if n == nil {
		return nil
	}
	return new(*n * by)
}
