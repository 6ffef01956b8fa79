// Package unixfd has what the standard library lacks for descriptors: plain ones without an
// os.File, and those that are sent over sockets.
package unixfd

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Of returns the number of f's descriptor, -1 when f is closed. Unlike f.Fd it leaves a
// non-blocking descriptor non-blocking. The caller must keep f open while it uses the number.
func Of(f *os.File) int {
	fd := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

// Rights returns the control message that sends files, nil if there are none.
func Rights(files []*os.File) []byte {
	if len(files) == 0 {
		return nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = Of(f)
	}
	return unix.UnixRights(fds...)
}

// Received returns the descriptors in a control message; the caller must close them.
func Received(oob []byte) []*os.File {
	var files []*os.File
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

// CloseAll closes the files that are not nil.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// Retry calls f again as long as it returns EINTR.
func Retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Open is open(2) with O_CLOEXEC.
func Open(path string, flags int, perm uint32) (int, error) {
	fd := -1
	err := Retry(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_CLOEXEC, perm)
		return err
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// Close closes a descriptor and sets it to -1, so that a second call does nothing.
func Close(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
	}
	*fd = -1
}

// Stat is fstat(2).
func Stat(fd int) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := Retry(func() error { return unix.Fstat(fd, &st) })
	return st, err
}

// ReadFull fills buf from offset off. io.ErrUnexpectedEOF when the file is too short.
func ReadFull(fd int, buf []byte, off int64) (int, error) {
	n := 0
	for n < len(buf) {
		var got int
		err := Retry(func() (err error) {
			got, err = unix.Pread(fd, buf[n:], off+int64(n))
			return err
		})
		if err != nil {
			return n, err
		}
		if got == 0 {
			return n, io.ErrUnexpectedEOF
		}
		n += got
	}
	return n, nil
}

// WriteFull writes all of buf, or returns an error.
func WriteFull(fd int, buf []byte) error {
	for len(buf) > 0 {
		var n int
		err := Retry(func() (err error) {
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

// Polled returns a duplicate of a pty master or pipe end that Go's poller watches; it closes f.
func Polled(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(uintptr(Of(f)), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Ready reports whether one of events (as in poll(2)) is true for fd now.
func Ready(fd int, events int16) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents != 0
}

// Readable reports whether a read would not block; for a pidfd, whether the process has ended.
func Readable(fd int) bool { return Ready(fd, unix.POLLIN) }
