package logger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// logTask writes the output of one task to its log. All its work is done by one goroutine, which
// exists only while there is work: post and wake start it. So its fields need no lock, and a disk
// that hangs blocks only the goroutine of that container.
type logTask struct {
	worker
	l  *logger
	id string

	// Owned by the working goroutine.
	place    place
	writer   *crilog.Writer // nil: nothing is open
	gone     bool           // released: nothing more may be done
	streams  [2]*source
	unarmed  uint8     // streams that poll does not watch: the next tick reads them
	last     time.Time // time of the last batch
	timer    *time.Timer
	due      time.Time     // when the timer fires; zero = it is not running
	stuck    time.Duration // pause until the next retry; 0 = no error
	finished chan struct{} // not nil: finish was requested; closed when it is done
	taps     taps          // attached clients
}

const (
	tick    uint8 = 1 << 7
	anybody uint8 = 1<<0 | 1<<1

	// A container that prints all the time is read in batches: otherwise each line of a writer of
	// single lines would wake us. With attached clients the shortest pace is used.
	shortestPace = time.Millisecond
	longestPace  = 40 * time.Millisecond
	recent       = 50 * time.Millisecond

	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

var errGone = errors.New("the task was released")

func newLogTask(l *logger, id string) *logTask {
	t := &logTask{l: l, id: id}
	t.pump = func(ready uint8) { t.survive(func() { t.move(ready) }) }
	return t
}

func (t *logTask) dir() statedir.Task { return t.l.dir.Task(t.id) }

// later queues f as work of the task.
func (t *logTask) later(f func()) { t.post(func() { t.survive(f) }) }

// do runs f as work of the task and returns its error. If ctx ends first, it does not wait for f.
// errGone: f was not run.
func (t *logTask) do(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	t.later(func() {
		if t.gone {
			done <- errGone
			return
		}
		done <- f()
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("log of %s is busy: %w", t.id, errdefs.ErrUnavailable)
	}
}

// move processes one batch of each stream that is ready.
func (t *logTask) move(ready uint8) {
	if t.gone {
		return
	}
	t.unarmed |= ready & anybody
	if t.stuck != 0 && ready&tick == 0 {
		return
	}
	if ready&tick != 0 {
		ready, t.due = t.unarmed, time.Time{}
	}
	err := t.work(ready)
	if err == nil && t.finished != nil {
		err = t.drain()
	}
	if err != nil {
		t.backOff(err)
		return
	}
	t.recovered()
}

func (t *logTask) work(ready uint8) error {
	retrying := t.stuck != 0
	if t.writer == nil {
		if err := t.attach(); err != nil {
			return err
		}
	}
	if err := t.writer.Resume(); err != nil {
		return err
	}
	now := time.Now()
	since := now.Sub(t.last)
	for i, s := range t.streams {
		if s == nil || (ready&(1<<i) == 0 && !retrying) {
			continue
		}
		held := t.waitForTaps(i)
		n, err := t.batch(i, held, retrying)
		if err != nil {
			return err
		}
		if held || t.waitForTaps(i) {
			continue
		}
		if n > 0 {
			t.last = now
		}
		if err := t.next(i, n, since); err != nil {
			return err
		}
	}
	return nil
}

// batch reads what a stream has, unless its readers are behind, and writes it to the log.
func (t *logTask) batch(i int, held, retrying bool) (n int, err error) {
	if !held {
		n, err = t.fill(i)
	}
	if err == nil && (n > 0 || retrying) {
		err = t.commit(i, false)
	}
	if err == nil {
		err = t.writer.Compact(i)
	}
	return n, err
}

// commit writes what is in the spool of a stream to the log; with final, also an unfinished line.
func (t *logTask) commit(i int, final bool) error {
	if t.writer.Waiting(i) == 0 {
		return nil
	}
	if err := t.place.findFolder(); err != nil {
		return err
	}
	b, err := t.l.buffers.get()
	if err != nil {
		return err
	}
	defer t.l.buffers.put(b)
	return t.writer.Commit(i, final, crilog.Buffer{Raw: b.raw, Out: b.out})
}

// fill reads what a stream has, copies it to attached clients, and returns the number of bytes.
func (t *logTask) fill(i int) (int, error) {
	s := t.streams[i]
	if s.spool == nil && len(t.taps[i]) > 0 {
		fresh, err := s.take()
		t.taps.deliver(i, fresh)
		return len(fresh), err
	}
	n, err := s.fill(t.l.devnull)
	if n > 0 {
		t.l.step.Pass("logger.spliced")
	}
	if err != nil || n == 0 || len(t.taps[i]) == 0 {
		return n, err
	}
	fresh, err := s.spool.Last(n)
	if err == nil {
		t.taps.deliver(i, fresh)
	}
	return n, err
}

// next decides when to read a stream again that has just given n bytes in the time since the last
// batch.
func (t *logTask) next(i, n int, since time.Duration) error {
	s := t.streams[i]
	switch {
	case n >= s.pipe/2:
		s.busy()
		t.l.poll.disarm(s.fifo)
		t.wake(1 << i)
	case n > 0 && since < recent:
		t.l.poll.disarm(s.fifo)
		t.unarmed |= 1 << i
		t.after(s.pace(n, since, len(t.taps[i]) > 0))
	default:
		t.unarmed &^= 1 << i
		if err := t.l.poll.arm(s.fifo); err != nil {
			t.unarmed |= 1 << i
			return fmt.Errorf("watch output: %w", err)
		}
	}
	return nil
}

// after makes the next tick come after d, unless it is already due earlier.
func (t *logTask) after(d time.Duration) {
	at := time.Now().Add(d)
	if !t.due.IsZero() && t.due.Before(at) && t.stuck == 0 {
		return
	}
	t.due = at
	if t.timer == nil {
		t.timer = time.AfterFunc(d, func() { t.wake(tick) })
		return
	}
	t.timer.Reset(d)
}

// backOff changes nothing and retries later; the container blocks once its FIFO is full. If the
// task was deleted, it releases the task.
func (t *logTask) backOff(err error) {
	if _, serr := os.Stat(t.dir().Log()); errors.Is(serr, os.ErrNotExist) {
		t.release()
		return
	}
	if t.stuck == 0 {
		t.logger().WithError(err).Warn("log cannot be written; output waits")
	}
	t.stuck = min(max(2*t.stuck, firstRetry), lastRetry)
	t.after(t.stuck)
}

func (t *logTask) recovered() {
	if t.stuck != 0 {
		t.logger().Info("log can be written again")
	}
	t.stuck = 0
}

func (t *logTask) logger() *log.Entry { return log.G(t.l.ctx).WithField("container", t.id) }

// release closes everything and forgets the task; its files stay.
func (t *logTask) release() {
	if t.gone {
		return
	}
	t.gone = true
	t.l.forget(t)
	t.taps.finish()
	if t.timer != nil {
		t.timer.Stop()
	}
	t.detach()
	if t.finished != nil {
		close(t.finished)
	}
}

func (t *logTask) detach() {
	for i, s := range t.streams {
		if s != nil {
			t.l.unwatch(s.fifo)
			s.close()
			t.streams[i] = nil
		}
	}
	if t.writer != nil {
		t.writer.Close()
		t.writer = nil
	}
}

// survive runs a piece of work. After a panic this task pauses, and others are not affected.
func (t *logTask) survive(work func()) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		t.logger().Errorf("panic: %v\n%s", p, debug.Stack())
		if !t.gone {
			t.stuck = min(max(2*t.stuck, firstRetry), lastRetry)
			t.after(t.stuck)
		}
	}()
	work()
}
