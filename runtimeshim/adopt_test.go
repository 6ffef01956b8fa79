package runtimeshim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
)

// TestNoKeyringIsLeft: the keys of root are used up on the node. A task is started without a keyring of its own.
func TestNoKeyringIsLeft(t *testing.T) {
	h := newHost(t)
	full := `"msg":"unable to join session keyring: unable to create session key: disk quota exceeded"`
	st := h.params("c", sh("exit 3"))
	st.Runtime = h.runtimeWith("full", fmt.Sprintf(`case "$*" in *--no-new-keyring*) ;; *" run "*) echo '{"level":"error",%s}' >"$4"; exit 1;; esac; exec $RUNC "$@"`, full))
	h.start(st)
	h.wantExit("c", 3)
	st = h.params("never", sh("exit 3"))
	st.Runtime = h.runtimeWith("fuller", fmt.Sprintf(`case "$*" in *" run "*) echo '{"level":"error",%s}' >"$4"; exit 1;; esac; exec $RUNC "$@"`, full))
	if _, err := h.client.Start(context.Background(), st); !errdefs.IsResourceExhausted(err) {
		t.Errorf("start: %v", err)
	}
}

// TestLacksAreExhaustion: what the node has too little of now is no fault of the request.
func TestLacksAreExhaustion(t *testing.T) {
	for _, msg := range []string{"fork/exec /proc/self/exe: cannot allocate memory", "open /x: too many open files", "mkdir: no space left on device",
		"unable to create session key: disk quota exceeded", "fork/exec: resource temporarily unavailable"} {
		if class := classOfMessage(msg); class != errdefs.ErrResourceExhausted {
			t.Errorf("%q is %v", msg, class)
		}
	}
}

// changeRecord changes what a task's record says, while no shim lives.
func (h *host) changeRecord(id string, change func(map[string]any)) {
	h.t.Helper()
	name := filepath.Join(h.state, "shim", id, "task.json")
	raw, err := os.ReadFile(name)
	must(h.t, err)
	rec := map[string]any{}
	must(h.t, json.Unmarshal(raw, &rec))
	change(rec)
	must(h.t, writeJSON(name, rec))
}

// TestRecordWithoutAStartTime: a shim could not read when the process started. What runs is adopted all the same.
func TestRecordWithoutAStartTime(t *testing.T) {
	h := newHost(t)
	task := h.startCounter("c", "")
	h.client.Close()
	h.kill9("shim.lock")
	h.changeRecord("c", func(rec map[string]any) { delete(rec, "start_ticks") })
	h.connect()
	if got := h.task("c"); got.State != stateRunning || got.Pid != task.Pid {
		t.Fatalf("task is %+v", got)
	}
	h.finishCounter(task)
	h.wantExit("c", 7)
}

// TestUnreadableRecordKeepsItsTerminal: while a record cannot be read, what the pod keeps of the task stays there.
func TestUnreadableRecordKeepsItsTerminal(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	st := h.params("tty", sh("while read a; do echo got $a; done; exit 4"), withTerminal)
	st.Terminal, st.Pod = true, "pod"
	task := h.start(st)
	file, away := filepath.Join(h.state, "shim/tty/task.json"), filepath.Join(h.state, "away")
	must(t, os.Rename(file, away))
	must(t, os.Mkdir(file, 0o700))
	for range 2 { // the second one finds what the first has left
		h.kill9("shim.lock")
		h.task("tty")
		st := h.params("other", sh("exit 0"))
		st.Pod = "pod"
		h.start(st) // changes what the pod keeps
		h.wantExit("other", 0)
		must(t, h.client.Delete(context.Background(), "other"))
		h.mu.Lock()
		delete(h.exits, "other")
		h.mu.Unlock()
	}
	must(t, os.Remove(file))
	must(t, os.Rename(away, file))
	h.eventually("it is adopted", func() bool { got := h.task("tty"); return got.State == stateRunning && got.Pid == task.Pid })
	h.typeLine("tty", "word\n")
	h.eventually("its terminal is read", func() bool { return strings.Contains(strings.Join(h.logLines("tty"), " "), "got word") })
}

// TestUnreadableForGood: a task whose record or streams stay unreadable can be ended, and a signal is no "not found".
func TestUnreadableForGood(t *testing.T) {
	for _, name := range []string{"task.json", "stdout"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.idle("c")
			file := filepath.Join(h.state, "shim/c", name)
			must(t, os.Remove(file))
			must(t, os.Mkdir(file, 0o700))
			h.kill9("shim.lock")
			err := h.client.Kill(context.Background(), "c", unix.SIGUSR2, false)
			if name == "task.json" && !errdefs.IsUnavailable(err) || name == "stdout" && err != nil {
				t.Errorf("signal: %v", err)
			}
			must(t, h.client.Delete(context.Background(), "c"))
			if left := h.procs("c"); len(left) != 0 {
				t.Errorf("processes are left: %v", left)
			}
			if got := h.task("c"); got.ID != "" {
				t.Errorf("task is %+v", got)
			}
		})
	}
}

// TestKeptIsNotCut: a shim that may not open as much as a pod keeps does not take the rest for lost.
func TestKeptIsNotCut(t *testing.T) {
	d := taskDir(filepath.Join(t.TempDir(), "pod"))
	must(t, os.MkdirAll(string(d), 0o700))
	k, err := newKeeper(d)
	must(t, err)
	defer k.close()
	it := kept{keptHead: keptHead{ID: "c"}}
	for range 4 {
		r, w := pipeOf(t)
		it.add("fifo", r)
		it.add("fifo", w)
	}
	must(t, k.keep([]kept{it}))
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	next, err := unix.FcntlInt(uintptr(k.sock), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	unix.Close(next)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next) + 3, Max: was.Max}))
	all, err := k.recall()
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	if err == nil || !outOfResources(err) {
		t.Errorf("recalled %d: %v", len(all), err)
	}
	if all, err := k.recall(); err != nil || len(all) != 1 || len(all[0].files) != 8 {
		t.Errorf("afterwards: %v %v", all, err)
	}
}

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
