package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// counter prints 1..1000, waits for SIGTERM, prints 1001..2000 and exits with 7.
var counter = sh("trap 'seq 1001 2000; exit 7' TERM; seq 1 1000; while :; do sleep 0.02; done")

func (h *host) startCounter(id, pod string) runtimeshim.Task {
	h.t.Helper()
	st := h.params(id, counter)
	st.Pod = pod
	task := h.start(st)
	h.eventually("counter has counted", func() bool { return len(h.logLines(id)) == 1000 })
	return task
}

// finishCounter sends SIGTERM directly to the process and waits until it is dead.
func (h *host) finishCounter(task runtimeshim.Task) {
	h.t.Helper()
	f, err := procfd.Open(task.Pid)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	procfd.Signal(f, unix.SIGTERM)
	procfd.WaitDead(context.Background(), f)
}

// killAll closes the client and kills shim and logger.
func (h *host) killAll() {
	h.t.Helper()
	h.client.Close()
	h.kill9("shim.lock")
	h.kill9("logger.lock")
}

func TestEverythingDiesAndNothingIsLost(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	tasks := map[string]runtimeshim.Task{}
	for i := range 15 { // more than net.unix.max_dgram_qlen
		id := fmt.Sprintf("c%d", i)
		tasks[id] = h.startCounter(id, "pod")
	}
	h.killAll()
	for _, task := range tasks {
		h.finishCounter(task)
	}
	h.connect()
	for id := range tasks {
		h.wantExit(id, 7)
		h.wantCounted(id, 2000)
	}
	if got := h.task("pod"); got.State != runtimeshim.StateRunning {
		t.Errorf("pod is %+v", got)
	}
}

func TestExitWhileDeadWithoutPidfdInfo(t *testing.T) {
	t.Setenv("CRIBOX_TEST_NO_PIDFD_INFO", "1")
	h := newHost(t)
	h.pod("pod")
	task := h.startCounter("c", "pod")
	h.killAll()
	h.finishCounter(task)
	h.eventually("init has reaped it", func() bool {
		_, err := procfd.ReadStat(task.Pid)
		return err != nil
	})
	h.connect()
	if e := h.waitExit("c"); e.Known || e.Code != 255 {
		t.Errorf("exit is %+v, want unknown", e)
	}
	h.wantCounted("c", 2000)
}

// TestExitAfterTheShim: how a task ends is known to the next shim, which is not its parent, although the parent reaps it at once and the
// kernel keeps nothing.
func TestExitAfterTheShim(t *testing.T) {
	t.Setenv("CRIBOX_TEST_NO_PIDFD_INFO", "1")
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	h := newHost(t)
	h.pod("pod")
	task := h.startCounter("c", "pod")
	h.kill9("shim.lock")
	h.task("c") // of the next shim
	reaped := make(chan error, 1)
	go func() {
		_, err := unix.Wait4(task.Pid, nil, 0, nil)
		reaped <- err
	}()
	h.finishCounter(task)
	must(t, <-reaped)
	h.wantExit("c", 7)
}

func TestExitOfZombieIsRead(t *testing.T) {
	t.Setenv("CRIBOX_TEST_NO_PIDFD_INFO", "1")
	// As a subreaper this process inherits the orphan; it does not reap it before the end of the
	// test.
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	h := newHost(t)
	task := h.startCounter("c", "")
	t.Cleanup(func() {
		unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		unix.Wait4(task.Pid, nil, 0, nil)
	})
	h.client.Close()
	h.kill9("shim.lock")
	h.finishCounter(task)
	h.connect()
	h.wantExit("c", 7)
	unix.Wait4(task.Pid, nil, 0, nil)
}

