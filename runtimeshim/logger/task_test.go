package logger

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// TestPaceOfALogTask: a container that prints lines all the time is read in batches, one that fills its FIFO before it is full.
func TestPaceOfALogTask(t *testing.T) {
	task := &logTask{streams: [2]*source{{pipe: 64 << 10}}}
	for _, c := range []struct {
		n     int
		since time.Duration
		want  time.Duration
	}{
		{80, 5 * time.Millisecond, longestPace},                // 200 lines a second
		{80, 100 * time.Microsecond, 20480 * time.Microsecond}, // 10,000 lines a second
		{16 << 10, 10 * time.Millisecond, 10 * time.Millisecond},
		{30 << 10, time.Millisecond, shortestPace},
	} {
		if got := task.pace(0, c.n, c.since); got != c.want {
			t.Errorf("%d bytes in %v: looks again after %v, want %v", c.n, c.since, got, c.want)
		}
	}
	task.taps[0] = []*tap{{}}
	if got := task.pace(0, 80, 5*time.Millisecond); got != shortestPace {
		t.Errorf("who is attached waits %v", got)
	}
}

// TestPanicCostsOneTask: the work of a task panics, and goes on; other tasks do not notice.
func TestPanicCostsOneTask(t *testing.T) {
	dir := statedir.Root(t.TempDir())
	must(t, os.MkdirAll(string(dir.Task("c")), 0o700))
	l := &logger{ctx: context.Background(), dir: dir, tasks: map[string]*logTask{}, fifos: map[int]fifoOwner{}}
	task := newLogTask(l, "c")
	task.later(func() { panic("oh") })
	after := make(chan struct{})
	task.post(func() { close(after) })
	select {
	case <-after:
	case <-time.After(time.Minute):
		t.Fatal("it does nothing any more")
	}
	func() {
		defer helper.Survive()
		panic("oh")
	}()
}
