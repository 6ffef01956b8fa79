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

// attach gives a copy of what a task prints from now on to the caller's pipes.
// It sends one reply when they are in place and returns when the task has
// ended and they have everything, or when the caller goes. A caller that has
// only closed its writing half gets what the task has printed until then first.
//
// A caller that does not read makes the task wait, as a terminal does; one that
// reads nothing for TapPatience is cut off, and the task goes on.
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
	defer task.later(func() { // not waited for: a disk that hangs must not hold us
		if !task.gone {
			task.untap(taps)
		}
	})
	if err := in.Send(struct{}{}); err != nil {
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
	task.later(func() {
		if !task.gone {
			task.lastCopy(taps)
		}
	})
	ctx, cancel := context.WithTimeout(l.ctx, 2*TapPatience)
	defer cancel()
	return awaitTaps(ctx, taps)
}

// tap adds taps to a task that is being read. ErrFailedPrecondition: it has ended.
func (t *logTask) tap(taps [2]*tap) error {
	if t.writer == nil {
		err := t.attach()
		switch {
		case errors.Is(err, errdefs.ErrNotFound), errors.Is(err, errdefs.ErrInvalidArgument), err == nil && t.writer.Done():
			t.release()
			return errors.Join(err, fmt.Errorf("it has ended: %w", errdefs.ErrFailedPrecondition))
		case err != nil:
			t.backOff(err) // as everywhere: what passes is waited for
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

// mostWaiting is what a spool may hold for the log before only the log's own pace fills it.
const mostWaiting = 1 << 20

// lastCopy takes what the task's FIFOs hold now and no more, and lets the taps end when they have
// it.
func (t *logTask) lastCopy(taps [2]*tap) {
	for i, p := range taps {
		if p == nil || p.fd < 0 || t.streams[i] == nil {
			continue
		}
		s := t.streams[i]
		left, err := s.held()
		if t.stuck != 0 || s.spool != nil && s.spool.Waiting() > mostWaiting {
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
	closeTaps(taps)
	t.taps.dropClosed()
}

// waitForTaps says whether a reader of the stream is behind: then nothing more
// is taken from the task, and the next look is in a moment.
func (t *logTask) waitForTaps(i int) bool {
	behind := t.taps.behind(i)
	if behind {
		t.l.poll.disarm(t.streams[i].fifo)
		t.unarmed |= 1 << i
		t.after(tapPace)
	}
	return behind
}
