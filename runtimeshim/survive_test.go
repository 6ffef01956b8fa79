package runtimeshim

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPanicCostsOneTask: the work of a task panics, and goes on; other tasks do not notice.
func TestPanicCostsOneTask(t *testing.T) {
	dir := stateDir(t.TempDir())
	must(t, os.MkdirAll(string(dir.task("c")), 0o700))
	l := &logger{ctx: context.Background(), dir: dir, tasks: map[string]*logTask{}, fifos: map[int]fifoOwner{}}
	task := newLogTask(l, "c")
	task.later(func() { panic("oh") })
	after := make(chan struct{})
	task.post(func() { close(after) })
	select {
	case <-after:
	case <-time.After(testWait):
		t.Fatal("it does nothing any more")
	}
	func() {
		defer survive()
		panic("oh")
	}()
}

// TestLogIsBounded: a log that is written all the time does not fill the state folder.
func TestLogIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(t, err)
	defer f.Close()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	for range 1000 {
		_, err := boundedLog{f}.Write(line)
		must(t, err)
	}
	st, err := os.Stat(name)
	must(t, err)
	if st.Size() > mostLog+2048 || st.Size() == 0 {
		t.Errorf("the log has %d bytes", st.Size())
	}
}

// TestOrphansAreForgotten: processes that nobody claims do not stay in memory while execs overlap.
func TestOrphansAreForgotten(t *testing.T) {
	r := newReaper()
	release := r.hold()
	defer release()
	old := time.Now().Add(-2 * claimWait)
	for pid := range 100 * fewEarly {
		r.early[pid] = earlyEnd{unix.WaitStatus(0), old}
		r.pruneEarly()
	}
	if len(r.early) > 2*fewEarly {
		t.Errorf("%d ends are kept", len(r.early))
	}
	for pid := range 100 * fewEarly { // young ones may be claimed still
		r.early[pid] = earlyEnd{unix.WaitStatus(0), time.Now()}
		r.pruneEarly()
	}
	if len(r.early) != 100*fewEarly {
		t.Errorf("%d ends are left of %d", len(r.early), 100*fewEarly)
	}
}
