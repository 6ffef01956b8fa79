package logger

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// finish begins to write the rest of the output of a task that has ended. It returns a channel that
// is closed when all of it is in the log. ErrNotFound: there is no such task, or the task with this
// id is a later start; start 0 means any. ErrInvalidArgument: the log's path is not usable.
func (t *logTask) finish(start int64) (chan struct{}, error) {
	other, err := startedAfter(t.dir(), start)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w: %w", t.id, err, errdefs.ErrUnavailable)
	}
	if other {
		if t.writer == nil && t.stuck == 0 {
			t.release()
		}
		return nil, fmt.Errorf("log of %s: the task has been started again since: %w", t.id, errdefs.ErrNotFound)
	}
	if t.finished == nil {
		t.finished = make(chan struct{})
	}
	done := t.finished
	if t.writer == nil && t.stuck == 0 {
		err := t.attach()
		if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrInvalidArgument) {
			t.release()
			return nil, err
		}
	}
	t.wake(tick)
	return done, nil
}

// startedAfter reports whether the task folder belongs to another start than the requested one (0
// means any). The caller that wanted to finish the requested one may have given up.
func startedAfter(d statedir.Task, start int64) (bool, error) {
	if start == 0 {
		return false, nil
	}
	var rec statedir.LogRecord
	err := statedir.ReadJSON(d.Log(), &rec)
	if errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
		err = nil
	}
	return rec.Start != 0 && rec.Start != start, err
}

// drain writes everything and marks the task as done.
func (t *logTask) drain() error {
	if !t.writer.Done() {
		for i, s := range t.streams {
			if s == nil {
				continue
			}
			if err := t.drainStream(i); err != nil {
				return err
			}
		}
		if err := t.writer.Finish(); err != nil {
			return err
		}
	}
	for _, name := range crilog.StreamNames {
		os.Remove(t.dir().At(name + ".spool"))
	}
	t.release()
	return nil
}

// drainStream reads only what the FIFO holds now, so that a process which outlives its container
// cannot keep it busy.
func (t *logTask) drainStream(i int) error {
	left, err := t.streams[i].held()
	if err != nil {
		return err
	}
	for {
		n := 0
		if left > 0 {
			if n, err = t.fill(i); err != nil {
				return err
			}
			left -= n
		}
		if err := t.commit(i, n == 0); err != nil {
			return err
		}
		if err := t.writer.Compact(i); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
	}
}
