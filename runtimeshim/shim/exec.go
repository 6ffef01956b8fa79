package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// execGrace is the time that a runtime has, after its caller is gone, to write the pid of the
// process it is starting. That process is then killed.
const execGrace = time.Second

// execs runs additional processes in running tasks.
type execs struct {
	env
	table  *table
	driver *oci.Driver
	reaper *procfd.Reaper

	filters *filters
	counter atomic.Uint64
}

// exec runs a process in a running task and replies when it has ended. When the caller disconnects,
// the process group of the process is killed.
func (x *execs) exec(ctx context.Context, in *wire.Inbound) (any, error) {
	var b wire.Exec
	if err := in.Decode(&b); err != nil {
		return nil, err
	}
	if err := x.checkLockFile(b.LockFile); err != nil {
		return nil, err
	}
	t, err := x.table.runningTask(b.ID)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("execute in task %s: no such task: %w", b.ID, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	if b.Session {
		leave, err := x.table.enterSession(t)
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	e := &execution{x: x, t: t, body: b, name: t.dir.At(fmt.Sprintf("exec-%d-%d", os.Getpid(), x.counter.Add(1)))}
	defer e.cleanup()
	release := x.reaper.Hold()
	defer release()
	proc, tty, err := e.begin(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("execute in task %s: %w", b.ID, err)
	}
	release()
	if proc.Pidfd != nil {
		defer proc.Pidfd.Close()
	}
	err = in.Send(wire.ExecStarted{Pid: proc.Pid}, tty...)
	unixfd.CloseAll(tty)
	// The process has its own copies; readers must not wait for ours to be closed.
	unixfd.CloseAll(in.Files)
	in.Files = nil
	if err == nil {
		select {
		case ws := <-proc.Done:
			return wire.ExecDone{Code: procfd.ExitCode(ws)}, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return nil, errors.Join(err, e.kill(proc))
}

// mostSessions is the maximum number of open sessions in a task. Clients that leave sessions open
// would otherwise use up the node's memory and pids. What the kubelet runs (probes, hooks) does not
// count, so that clients cannot make a probe fail.
const mostSessions = 256

// enterSession counts a session of a task until leave is called. ErrResourceExhausted at the limit.
func (tab *table) enterSession(t *task) (leave func(), err error) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if t.sessions >= mostSessions {
		return nil, fmt.Errorf("execute in task %s: %d sessions are already open, close some of them: %w",
			t.rec.ID, t.sessions, errdefs.ErrResourceExhausted)
	}
	t.sessions++
	return func() {
		tab.mu.Lock()
		defer tab.mu.Unlock()
		t.sessions--
	}, nil
}

func (tab *table) runningTask(id string) (*task, error) {
	t, err := tab.find(id)
	if err != nil {
		return nil, err
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if v := t.view(); v.State != runtimeshim.StateRunning {
		return nil, fmt.Errorf("task %s is %s: %w", id, v.State, errdefs.ErrFailedPrecondition)
	}
	return t, nil
}

// execution is one exec in progress; name is the path prefix of its files.
type execution struct {
	x    *execs
	t    *task
	body wire.Exec
	name string
}

func (e *execution) processFile() string { return e.name + ".json" }
func (e *execution) pidFile() string     { return e.name + ".pid" }
func (e *execution) logFile() string     { return e.name + ".log" }

func (e *execution) cleanup() {
	for _, f := range []string{e.processFile(), e.pidFile(), e.logFile()} {
		os.Remove(f)
	}
}

// begin executes the runtime and returns the new process, and a list of at most one file: the
// master of its terminal.
func (e *execution) begin(ctx context.Context, in *wire.Inbound) (procfd.Child, []*os.File, error) {
	path := e.body.LockFile
	if path == "" {
		path = e.t.lockFile()
	}
	lock, err := e.x.driver.LockShared(ctx, path)
	if err != nil {
		return procfd.Child{}, nil, err
	}
	defer lock.Close()
	if proc, placed, err := e.place(ctx, in, lock); placed || err != nil {
		return proc, nil, err
	}
	if err := os.WriteFile(e.processFile(), e.body.Process, 0o600); err != nil {
		return procfd.Child{}, nil, err
	}
	c := oci.Command{Runtime: e.body.Runtime, Systemd: e.t.rec.Systemd, Log: e.logFile(), Wait: wire.StartWait,
		Grace: execGrace, Extra: []*os.File{lock},
		Args: []string{"exec", "--detach", "--process", e.processFile(), "--pid-file", e.pidFile(), e.t.rec.ID}}
	c.Stdio = e.stdio(in)
	e.x.step.Pass("shim.exec.intent")
	var tty []*os.File
	if e.body.Terminal {
		var master *os.File
		master, err = e.x.driver.RunWithConsole(ctx, c)
		tty = append(tty, master)
	} else {
		err = e.x.driver.Run(ctx, c)
	}
	// The runtime has read it; only the file name is needed, by a later shim.
	_ = os.Truncate(e.processFile(), 0)
	if err != nil {
		return procfd.Child{}, nil, errors.Join(err, e.undo())
	}
	e.x.step.Pass("shim.exec.runc")
	proc, err := e.claim()
	if err != nil {
		unixfd.CloseAll(tty)
	}
	return proc, tty, err
}

// stdio returns the caller's ends of the streams, nil for those that it does not have.
func (e *execution) stdio(in *wire.Inbound) (files [3]*os.File) {
	got := in.Files
	for i, have := range e.body.Have {
		if have && len(got) > 0 {
			files[i], got = got[0], got[1:]
		}
	}
	return files
}

// undo kills the process of a failed exec, if there is one: the runtime may have started it before
// the runtime itself was killed.
func (e *execution) undo() error {
	proc, err := e.claim()
	if procfd.Gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("one of its processes may still run: %w", err)
	}
	if proc.Pidfd != nil {
		defer proc.Pidfd.Close()
	}
	return e.kill(proc)
}

// claim claims the process in the runtime's pid file; the caller must have a Hold. It retries while
// the pid file is unreadable, because otherwise nothing would wait for the process.
func (e *execution) claim() (procfd.Child, error) {
	for tries := 0; ; tries++ {
		pid, err := oci.ReadPid(e.pidFile())
		if err == nil {
			return e.x.reaper.Claim(pid)
		}
		if procfd.Gone(err) || errdefs.IsDataLoss(err) || tries == 50 {
			return procfd.Child{}, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill kills the process group of the process, which leads it because the runtime gives it a
// session of its own.
func (e *execution) kill(proc procfd.Child) error {
	e.x.reaper.KillGroup(proc.Pid)
	if proc.Pidfd != nil {
		_ = procfd.Signal(proc.Pidfd, unix.SIGKILL)
	}
	select {
	case <-proc.Done:
		return nil
	case <-time.After(wire.KilledWait):
		return fmt.Errorf("process %d did not exit after SIGKILL", proc.Pid)
	}
}
