package logger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// tap is one pipe that gets a copy of a stream. The task's working goroutine owns it until the task
// ends, then the goroutine that runs finish.
type tap struct {
	fd      int
	pending []byte
	since   time.Time     // time since when pending is not empty and the reader has read nothing
	cut     bool          // closed because nobody read
	closed  chan struct{} // closed together with fd
}

// TapPatience is how long a reader may read nothing before it is cut off.
var TapPatience = 10 * time.Second

const mostTaps = 64 // per stream

const tapPace = 5 * time.Millisecond // interval for checking a slow reader

// newTaps returns taps for duplicates of the pipes, which it makes non-blocking.
func newTaps(files []*os.File, have [2]bool) ([2]*tap, error) {
	var taps [2]*tap
	for i, wanted := range have {
		if !wanted || len(files) == 0 {
			continue
		}
		fd, err := unix.FcntlInt(uintptr(unixfd.Of(files[0])), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			taps[i] = &tap{fd: fd, closed: make(chan struct{})}
			err = unix.SetNonblock(fd, true)
		}
		if err != nil {
			closeTaps(taps)
			return taps, err
		}
		files = files[1:]
	}
	return taps, nil
}

func closeTaps(taps [2]*tap) {
	for _, p := range taps {
		if p != nil {
			p.close()
		}
	}
}

// close may be called more than once.
func (p *tap) close() {
	if p.fd >= 0 {
		unixfd.Close(&p.fd)
		close(p.closed)
	}
	p.pending = nil
}

// flush writes as much as the pipe accepts now. It closes the tap if the reader is gone, or has
// read nothing for TapPatience.
func (p *tap) flush() {
	for len(p.pending) > 0 && p.fd >= 0 {
		n, err := unix.Write(p.fd, p.pending)
		switch {
		case n > 0:
			p.pending, p.since = p.pending[n:], time.Now()
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && time.Since(p.since) < TapPatience:
			return
		default:
			p.cut = errors.Is(err, unix.EAGAIN)
			p.close()
		}
	}
}

// finish writes the rest, as long as somebody reads, and closes.
func (p *tap) finish() {
	for p.flush(); len(p.pending) > 0; p.flush() {
		time.Sleep(tapPace)
	}
	p.close()
}

// taps are the pipes that get a copy of each stream.
type taps [2][]*tap

func (a *taps) dropClosed() {
	for i, list := range a {
		open := list[:0]
		for _, p := range list {
			if p.fd >= 0 {
				open = append(open, p)
			}
		}
		clear(list[len(open):])
		a[i] = open
	}
}

// deliver sends bytes to every tap of a stream. The taps share the slice.
func (a *taps) deliver(i int, fresh []byte) {
	for _, p := range a[i] {
		if len(p.pending) == 0 {
			p.pending, p.since = fresh, time.Now()
		} else {
			p.pending = append(p.pending[:len(p.pending):len(p.pending)], fresh...)
		}
		p.flush()
	}
	a.dropClosed()
}

// behind reports whether a reader of the stream has not read everything yet.
func (a *taps) behind(i int) bool {
	behind := false
	for _, p := range a[i] {
		p.flush()
		behind = behind || len(p.pending) > 0
	}
	a.dropClosed()
	return behind
}

// finish lets the readers get the rest of their output in the background.
func (a *taps) finish() {
	for i, list := range a {
		for _, p := range list {
			go p.finish()
		}
		a[i] = nil
	}
}

// awaitTaps returns when both have ended, when one was cut off (ErrAborted), or when ctx ends.
func awaitTaps(ctx context.Context, taps [2]*tap) error {
	var closed [2]chan struct{}
	for i, p := range taps {
		if p != nil {
			closed[i] = p.closed
		}
	}
	for closed != [2]chan struct{}{} {
		ended := 0
		select {
		case <-closed[0]:
		case <-closed[1]:
			ended = 1
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if taps[ended].cut {
			return fmt.Errorf("the client has not read any output for %v: %w", TapPatience, errdefs.ErrAborted)
		}
		closed[ended] = nil
	}
	return nil
}
