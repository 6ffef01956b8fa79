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

// TestLogsOfShimAndLoggerAreBounded: both empty their log when they write to it and it is large.
func TestLogsOfShimAndLoggerAreBounded(t *testing.T) {
	h := newHost(t)
	emptied := func(process string, write func()) {
		log := filepath.Join(h.state, process+".log")
		must(t, os.Truncate(log, mostLog+1))
		write()
		h.eventually("the "+process+" empties its log", func() bool { st, err := os.Stat(log); return err == nil && st.Size() <= mostLog })
	}
	emptied("logger", func() {
		st := h.params("c", sh("seq 100000; exec sleep 1000000"))
		st.LogLimit = MinLogLimit // it says that the log is full
		h.start(st)
	})
	emptied("shim", func() {
		must(t, os.Mkdir(filepath.Join(h.state, "shim/c/exit"), 0o700)) // it says that the exit is not written
		must(t, h.client.Kill(t.Context(), "c", unix.SIGKILL, false))
		h.wantExit("c", 137)
	})
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
	clear(r.early)
	r.prune = fewEarly
	for pid := range fewEarly {
		r.early[-pid-1] = earlyEnd{unix.WaitStatus(0), old}
	}
	child := newChild(t)
	must(t, unix.Kill(child, unix.SIGKILL))
	must(t, unix.Waitid(unix.P_PID, child, nil, unix.WEXITED|unix.WNOWAIT, nil))
	for known := false; !known && r.reapOne(); {
		_, known = r.early[child]
	}
	if _, known := r.early[child]; !known || len(r.early) >= fewEarly {
		t.Errorf("reaping one more keeps %d ends, its own: %t", len(r.early), known)
	}
}
