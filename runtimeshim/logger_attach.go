package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// attachBody is the request of the verb attach; its descriptors are those of
// the streams that Have names, in order: writing ends of pipes.
type attachBody struct {
	ID   string  `json:"id"`
	Have [2]bool `json:"have"`
}

// attach gives a copy of what a task prints from now on to the caller's pipes.
// It sends one reply when they are in place and returns when the task has
// ended and they have everything, or when the caller goes. A caller that has
// only closed its writing half gets what the task has printed until then first.
//
// A caller that does not read makes the task wait, as a terminal does; one that
// reads nothing for tapPatience is cut off, and the task goes on.
func (l *logger) attach(ctx context.Context, in *inbound) (any, error) {
	var body attachBody
	if err := in.decode(&body); err != nil {
		return nil, err
	}
	if err := checkID(body.ID); err != nil {
		return nil, err
	}
	taps, err := newTaps(in.Files, body.Have)
	if err != nil {
		return nil, fmt.Errorf("attach to task %s: %w", body.ID, err)
	}
	var task *logTask
	err = l.on(ctx, body.ID, func(t *logTask) error { // the taps are its own from here on, also when nobody waits any more
		task = t
		err := ctx.Err()
		if err == nil {
			err = t.tap(taps)
		}
		if err != nil {
			closeTaps(taps)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach to task %s: %w", body.ID, err)
	}
	defer task.post(func() { // not waited for: a disk that hangs must not hold us
		if !task.gone {
			task.untap(taps)
		}
	})
	if err := in.send(struct{}{}); err != nil {
		return nil, err
	}
	err = awaitTaps(ctx, taps)
	if ctx.Err() != nil && l.ctx.Err() == nil { // the caller has hung up, or gone: then it reads nothing and is cut off at once
		err = l.leave(task, taps)
	}
	if err != nil && l.ctx.Err() != nil { // it is we who leave: the next logger is to be asked
		err = fmt.Errorf("logger ends: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("attached to task %s: %w", body.ID, err)
	}
	return nil, nil
}

// leave gives the taps what the task has printed until now, and ends them.
func (l *logger) leave(task *logTask, taps [2]*tap) error {
	task.post(func() {
		if !task.gone {
			task.lastCopy(taps)
		}
	})
	ctx, cancel := context.WithTimeout(l.ctx, 2*tapPatience)
	defer cancel()
	return awaitTaps(ctx, taps)
}

// awaitTaps returns when both have ended, when the first was cut off
// (ErrAborted), or when ctx ends.
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
			return fmt.Errorf("nobody has read its output for %v: %w", tapPatience, errdefs.ErrAborted)
		}
		closed[ended] = nil
	}
	return nil
}

// tap is one pipe that gets a copy of a stream. Its owner is the task's working
// goroutine until the task ends, then the goroutine that empties it.
type tap struct {
	fd      int
	pending []byte
	since   time.Time     // pending is not empty and the reader took nothing since
	cut     bool          // it was closed because nobody read
	closed  chan struct{} // closed with fd
}

// tapPatience is how long a reader may take nothing.
var tapPatience = 10 * time.Second

const mostTaps = 64 // of one stream

const tapPace = 5 * time.Millisecond // between two looks at a reader that is slow

