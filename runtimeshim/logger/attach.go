package logger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// attach copies what a task prints from now on to the caller's pipes. It sends one reply once the
// pipes are in place. It returns when the task has ended and the pipes have everything, or when the
// caller disconnects. A caller that has closed only its write half first gets what the task has
// printed until then.
//
// A caller that does not read blocks the task, as a terminal does. After it has read nothing for
// TapPatience it is cut off, and the task continues.
func (l *logger) attach(ctx context.Context, in *wire.Inbound) (any, error) {
	var body wire.Attach
	if err := in.Decode(&body); err != nil {
		return nil, err
	}
	if err := statedir.CheckID(body.ID); err != nil {
		return nil, err
	}
	taps, err := newTaps(in.Files, body.Have)
	if err != nil {
		return nil, fmt.Errorf("attach to task %s: %w", body.ID, err)
	}
	var task *logTask
	// The task owns the taps from here on, even if the caller is gone.
	err = l.on(ctx, body.ID, func(t *logTask) error {
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
	defer task.later(func() { // do not wait for it, because a disk may hang
		if !task.gone {
			task.untap(taps)
		}
	})
	if err := in.Send(struct{}{}); err != nil {
		return nil, err
	}
	err = awaitTaps(ctx, taps)
	// The caller has closed its write half, or all; in the second case it does not read and is cut
	// off at once.
	if ctx.Err() != nil && l.ctx.Err() == nil {
		err = l.leave(task, taps)
	}
	if err != nil && l.ctx.Err() != nil { // this logger is ending; the caller must ask the next one
		err = fmt.Errorf("the logger is shutting down: %w", errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("attached to task %s: %w", body.ID, err)
	}
	return nil, nil
}

// leave writes what the task has printed until now to the taps, and ends them.
func (l *logger) leave(task *logTask, taps [2]*tap) error {
	task.later(func() {
		if !task.gone {
			task.lastCopy(taps)
		}
	})
	ctx, cancel := context.WithTimeout(l.ctx, 2*TapPatience)
	defer cancel()
	return awaitTaps(ctx, taps)
}

// tap adds taps to a running task. ErrFailedPrecondition when the task has ended,
// ErrResourceExhausted when too many clients are attached.
func (t *logTask) tap(taps [2]*tap) error {
	if t.writer == nil {
		err := t.attach()
		switch {
		case errors.Is(err, errdefs.ErrNotFound), errors.Is(err, errdefs.ErrInvalidArgument), err == nil && t.writer.Done():
			t.release()
			return errors.Join(err, fmt.Errorf("it has ended: %w", errdefs.ErrFailedPrecondition))
		case err != nil:
			t.backOff(err) // as everywhere, retry errors that may be temporary
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		t.unarmed = anybody
		t.wake(tick)
	}
	if t.writer.Done() {
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

// mostWaiting is the number of unwritten bytes in a spool above which lastCopy adds nothing to it.
const mostWaiting = 1 << 20

// lastCopy reads only what the task's FIFOs hold now, and ends the taps once they have received it.
func (t *logTask) lastCopy(taps [2]*tap) {
	for i, p := range taps {
		if p == nil || p.fd < 0 || t.streams[i] == nil {
			continue
		}
		s := t.streams[i]
		left, err := s.held()
		if t.stuck != 0 || s.spool != nil && s.spool.Waiting() > mostWaiting {
			// The log cannot be written now: clients that come and go must not fill the spool.
			left = 0
		}
		for left > 0 && err == nil {
			var n int
			if n, err = t.fill(i); n == 0 {
				break
			}
			left -= n
		}
		t.taps[i] = slices.DeleteFunc(t.taps[i], func(other *tap) bool { return other == p })
		go p.finish()
		t.wake(1 << i) // what was read must also go to the log
	}
}

// untap closes the taps, if they are still open.
func (t *logTask) untap(taps [2]*tap) {
	closeTaps(taps)
	t.taps.dropClosed()
}

// waitForTaps reports whether a reader of the stream is behind. Then nothing more is read from the
// task until tapPace has passed.
func (t *logTask) waitForTaps(i int) bool {
	behind := t.taps.behind(i)
	if behind {
		t.l.poll.disarm(t.streams[i].fifo)
		t.unarmed |= 1 << i
		t.after(tapPace)
	}
	return behind
}
