package client

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// TestKeyringQuotaExhausted: root's key quota on the node is used up. A task starts without a keyring of
// its own.
func TestKeyringQuotaExhausted(t *testing.T) {
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

// changeRecord changes a task's record while no shim is running.
func (h *host) changeRecord(id string, change func(map[string]any)) {
	h.t.Helper()
	name := filepath.Join(h.state, "shim", id, "task.json")
	raw, err := os.ReadFile(name)
	must(h.t, err)
	rec := map[string]any{}
	must(h.t, json.Unmarshal(raw, &rec))
	change(rec)
	must(h.t, statedir.WriteJSON(name, rec))
}

// TestRecordWithoutAStartTime: an old shim could not read the start time of the process. The
// running task is adopted anyway.
func TestRecordWithoutAStartTime(t *testing.T) {
	h := newHost(t)
	task := h.startCounter("c", "")
	h.client.Close()
	h.kill9("shim.lock")
	h.changeRecord("c", func(rec map[string]any) { delete(rec, "start_ticks") })
	h.connect()
	if got := h.task("c"); got.State != runtimeshim.StateRunning || got.Pid != task.Pid {
		t.Fatalf("task is %+v", got)
	}
	h.finishCounter(task)
	h.wantExit("c", 7)
}

// TestUnreadableRecordKeepsItsTerminal: while a task's record is unreadable, its descriptors stay
// in the pod's keeper socket.
func TestUnreadableRecordKeepsItsTerminal(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	st := h.params("tty", sh("while read a; do echo got $a; done; exit 4"), withTerminal)
	st.Terminal, st.Pod = true, "pod"
	task := h.start(st)
	file, away := filepath.Join(h.state, "shim/tty/task.json"), filepath.Join(h.state, "away")
	must(t, os.Rename(file, away))
	must(t, os.Mkdir(file, 0o700))
	for range 2 { // the second shim finds what the first has left
		h.kill9("shim.lock")
		h.task("tty")
		st := h.params("other", sh("exit 0"))
		st.Pod = "pod"
		h.start(st) // changes what is in the keeper socket
		h.wantExit("other", 0)
		must(t, h.client.Delete(context.Background(), "other"))
		h.mu.Lock()
		delete(h.exits, "other")
		h.mu.Unlock()
	}
	must(t, os.Remove(file))
	must(t, os.Rename(away, file))
	h.eventually("it is adopted", func() bool { got := h.task("tty"); return got.State == runtimeshim.StateRunning && got.Pid == task.Pid })
	h.typeLine("tty", "word\n")
	h.eventually("its terminal is read", func() bool { return strings.Contains(strings.Join(h.logLines("tty"), " "), "got word") })
}

// TestUnreadableForGood: a task whose record or streams stay unreadable can be deleted, and a
// signal to it does not fail with "not found".
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

// TestFolderOfAnEarlierVersion takes over a task folder written by an earlier version in record
// format 1: the task has exited with 7, its output is in the spool, and the logger was killed
// between an intent and its write.
func TestFolderOfAnEarlierVersion(t *testing.T) {
	h := newHost(t)
	must(t, h.client.Shutdown(t.Context()))
	folder := filepath.Join(h.state, "shim/c")
	must(t, os.CopyFS(folder, os.DirFS("testdata/format1")))
	for _, name := range []string{"task.json", "log.json"} {
		raw, err := os.ReadFile(filepath.Join(folder, name))
		must(t, err)
		here := strings.NewReplacer("/usr/bin/runc", h.runc, "/var/log/pods", h.logs).Replace(string(raw))
		must(t, os.WriteFile(filepath.Join(folder, name), []byte(here), 0o600))
	}
	for _, name := range []string{"stdout", "stderr"} {
		must(t, unix.Mkfifo(filepath.Join(folder, name), 0o600))
	}
	h.connect()
	h.wantExit("c", 7)
	task := h.task("c")
	if at := time.Date(2026, 11, 30, 3, 2, 33, 937008709, time.UTC); task.Pid != 2984 || !task.StartedAt.Equal(at) || task.Exit == nil || task.Exit.OOMKilled {
		t.Errorf("the task is told as %+v", task)
	}
	if got := h.logLines("c"); !slices.Equal(got, []string{"one", "two", "no end"}) {
		t.Errorf("the log has %q", got)
	}
	must(t, h.client.Delete(t.Context(), "c"))
	if _, err := os.Stat(folder); err == nil {
		t.Error("the folder is still there")
	}
}