// newTaps takes the pipes over: they are written without blocking from here on.
func newTaps(files []*os.File, have [2]bool) ([2]*tap, error) {
	var taps [2]*tap
	for i, wanted := range have {
		if !wanted || len(files) == 0 {
			continue
		}
		fd, err := unix.FcntlInt(uintptr(fdOf(files[0])), unix.F_DUPFD_CLOEXEC, 3)
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

// close may be called twice.
func (p *tap) close() {
	if p.fd >= 0 {
		closeFD(&p.fd)
		close(p.closed)
	}
	p.pending = nil
}

// flush writes what the pipe takes now. A reader that is gone, or has had its
// time, closes the tap.
func (p *tap) flush() {
	for len(p.pending) > 0 && p.fd >= 0 {
		n, err := unix.Write(p.fd, p.pending)
		switch {
		case n > 0:
			p.pending, p.since = p.pending[n:], time.Now()
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && time.Since(p.since) < tapPatience:
			return
		default:
			p.cut = errors.Is(err, unix.EAGAIN)
			p.close()
		}
	}
}

// finish writes what is left, as long as somebody reads, and closes.
func (p *tap) finish() {
	for p.flush(); len(p.pending) > 0; p.flush() {
		time.Sleep(tapPace)
	}
	p.close()
}

// tap adds taps to a task that is being read. ErrFailedPrecondition: it has ended.
func (t *logTask) tap(taps [2]*tap) error {
	if !t.attached {
		err := t.attach()
		switch {
		case errors.Is(err, errdefs.ErrNotFound), errors.Is(err, errdefs.ErrInvalidArgument), err == nil && t.p.done:
			t.release()
			return errors.Join(err, fmt.Errorf("it has ended: %w", errdefs.ErrFailedPrecondition))
		case err != nil:
			t.backOff(err) // as everywhere: what passes is waited for
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		t.unarmed = anybody
		t.wake(tick)
	}
	if t.p.done {
		return fmt.Errorf("it has ended: %w", errdefs.ErrFailedPrecondition)
	}
	if max(len(t.taps[0]), len(t.taps[1])) >= mostTaps {
		return fmt.Errorf("%d clients are attached to it: %w", mostTaps, errdefs.ErrResourceExhausted)
	}
	for i, p := range taps {
		switch {
		case p == nil:
		case t.streams[i] == nil: // stderr of a terminal
			p.close()
		default:
			t.taps[i] = append(t.taps[i], p)
		}
	}
	return nil
}

// mostWaiting is what a spool may hold for the log before only the log's own pace fills it.
const mostWaiting = 1 << 20

// lastCopy takes what the task's FIFOs hold now and no more, and lets the taps end when they have it.
func (t *logTask) lastCopy(taps [2]*tap) {
	for i, p := range taps {
		if p == nil || p.fd < 0 || t.streams[i] == nil {
			continue
		}
		left, err := unix.IoctlGetInt(t.streams[i].fifo, unix.TIOCINQ)
		if s := t.streams[i]; t.stuck != 0 || s.size-s.off > mostWaiting {
			left = 0 // the log takes nothing now: clients that come and go must not fill the spool
		}
		for n := 0; left > 0 && err == nil; left -= n {
			if n, err = t.fill(i); n == 0 {
				break
			}
		}
		t.taps[i] = slices.DeleteFunc(t.taps[i], func(other *tap) bool { return other == p })
		go p.finish()
		t.wake(1 << i) // what was taken belongs into the log
	}
}

// untap closes the taps; those that are closed already are fine.
func (t *logTask) untap(taps [2]*tap) {
	for _, p := range taps {
		if p != nil {
			p.close()
		}
	}
	t.dropClosed()
}

func (t *logTask) dropClosed() {
	for i, list := range t.taps {
		open := list[:0]
		for _, p := range list {
			if p.fd >= 0 {
				open = append(open, p)
			}
		}
		clear(list[len(open):])
		t.taps[i] = open
	}
}

// copyOut gives the newest n bytes of a stream's spool to its taps.
func (t *logTask) copyOut(i, n int) error {
	s := t.streams[i]
	if n == 0 || len(t.taps[i]) == 0 || s.file < 0 {
		return nil
	}
	fresh, err := preadFull(s.file, make([]byte, n), s.size-int64(n))
	if err != nil {
		return fmt.Errorf("read the spool: %w", err)
	}
	t.deliver(i, fresh)
	return nil
}

// deliver hands bytes to every tap of a stream; they share the slice.
func (t *logTask) deliver(i int, fresh []byte) {
	for _, p := range t.taps[i] {
		if len(p.pending) == 0 {
			p.pending, p.since = fresh, time.Now()
		} else {
			p.pending = append(p.pending[:len(p.pending):len(p.pending)], fresh...)
		}
		p.flush()
	}
	t.dropClosed()
}

// held says whether a reader of the stream is behind: then nothing more is
// taken from the task, and the next look is in a moment.
func (t *logTask) held(i int) bool {
	behind := false
	for _, p := range t.taps[i] {
		p.flush()
		behind = behind || len(p.pending) > 0
	}
	t.dropClosed()
	if behind {
		t.l.poll.disarm(t.streams[i].fifo)
		t.unarmed |= 1 << i
		t.after(tapPace)
	}
	return behind
}

// finishTaps lets the readers have what they still wait for, beside the task's own end.
func (t *logTask) finishTaps() {
	for i, list := range t.taps {
		for _, p := range list {
			go p.finish()
		}
		t.taps[i] = nil
	}
}