func TestShimDies(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	a, b := h.startCounter("a", "pod"), h.startCounter("b", "")
	old := h.lockPid("shim.lock")
	h.kill9("shim.lock")
	if got := h.task("a"); got.State != runtimeshim.StateRunning || got.Pid != a.Pid || !got.StartedAt.Equal(a.StartedAt) {
		t.Errorf("adopted %+v, was %+v", got, a)
	}
	if h.lockPid("shim.lock") == old {
		t.Error("no new shim")
	}
	if _, out, _, err := h.exec(context.Background(), "a", "/bin/echo", "hi"); out != "hi\n" || err != nil {
		t.Errorf("exec in an adopted task: %q %v", out, err)
	}
	h.finishCounter(a)
	h.finishCounter(b)
	for _, id := range []string{"a", "b"} {
		h.wantExit(id, 7)
		h.wantCounted(id, 2000)
	}
}

func TestShimDiesAgainAndAgain(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	// It pauses now and then; otherwise the log grows faster than the test can read it.
	st := h.params("c", sh("trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; [ $((i % 100)) != 0 ] || sleep 0.01; done"))
	st.Pod = "pod"
	task := h.start(st)
	for range 5 {
		h.kill9("shim.lock")
		n := len(h.logLines("c"))
		h.eventually("output goes on", func() bool { return len(h.logLines("c")) > n+100 })
		h.task("c")
		h.kill9("logger.lock")
	}
	h.finishCounter(task)
	h.wantExit("c", 7)
	h.wantCounted("c", len(h.logLines("c")))
}

func TestTerminalSurvives(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	st := h.params("tty", sh("trap 'seq 1001 2000; exit 7' TERM; seq 1 1000; while :; do sleep 0.02; done"), withTerminal)
	st.Terminal, st.Pod = true, "pod"
	task := h.start(st)
	h.eventually("counted", func() bool { return len(h.logLines("tty")) == 1000 })
	h.client.Close()
	h.kill9("shim.lock")
	h.kill9("logger.lock")
	f, err := procfd.Open(task.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	procfd.Signal(f, unix.SIGTERM)
	h.connect() // somebody must read the terminal, which holds only 4 KiB
	h.wantExit("tty", 7)
	lines := h.logLines("tty")
	if len(lines) != 2000 || strings.TrimSpace(lines[1999]) != "2000" {
		t.Errorf("%d lines, want 2000", len(lines))
	}
}

func TestStdinSurvives(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	st := h.params("cat", sh("cat; exit 9"))
	st.Pod, st.Stdin = "pod", true
	h.start(st)
	h.kill9("shim.lock")
	h.task("cat")
	s, err := h.client.Streams(context.Background(), "cat")
	if err != nil || s.Stdin == nil {
		t.Fatalf("streams: %+v %v", s, err)
	}
	defer s.Close()
	s.Stdin.WriteString("1\n")
	h.eventually("line is printed", func() bool { return len(h.logLines("cat")) == 1 })
}

// TestShimDiesAtEveryStep: the shim dies at each of its steps. The client gets one reply, and there
// is never more than one process.
func TestShimDiesAtEveryStep(t *testing.T) {
	for _, step := range []string{"shim.start.intent", "shim.start.runc", "shim.start.kept", "shim.start.started", "shim.exit.seen", "shim.exit.written",
		"shim.delete.kill", "shim.delete", "shim.delete.cleared"} {
		t.Run(step, func(t *testing.T) {
			dieAtStep(t, step, func(h *host) runtimeshim.Start {
				pod := h.params("pod", []string{"/bin/sleep", "1000000"})
				pod.Keeper = true
				return pod
			})
		})
	}
	for _, step := range []string{"shim.start.intent", "shim.place.cgroups", "shim.start.runc", "shim.start.kept", "shim.start.started", "shim.delete.cleared"} {
		t.Run("native, "+step, func(t *testing.T) { dieAtStep(t, step, func(h *host) runtimeshim.Start { return h.nativePod() }) })
	}
}

func dieAtStep(t *testing.T, step string, podOf func(*host) runtimeshim.Start) {
	t.Setenv("CRIBOX_TEST_KILL_AT", step)
	h := newHost(t)
	pod := podOf(h)
	if _, err := h.client.Start(context.Background(), pod); err != nil {
		if step != "shim.start.intent" && step != "shim.place.cgroups" || !errdefs.IsUnavailable(err) {
			t.Fatal(err)
		}
		h.start(pod)
	}
	if pod.Native {
		h.wantNative("pod")
	}
	st := h.params("c", counter)
	st.Pod = "pod"
	task := h.start(st)
	h.eventually("counted", func() bool { return len(h.logLines("c")) == 1000 })
	if procs := cgroup.Procs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "pod")); len(procs) != 1 {
		t.Errorf("processes of the pod: %v", procs)
	}
	h.finishCounter(task)
	h.wantExit("c", 7)
	h.wantCounted("c", 2000)
	ctx := context.Background()
	h.idle("d")
	for _, id := range []string{"c", "d"} {
		if err := h.client.Delete(ctx, id); err != nil {
			t.Error(err)
		}
		if got := h.task(id); got.ID != "" {
			t.Errorf("deleted task is %+v", got)
		}
	}
	if pod.Native {
		if err := h.client.Delete(ctx, "pod"); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.state, "killed-at-step")); err != nil {
		t.Errorf("step %s never came", step)
	}
}

