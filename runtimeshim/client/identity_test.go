package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/procfd"
)

// runtimeWith returns a runtime that is a shell script, where "$@" are the arguments and $RUNC is
// the real runtime.
func (h *host) runtimeWith(name, script string) string {
	path := filepath.Join(filepath.Dir(h.state), name)
	h.writeScript(path, "RUNC="+h.runc+"\n"+script)
	return path
}

// procs returns the processes in a task's cgroup.
func (h *host) procs(id string) []int {
	var dirs []string
	for _, m := range cgroup.Mounts() {
		dirs = append(dirs, filepath.Join(m.Mount, h.cgroup, id))
	}
	return cgroup.AllProcs(dirs)
}

// TestExecCancelledAtItsEnd: the caller leaves after the runtime has started the process and before
// the runtime ends. Nothing of the exec is left.
func TestExecCancelledAtItsEnd(t *testing.T) {
	for name, script := range map[string]string{
		// The pid file is written, but the runtime keeps running for a while.
		"pid file": `case "$*" in *" exec "*) $RUNC "$@"; echo > %[1]s; while :; do sleep 0.02; done;; esac; exec $RUNC "$@"`,
		// It has started a process and written no pid file.
		"no pid file": `case "$*" in *" exec "*) setsid sleep 1000000 & echo > %[1]s; while :; do sleep 0.02; done;; esac; exec $RUNC "$@"`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.idle("c")
			working := filepath.Join(filepath.Dir(h.state), "working")
			runtime := h.runtimeWith("slow", fmt.Sprintf(script, working))
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				_, err := h.client.Exec(ctx, runtimeshim.Exec{ID: "c", Runtime: runtime, Process: asJSON(t, process("/bin/sleep", "1000000"))})
				done <- err
			}()
			h.eventually("the runtime has done its work", func() bool { return exists(working) })
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("exec: %v", err)
			}
			h.eventually("only the task's own process is left", func() bool { return len(h.procs("c")) == 1 })
			h.wantNoExecFiles("c")
			h.eventually("the shim has no child but the task", func() bool {
				kids := 0
				for _, kid := range procfd.ListChildren(h.lockPid("shim.lock")) {
					if st, err := procfd.ReadStat(kid); err == nil && st.State != 'Z' {
						kids++
					}
				}
				return kids == 1
			})
		})
	}
}

// TestExecOfADeadShimIsEnded: an exec of a dead shim is killed, even if the clock was stepped
// meanwhile.
func TestExecOfADeadShimIsEnded(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	r, w := pipeOf(t)
	done := make(chan error, 1)
	go func() {
		_, err := h.client.Exec(context.Background(), runtimeshim.Exec{ID: "c", Runtime: h.runc, Process: asJSON(t, process(sh("echo up; sleep 1000000")...)), Stdout: w})
		done <- err
	}()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	var pids []string
	h.eventually("exec is under way", func() bool {
		pids, _ = filepath.Glob(filepath.Join(h.state, "shim/c/exec-*.pid"))
		return len(pids) == 1
	})
	stepBack(t, pids[0])
	h.kill9("shim.lock")
	<-done
	h.eventually("only the task's own process is left", func() bool { return len(h.procs("c")) == 1 })
	h.wantNoExecFiles("c")
}

// stepBack makes a file a day older, as it would look after the clock was set forward.
func stepBack(t *testing.T, name string) {
	t.Helper()
	st, err := os.Stat(name)
	must(t, err)
	at := st.ModTime().AddDate(0, 0, -1)
	must(t, os.Chtimes(name, at, at))
}

// TestClockIsSteppedWhileAStartIsAdopted: the shim dies during a start, and the clock is set
// forward before the next shim reads the pid file. The process is identified by the runtime's state
// file, or without it by its cgroup.
func TestClockIsSteppedWhileAStartIsAdopted(t *testing.T) {
	for name, after := range map[string]string{"state": "", "cgroup only": `mv %s/runc/c/state.json %[1]s/state.json.away`} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.pod("pod")
			st := h.params("c", counter)
			st.Pod = "pod"
			dir := filepath.Dir(h.state)
			if after != "" {
				after = fmt.Sprintf(after, h.state)
			}
			st.Runtime = h.runtimeWith("slow", fmt.Sprintf(`case "$*" in *" run "*) $RUNC "$@"; touch -d @100000 %s/shim/c/pid; %s
echo > %s/working; while ! [ -e %[3]s/go ]; do sleep 0.02; done; exit 0;; esac; exec $RUNC "$@"`, h.state, after, dir))
			var task runtimeshim.Task
			var err error
			started := make(chan struct{})
			go func() {
				defer close(started)
				task, err = h.client.Start(context.Background(), st)
			}()
			h.eventually("runtime works", func() bool { return exists(dir + "/working") })
			h.kill9("shim.lock")
			must(t, os.WriteFile(dir+"/go", nil, 0o600))
			<-started
			if err != nil || task.State != runtimeshim.StateRunning || task.Exit != nil {
				t.Fatalf("start over the death of the shim: %+v %v", task, err)
			}
			if after != "" {
				must(t, os.Rename(h.state+"/state.json.away", h.state+"/runc/c/state.json"))
			}
			h.eventually("counted", func() bool { return len(h.logLines("c")) == 1000 })
			h.finishCounter(task)
			h.wantExit("c", 7)
		})
	}
}

