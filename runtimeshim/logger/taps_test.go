package logger

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// TestTooManyAttached: the next client is refused.
func TestTooManyAttached(t *testing.T) {
	task := &logTask{writer: &crilog.Writer{}}
	for range mostTaps {
		task.taps[0] = append(task.taps[0], &tap{})
	}
	if err := task.tap([2]*tap{{}}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one more: %v", err)
	}
}

// TestLeavingTakesNothingForAFullLog: clients that come and go do not fill the spool while the log cannot be written.
func TestLeavingTakesNothingForAFullLog(t *testing.T) {
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

// pipeOf is a pipe that is closed when the test ends.
func pipeOf(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}