// nativePod is a pod task that needs no runtime.
func (h *host) nativePod(opts ...specOption) runtimeshim.Start {
	st := h.params("pod", []string{"/bin/sleep", "1000000"}, append(opts, func(spec map[string]any) {
		process := spec["process"].(map[string]any)
		process["env"], process["noNewPrivileges"], process["capabilities"] = []string{"PATH=/bin", "HOME=/"}, true, map[string]any{}
		spec["mounts"] = spec["mounts"].([]map[string]any)[:2]
		spec["linux"].(map[string]any)["resources"] = map[string]any{"cpu": map[string]any{"shares": 2},
			"devices": []map[string]any{{"allow": false, "access": "rwm"}}}
	})...)
	st.Keeper, st.Native = true, true
	return st
}

// wantNative checks that the task runs and that no runtime knows of it.
func (h *host) wantNative(id string) {
	h.t.Helper()
	if got := h.task(id); got.State != runtimeshim.StateRunning {
		h.t.Errorf("task is %+v", got)
	}
	if exists(filepath.Join(h.state, "runc", id)) {
		h.t.Errorf("the runtime has started %s", id)
	}
}

// TestNativeFails: what cannot be started without the runtime is started by the runtime, and its
// error is the one returned.
func TestNativeFails(t *testing.T) {
	h := newHost(t)
	st := h.nativePod()
	st.Spec = bytes.Replace(st.Spec, []byte("/bin/sleep"), []byte("/bin/nothing"), 1)
	_, err := h.client.Start(context.Background(), st)
	if err == nil || !strings.Contains(err.Error(), "runc run") || !strings.Contains(err.Error(), "/bin/nothing") {
		t.Errorf("start: %v", err)
	}
	if raw, _ := os.ReadFile(filepath.Join(h.state, "shim.log")); !strings.Contains(string(raw), "execute: no such file or directory") {
		t.Errorf("the log does not name the step: %s", raw)
	}
	h.start(h.nativePod())
	h.wantNative("pod")
}

// TestNativeAndRuntime: pods of both kinds are taken over by the next shim, and are ended.
func TestNativeAndRuntime(t *testing.T) {
	h := newHost(t)
	native := h.start(h.nativePod())
	other := h.pod("other")
	h.kill9("shim.lock")
	for _, was := range []runtimeshim.Task{native, other} {
		if got := h.task(was.ID); got.State != runtimeshim.StateRunning || got.Pid != was.Pid {
			t.Errorf("task was %+v, is %+v", was, got)
		}
		must(t, h.client.Delete(t.Context(), was.ID))
		// It may be a zombie: its parent, the dead shim, had no time for it.
		if st, err := procfd.ReadStat(was.Pid); err == nil && st.State != 'Z' {
			t.Errorf("process %d of %s is in state %c", was.Pid, was.ID, st.State)
		}
	}
}

// slowRuntime returns a runtime that creates the file working, waits for the file word, and then
// runs the command.
func (h *host) slowRuntime(name string) (path, working, word string) {
	dir := filepath.Dir(h.state)
	path, working, word = filepath.Join(dir, name), filepath.Join(dir, name+".working"), filepath.Join(dir, name+".go")
	h.writeScript(path, fmt.Sprintf("case \"$*\" in *\" run \"*) echo > %s; while ! [ -e %s ]; do sleep 0.02; done;; esac\nexec %s \"$@\"\n", working, word, h.runc))
	return path, working, word
}

