package logger

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// TestLogReadsInBatches: a container that prints single lines all the time is read in batches; one
// that fills its FIFO is read before the FIFO is full.
func TestLogReadsInBatches(t *testing.T) {
	s := &source{pipe: 64 << 10}
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
		if got := s.pace(c.n, c.since, false); got != c.want {
			t.Errorf("%d bytes in %v: looks again after %v, want %v", c.n, c.since, got, c.want)
		}
	}
	if got := s.pace(80, 5*time.Millisecond, true); got != shortestPace {
		t.Errorf("who is attached waits %v", got)
	}
}

// TestPanicCostsOneTask: a task continues after a panic in its work; other tasks are not affected.
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

// TestTooManyAttached: one client more than the maximum gets an error.
func TestTooManyAttached(t *testing.T) {
	task := &logTask{writer: &crilog.Writer{}}
	for range mostTaps {
		task.taps[0] = append(task.taps[0], &tap{})
	}
	if err := task.tap([2]*tap{{}}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one more: %v", err)
	}
}

// TestAttachWithFullLog: clients that come and go do not fill the spool while the log
// cannot be written.
func TestAttachWithFullLog(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	s, err := openSource(fifo, filepath.Join(dir, "spool"))
	must(t, err)
	defer s.close()
	must(t, unixfd.WriteFull(s.fifo, make([]byte, 4096)))
	l := &logger{step: func(string) {}}
	task := &logTask{l: l, streams: [2]*source{s}, stuck: firstRetry}
	task.running = true
	r, w := pipeOf(t)
	defer r.Close()
	taps, err := newTaps([]*os.File{w}, [2]bool{true})
	must(t, err)
	task.taps[0] = []*tap{taps[0]}
	task.lastCopy(taps)
	if s.spool.Size() != 0 {
		t.Errorf("%d bytes are in the spool", s.spool.Size())
	}
}

// pipeOf returns a pipe that is closed when the test ends.
func pipeOf(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}