// TestAdoptedPIDReused: a pid file, however recent, contains the pid of a process that is
// not the task's.
func TestAdoptedPIDReused(t *testing.T) {
	h := newHost(t)
	stranger := exec.Command("sleep", "1000000")
	stranger.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, stranger.Start())
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	dir := filepath.Dir(h.state)
	st := h.params("c", sh("exit 3"))
	st.Runtime = h.runtimeWith("slow", fmt.Sprintf(`case "$*" in *" run "*) $RUNC "$@"; echo -n %d > %s/shim/c/pid
echo > %s/working; while ! [ -e %[3]s/go ]; do sleep 0.02; done; exit 0;; esac; exec $RUNC "$@"`, stranger.Process.Pid, h.state, dir))
	ended := make(chan error, 1)
	go func() {
		_, err := h.client.Start(context.Background(), st)
		ended <- err
	}()
	h.eventually("runtime works", func() bool { return exists(dir + "/working") })
	h.kill9("shim.lock")
	must(t, os.WriteFile(dir+"/go", nil, 0o600))
	<-ended
	if got := h.task("c"); got.State == runtimeshim.StateRunning {
		t.Errorf("a stranger was adopted: %+v", got)
	}
	must(t, h.client.Delete(context.Background(), "c"))
	if st, err := procfd.ReadStat(stranger.Process.Pid); err != nil || st.State == 'Z' {
		t.Errorf("the stranger was killed: %+v %v", st, err)
	}
}

// TestUnreadableRecordIsKept: a file that cannot be read is read again later, and until then a running
// task is not taken for exited or never started.
func TestUnreadableRecordIsKept(t *testing.T) {
	for _, name := range []string{"task.json", "exit", "stdout"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			task := h.startCounter("c", "")
			file := filepath.Join(h.state, "shim/c", name)
			away := filepath.Join(h.state, "away")
			if err := os.Rename(file, away); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			must(t, os.Mkdir(file, 0o700)) // EISDIR stands for EIO
			h.kill9("shim.lock")
			if got := h.task("c"); got.Exit != nil || got.State == runtimeshim.StateCreated {
				t.Errorf("task is %+v", got)
			}
			must(t, os.Remove(file))
			if err := os.Rename(away, file); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			h.eventually("it is adopted", func() bool { got := h.task("c"); return got.State == runtimeshim.StateRunning && got.Pid == task.Pid })
			h.finishCounter(task)
			h.wantExit("c", 7)
			h.wantCounted("c", 2000)
		})
	}
}

// TestReopenWhenTheLogCannotBeReadNow: a log rotation does not make the logger forget a task whose
// log.json it cannot read at the moment.
func TestReopenWhenTheLogCannotBeReadNow(t *testing.T) {
	h := newHost(t)
	task := h.start(h.params("c", sh("trap 'seq 6 10' USR1; seq 1 5; while :; do sleep 0.02; done")))
	h.eventually("it has counted", func() bool { return len(h.logLines("c")) == 5 })
	h.client.Close()
	h.kill9("logger.lock")
	file, away := filepath.Join(h.state, "shim/c/log.json"), filepath.Join(h.state, "away")
	must(t, os.Rename(file, away))
	must(t, os.Mkdir(file, 0o700))
	h.connect()
	if err := h.client.ReopenLog(context.Background(), "c"); err == nil {
		t.Error("the log was opened again")
	}
	must(t, os.Remove(file))
	must(t, os.Rename(away, file))
	f, err := procfd.Open(task.Pid)
	must(t, err)
	defer f.Close()
	must(t, procfd.Signal(f, unix.SIGUSR1))
	h.eventually("it has counted on", func() bool { return len(h.logLines("c")) == 10 })
}