// writeScript writes a program while no fork is in progress: a forked child that has not executed
// yet would hold the file open for writing.
func (h *host) writeScript(path, script string) {
	h.t.Helper()
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		h.t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestShimDiesWhileTheRuntimeWorks(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	st := h.params("c", counter)
	var working, word string
	st.Pod = "pod"
	st.Runtime, working, word = h.slowRuntime("slow")
	var task runtimeshim.Task
	var err error
	started := make(chan struct{})
	go func() {
		defer close(started)
		task, err = h.client.Start(context.Background(), st)
	}()
	h.eventually("runtime works", func() bool { return exists(working) })
	h.kill9("shim.lock")
	if got := h.task("c"); got.State != runtimeshim.StateStarting {
		t.Errorf("task is %+v", got)
	}
	os.WriteFile(word, nil, 0o600)
	<-started
	if err != nil || task.State != runtimeshim.StateRunning {
		t.Fatalf("start over the death of the shim: %+v %v", task, err)
	}
	h.eventually("counted", func() bool { return len(h.logLines("c")) == 1000 })
	h.finishCounter(task)
	h.wantExit("c", 7)
	h.wantCounted("c", 2000)
}

func TestConnectRace(t *testing.T) {
	h := newHost(t)
	if err := h.client.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	clients := make([]*Client, 8)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			var err error
			if clients[i], err = h.tryConnect(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	pids := map[int]bool{}
	for _, c := range clients {
		if c == nil {
			continue
		}
		var v wire.Version
		if _, err := wire.Call(context.Background(), c.shim.sock, "version", struct{}{}, nil, &v); err != nil {
			t.Error(err)
		}
		pids[v.Pid] = true
		c.Close()
	}
	if len(pids) != 1 || !pids[h.lockPid("shim.lock")] {
		t.Errorf("shims: %v, the lock says %d", pids, h.lockPid("shim.lock"))
	}
}

func TestSlowShimIsNotReplaced(t *testing.T) {
	h := newHost(t)
	task := h.idle("c")
	pid := h.lockPid("shim.lock")
	unix.Kill(pid, unix.SIGSTOP)
	h.eventually("shim is stopped", func() bool {
		st, err := procfd.ReadStat(pid)
		return err == nil && st.State == 'T'
	})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := h.client.Tasks(ctx); !errdefs.IsUnavailable(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stopped shim: %v", err)
	}
	if c, err := Connect(ctx, h.client.c); !errdefs.IsUnavailable(err) {
		t.Errorf("connect to a stopped shim: %v %v", c, err)
	}
	unix.Kill(pid, unix.SIGCONT)
	if got := h.task("c"); got.Pid != task.Pid || h.lockPid("shim.lock") != pid {
		t.Errorf("task %+v, shim %d", got, h.lockPid("shim.lock"))
	}
}

func TestShutdown(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	if err := h.client.Shutdown(context.Background()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("shutdown with a task: %v", err)
	}
	h.kill9("shim.lock") // the shim is still restarted after the refused shutdown
	h.task("c")
	if err := h.client.Delete(context.Background(), "c"); err != nil {
		t.Error(err)
	}
	if err := h.client.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestDeleteIsIdempotent(t *testing.T) {
	h := newHost(t)
	ctx := context.Background()
	h.pod("pod")
	h.idle("c")
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if err := h.client.Delete(ctx, "c"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, id := range []string{"c", "never"} {
		if err := h.client.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if err := h.client.Release(ctx, "pod"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("release of a running task: %v", err)
	}
	if err := h.client.Release(ctx, "c"); !errdefs.IsNotFound(err) {
		t.Errorf("release of a deleted task: %v", err)
	}
}

// TestDeleteConverges: parts of a task are missing, and Delete removes the rest.
func TestDeleteConverges(t *testing.T) {
	h := newHost(t)
	for name, harm := range map[string]func(id string) error{
		"runc-state": func(id string) error { return os.RemoveAll(filepath.Join(h.state, "runc", id)) },
		"bundle":     func(id string) error { return os.RemoveAll(filepath.Join(h.state, "shim", id, "bundle")) },
		"folder":     func(id string) error { return os.RemoveAll(filepath.Join(h.state, "shim", id)) },
		"torn-record": func(id string) error {
			return os.WriteFile(filepath.Join(h.state, "shim", id, "task.json"), []byte("{"), 0o600)
		},
		"runtime": func(id string) error { return os.Remove(filepath.Join(filepath.Dir(h.state), id)) },
	} {
		for _, restart := range []bool{false, true} {
			id := fmt.Sprintf("%s-%v", name, restart)
			st := h.params(id, []string{"/bin/sleep", "1000000"})
			if name == "runtime" {
				st.Runtime = filepath.Join(filepath.Dir(h.state), id)
				if err := os.Symlink(h.runc, st.Runtime); err != nil {
					t.Fatal(err)
				}
			}
			h.start(st)
			if err := harm(id); err != nil {
				t.Fatal(err)
			}
			if restart {
				h.kill9("shim.lock")
			}
			if err := h.client.Delete(context.Background(), id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			if procs := cgroup.Procs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, id)); len(procs) > 0 && !(restart && name == "folder") {
				t.Errorf("%s: processes %v are left", id, procs)
			}
		}
	}
}

// TestSharedPidNamespace: a container in its pod's pid namespace leaves processes when it exits.
func TestSharedPidNamespace(t *testing.T) {
	h := newHost(t)
	pod := h.pod("pod")
	procs := func() []int { return cgroup.Procs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "c")) }
	st := h.params("c", sh("setsid sleep 1000000 & echo up; exit 3"), inPidNamespaceOf(pod.Pid))
	st.Pod = "pod"
	h.start(st)
	h.wantExit("c", 3)
	if len(procs()) == 0 {
		t.Error("the test wants a process to be left")
	}
	if err := h.client.Release(context.Background(), "c"); err != nil {
		t.Error(err)
	}
	if left := procs(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if got := h.task("c"); got.State != runtimeshim.StateExited || got.Exit.Code != 3 {
		t.Errorf("released task is %+v", got)
	}
	if got := h.task("pod"); got.State != runtimeshim.StateRunning {
		t.Errorf("pod is %+v", got)
	}
}

func TestKillAll(t *testing.T) {
	h := newHost(t)
	pod := h.pod("pod")
	st := h.params("c", sh("setsid sleep 1000000 & echo up; while :; do sleep 0.02; done"), inPidNamespaceOf(pod.Pid))
	h.start(st)
	h.eventually("up", func() bool { return len(h.logLines("c")) == 1 })
	if err := h.client.Kill(context.Background(), "c", unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	h.wantExit("c", 137)
	h.eventually("all are dead", func() bool {
		return len(cgroup.Procs(filepath.Join("/sys/fs/cgroup/pids", h.cgroup, "c"))) == 0
	})
}

func TestOOMKilled(t *testing.T) {
	h := newHost(t)
	limit := func(spec map[string]any) {
		spec["linux"].(map[string]any)["resources"] = map[string]any{"memory": map[string]any{"limit": 16 << 20}}
	}
	h.start(h.params("hog", sh("exec tr x y < /dev/zero | exec sort /dev/zero"), limit))
	if e := h.waitExit("hog"); !e.OOMKilled {
		t.Errorf("exit is %+v", e)
	}
	h.start(h.params("modest", sh("kill -9 $PPID; exit 137"), limit))
	if e := h.waitExit("modest"); e.OOMKilled || e.Code != 137 {
		t.Errorf("exit is %+v", e)
	}
}

// TestRuntimeFaults: a runtime that fails leaves only the folder of the task.
func TestRuntimeFaults(t *testing.T) {
	h := newHost(t)
	for name, script := range map[string]string{
		"fails":   `exit 3`,
		"crashes": `kill -SEGV $$`,
		"no-pid":  `exit 0`,
		"bad-pid": `while [ $# -gt 0 ]; do [ "$1" = --pid-file ] && echo 4000000 > "$2"; shift; done`,
		"no-log":  `echo '{"level":"error","msg":"it went wrong"}' > "$4"; exit 1`,
	} {
		st := h.params(name, []string{"/bin/true"})
		st.Runtime = filepath.Join(filepath.Dir(h.state), name)
		h.writeScript(st.Runtime, script+"\n")
		_, err := h.client.Start(context.Background(), st)
		if err == nil {
			t.Errorf("%s: started", name)
		}
		if name == "no-log" && !strings.Contains(err.Error(), "it went wrong") {
			t.Errorf("%s: %v", name, err)
		}
		if got := h.task(name); got.State != runtimeshim.StateCreated {
			t.Errorf("%s: task is %+v", name, got)
		}
	}
}

// TestRuntimeHangs: a runtime that exceeds its deadline is killed with everything it has started.
func TestRuntimeHangs(t *testing.T) {
	t.Setenv("CRIBOX_TEST_RUNTIME_WAIT", "300ms")
	h := newHost(t)
	st := h.params("c", []string{"/bin/true"})
	st.Runtime = filepath.Join(filepath.Dir(h.state), "hangs")
	mark := filepath.Join(filepath.Dir(h.state), "pids")
	h.writeScript(st.Runtime, fmt.Sprintf("case \"$*\" in *\" run \"*) ;; *) exec %s \"$@\";; esac\nsetsid sleep 1000000 & echo $! >> %s\necho $$ >> %s\nsleep 1000000\n", h.runc, mark, mark))
	if _, err := h.client.Start(context.Background(), st); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a runtime that hangs: %v", err)
	}
	raw, _ := os.ReadFile(mark)
	for pid := range strings.FieldsSeq(string(raw)) {
		h.eventually("process of the runtime is dead", func() bool {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	}
}

// TestShimDiesWhileTheRuntimeHangs: the shim dies while a runtime runs that never ends.
func TestShimDiesWhileTheRuntimeHangs(t *testing.T) {
	h := newHost(t)
	t.Setenv("CRIBOX_TEST_RUNTIME_WAIT", "300ms") // for the next shim
	st := h.params("c", counter)
	var working string
	st.Runtime, working, _ = h.slowRuntime("hangs")
	failed := make(chan error, 1)
	go func() {
		_, err := h.client.Start(context.Background(), st)
		failed <- err
	}()
	h.eventually("runtime works", func() bool { return exists(working) })
	h.kill9("shim.lock")
	if err := <-failed; !errdefs.IsUnavailable(err) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start: %v", err)
	}
	if got := h.task("c"); got.State != runtimeshim.StateCreated {
		t.Errorf("task is %+v", got)
	}
}

func TestSocketIsRemoved(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	pid := h.lockPid("shim.lock")
	os.Remove(filepath.Join(h.state, "shim.sock"))
	if got := h.task("c"); got.State != runtimeshim.StateRunning || h.lockPid("shim.lock") != pid {
		t.Errorf("task is %+v", got)
	}
}

// TestSocketsRemovedWhileRunning: somebody removes sockets and locks while shim and logger are alive.
// No second shim or logger is started.
func TestSocketsRemovedWhileRunning(t *testing.T) {
	h := newHost(t)
	task := h.idle("c")
	shim, logger := h.lockPid("shim.lock"), h.lockPid("logger.lock")
	h.client.Close()
	for _, name := range []string{"shim.sock", "shim.lock", "logger.sock", "logger.lock"} {
		if err := os.Remove(filepath.Join(h.state, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.connect()
	for lock, want := range map[string]int{"shim.lock": shim, "logger.lock": logger} {
		var v wire.Version
		sock := filepath.Join(h.state, strings.TrimSuffix(lock, "lock")+"sock")
		if _, err := wire.Call(context.Background(), sock, "version", struct{}{}, nil, &v); err != nil || v.Pid != want {
			t.Errorf("%s: %d answers (%v), want %d", sock, v.Pid, err, want)
		}
		// The end of this test reads the pid from it.
		if err := os.WriteFile(filepath.Join(h.state, lock), []byte(strconv.Itoa(want)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.task("c"); got.Pid != task.Pid {
		t.Errorf("the task is %+v, want %+v", got, task)
	}
}

func TestFullStateFolder(t *testing.T) {
	h := newHost(t)
	if err := h.client.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", h.state, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(h.state, unix.MNT_DETACH) })
	h.connect()
	h.pod("pod")
	task := h.startCounter("a", "pod")
	h.idle("b")
	fill := filepath.Join(h.state, "fill")
	os.WriteFile(fill, make([]byte, 4<<20), 0o600)
	if _, err := h.client.Start(context.Background(), h.params("late", []string{"/bin/true"})); err == nil {
		t.Error("a start on a full state folder")
	} else if !errdefs.IsResourceExhausted(err) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("start on a full state folder: %v", err)
	}
	h.finishCounter(task)
	h.wantExit("a", 7)
	for _, id := range []string{"a", "b", "late"} {
		if err := h.client.Delete(context.Background(), id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	if got := h.task("pod"); got.State != runtimeshim.StateRunning {
		t.Errorf("pod is %+v", got)
	}
	os.Remove(fill)
	if err := h.client.Delete(context.Background(), "pod"); err != nil {
		t.Error(err)
	}
	if err := h.client.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	unix.Unmount(h.state, unix.MNT_DETACH)
}

// TestDeleteFrozen: a frozen task can be deleted.
func TestDeleteFrozen(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	dir := filepath.Join("/sys/fs/cgroup/freezer", h.cgroup, "c")
	if !exists(dir) {
		t.Skip("no freezer (v1)")
	}
	cgroup.Freeze([]string{dir}, true)
	if err := h.client.Delete(context.Background(), "c"); err != nil {
		t.Error(err)
	}
}

// TestDaemonDies: a daemon that is killed during an exec takes that process with it, and nothing
// else.
func TestDaemonDies(t *testing.T) {
	h := newHost(t)
	h.startCounter("c", "")
	task := h.task("c")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	exe, _ := os.Executable()
	daemon := exec.Command(exe, "daemon", "--state", h.state)
	daemon.Env = append(os.Environ(), "CRIBOX_TEST_RUNC="+h.runc)
	daemon.Stdout, daemon.Stderr = w, os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "up\n" {
		t.Errorf("%q %v", line, err)
	}
	h.client.Close()
	daemon.Process.Kill()
	daemon.Wait()
	io.ReadAll(r) // EOF: the executed process is dead
	h.connect()
	h.wantNoExecFiles("c")
	if got := h.task("c"); got.State != runtimeshim.StateRunning || got.Pid != task.Pid {
		t.Errorf("task is %+v", got)
	}
	h.finishCounter(task)
	h.wantExit("c", 7)
	h.wantCounted("c", 2000)
}

// daemonMain executes a program in the task "c" that does not end.
func daemonMain(state string) error {
	c, err := Connect(context.Background(), Config{State: state})
	if err != nil {
		return err
	}
	raw, err := json.Marshal(process(sh("echo up; sleep 1000000")...))
	if err != nil {
		return err
	}
	_, err = c.Exec(context.Background(), runtimeshim.Exec{ID: "c", Runtime: os.Getenv("CRIBOX_TEST_RUNC"), Process: raw, Stdout: os.Stdout})
	return err
}

// TestShimLeavesWithTheMachine: the shim ends at the SIGTERM of a machine shutdown, so that the
// shutdown need not wait for it. Before that, SIGTERM has no effect.
func TestShimLeavesWithTheMachine(t *testing.T) {
	name := filepath.Join(t.TempDir(), "comm")
	t.Setenv("CRIBOX_TEST_INIT_NAME", name)
	first := func(says string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(says), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first("systemd\n")
	h := newHost(t)
	h.client.Close() // otherwise it starts another shim
	shim := h.lockPid("shim.lock")
	f, err := procfd.Open(shim)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	procfd.Signal(f, unix.SIGTERM)
	for range 3 {
		h.connect()
		h.client.Close()
	}
	if now := h.lockPid("shim.lock"); now != shim {
		t.Fatalf("shim %d ended at SIGTERM, and %d took its place", shim, now)
	}
	first("systemd-shutdow\n")
	procfd.Signal(f, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	if err := procfd.WaitDead(ctx, f); err != nil {
		t.Fatal(err)
	}
}

// TestStdinOnceSurvives: if the shim dies before a client has attached, the container's stdin stays
// open. If it dies after the first client got stdin, the container gets EOF when that client
// leaves.
func TestStdinOnceSurvives(t *testing.T) {
	h := newHost(t)
	h.pod("pod")
	for _, id := range []string{"before", "after"} {
		st := h.params(id, sh("cat; exit 9"))
		st.Pod, st.Stdin, st.StdinOnce = "pod", true, true
		h.start(st)
		if id == "before" {
			h.kill9("shim.lock")
			h.task(id)
		}
		s, err := h.client.Streams(context.Background(), id)
		if err != nil || s.Stdin == nil {
			t.Fatalf("%s: streams: %+v %v", id, s, err)
		}
		defer s.Close()
		s.Stdin.WriteString("1\n")
		h.eventually("line is printed", func() bool { return len(h.logLines(id)) == 1 })
		if id == "after" {
			h.kill9("shim.lock")
		}
		if got := h.task(id); got.State != runtimeshim.StateRunning {
			t.Errorf("%s: task is %+v", id, got)
		}
		again, err := h.client.Streams(context.Background(), id)
		if err != nil || again.Stdin != nil {
			t.Errorf("%s: a second client has stdin: %+v %v", id, again, err)
		}
		s.Close()
		h.wantExit(id, 9)
	}
}

// TestTerminalWhoseMasterIsGone: the shim dies while it starts a task with a terminal. If the
// terminal's master is lost, the start counts as failed, because nobody could read the output.
func TestTerminalWhoseMasterIsGone(t *testing.T) {
	for _, step := range []string{"shim.start.runc", "shim.start.kept"} {
		t.Run(step, func(t *testing.T) {
			t.Setenv("CRIBOX_TEST_KILL_AT", step)
			h := newHost(t)
			st := h.params("pod", []string{"/bin/sleep", "1000000"})
			st.Keeper, st.LogPath = true, ""
			if _, err := h.client.Start(context.Background(), st); err != nil {
				t.Fatal(err)
			}
			// The start of the pod has written this file; the next task is the one to test.
			must(t, os.Remove(filepath.Join(h.state, "killed-at-step")))
			h.kill9("shim.lock")
			st = h.params("tty", sh("seq 1 10; read x; exit 3"), withTerminal)
			st.Terminal, st.Pod = true, "pod"
			task, err := h.client.Start(context.Background(), st)
			if step == "shim.start.runc" {
				if !errdefs.IsUnavailable(err) {
					t.Fatalf("start: %+v %v", task, err)
				}
				if got := h.task("tty"); got.State != runtimeshim.StateCreated {
					t.Errorf("task is %+v", got)
				}
				if left := h.procs("tty"); len(left) != 0 {
					t.Errorf("processes are left: %v", left)
				}
				task, err = h.client.Start(context.Background(), st)
			}
			if err != nil || task.State != runtimeshim.StateRunning {
				t.Fatalf("start: %+v %v", task, err)
			}
			h.eventually("what it prints is in the log", func() bool { return len(h.logLines("tty")) >= 10 })
			h.typeLine("tty", "go\n")
			h.wantExit("tty", 3)
		})
	}
}

// mostLog is the size in bytes above which shim and logger truncate their logs.
const mostLog = 256 << 10

// TestLogsOfShimAndLoggerAreBounded: both truncate a large log when they write to it.
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
		st.LogLimit = runtimeshim.MinLogLimit // makes the logger log that the task's log is full
		h.start(st)
	})
	emptied("shim", func() {
		// This makes the shim log that the exit is not written.
		must(t, os.Mkdir(filepath.Join(h.state, "shim/c/exit"), 0o700))
		must(t, h.client.Kill(t.Context(), "c", unix.SIGKILL, false))
		h.wantExit("c", 137)
	})
}
