// Package client is the daemon's side: it finds the shim and the logger, starts them when they are
// dead, and sends them requests.
//
// It does not keep a list of tasks; the shim has that.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// Config says where the shim and the logger of an instance are, and how to start them.
type Config struct {
	State string // absolute path of the state folder, at most 90 bytes long
	// Executable is a program with the commands `shim --state DIR` and `logger --state DIR`; ""
	// means this program.
	Executable string
	LogLevel   string // log level of both, when we start them; "" = their default

	// Scope returns the name of the systemd scope into which the peer, "shim" or "logger", is
	// moved, out of the unit of the process that started it. Two state folders must not use the
	// same name. nil = it stays in that unit.
	Scope func(peer string) string

	// OnExit is called, by one goroutine, once per exited task and Client. That includes exits
	// while no client watched, because every watch begins with a snapshot. By then the log has all
	// output of the task, unless it cannot be written. A slow OnExit delays only later calls of
	// OnExit.
	OnExit func(runtimeshim.Task)

	Step step.Hook // called at the steps listed in package runtimeshim; nil = none
}

// Deadlines of calls. They are longer than the shim's own deadlines for what it executes.
var (
	connectWait = 10 * time.Second // until shim and logger reply
	startLimit  = wire.StartWait + wire.DeleteWait + 30*time.Second
	deleteLimit = wire.DeathWait + wire.DeleteWait + 20*time.Second
	updateLimit = 3*wire.UpdateWait + 30*time.Second
	quickLimit  = 10 * time.Second // for calls that execute nothing
	// finishLimit is the time after which an exit is reported even if its log is not complete.
	finishLimit = 10 * time.Second
)

// Client sends requests to the shim and the logger of one instance, and restarts them when they
// die. Its methods may be called concurrently. ErrUnavailable means that the shim (or logger) does
// not answer now; it says nothing about the task.
type Client struct {
	c      Config
	state  statedir.Root
	shim   *peer
	logger *peer

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	told  map[string]bool // ids of tasks whose exit is delivered or about to be
	late  map[string]bool // ids of tasks whose log was not complete in time
	exits []runtimeshim.Task
	more  chan struct{}
}

// Connect finds the shim and the logger of c.State, or starts them. Several clients may connect at
// once; only one shim and one logger will run. A peer that is alive but does not answer is never
// replaced: Connect then returns ErrUnavailable.
func Connect(ctx context.Context, c Config) (*Client, error) {
	if !filepath.IsAbs(c.State) || len(c.State) > 90 {
		return nil, fmt.Errorf("state folder %q is not an absolute path of at most 90 bytes: %w",
			c.State, errdefs.ErrInvalidArgument)
	}
	if c.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		c.Executable = exe
	}
	d := statedir.Root(filepath.Clean(c.State))
	for _, name := range []string{string(d), d.Tasks(), d.RuncRoot(), d.Gone()} {
		if err := os.MkdirAll(name, 0o700); err != nil {
			return nil, fmt.Errorf("make state folder: %w", err)
		}
	}
	k := &Client{c: c, state: d, told: map[string]bool{}, late: map[string]bool{}, more: make(chan struct{}, 1),
		shim:   newPeer("shim", c, d.ShimSock(), d.ShimLock(), d.ShimHome(), d.ShimLog()),
		logger: newPeer("logger", c, d.LoggerSock(), d.LoggerLock(), d.LoggerHome(), d.LoggerLog())}
	// a logger may be replaced at any time, a shim may not
	k.logger.build = helper.BuildOf(c.Executable)
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := k.connect(ctx); err != nil {
		k.cancel()
		return nil, err
	}
	k.work.Go(k.deliver)
	k.work.Go(k.watch)
	return k, nil
}

// connect finds or starts both peers, concurrently, and from then on restarts them when they die.
func (k *Client) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	errs := make([]error, 2)
	var both sync.WaitGroup
	for i, p := range []*peer{k.logger, k.shim} {
		both.Go(func() {
			errs[i] = guard.Call(ctx, "the start of the "+p.name, func() error {
				pidfd, err := p.ensure(ctx)
				if err == nil {
					k.work.Go(func() { p.keep(k.ctx, pidfd) })
				}
				return err
			})
		})
	}
	both.Wait()
	return errors.Join(errs...)
}

// Close ends the client. Shim, logger and tasks keep running.
func (k *Client) Close() error {
	k.cancel()
	k.work.Wait()
	return nil
}

// Shutdown ends shim, logger and the client. While there is any task, even an exited one, it ends
// none of them and returns ErrFailedPrecondition.
func (k *Client) Shutdown(ctx context.Context) error {
	k.shim.leave(true)
	k.logger.leave(true)
	if err := k.askShim(ctx, quickLimit, "quit", struct{}{}, nil); err != nil {
		k.shim.leave(false)
		k.logger.leave(false)
		return fmt.Errorf("end the shim: %w", err)
	}
	err := k.askLogger(ctx, quickLimit, "quit", wire.LoggerTask{})
	k.Close()
	ctx, cancel := context.WithTimeout(ctx, quickLimit)
	defer cancel()
	return errors.Join(err, k.shim.waitGone(ctx), k.logger.waitGone(ctx))
}

// Start runs a task. It returns once the task's first process executes its program. On error only
// the task's folder is left, which Delete removes; the error contains the last error that the
// runtime logged. ErrInvalidArgument: the program cannot be executed; ErrAlreadyExists: there is a
// task with that id. When ctx is cancelled, the start still runs to its end, within a limit of its
// own, and its result is returned.
func (k *Client) Start(ctx context.Context, st runtimeshim.Start) (runtimeshim.Task, error) {
	ctx = context.WithoutCancel(ctx)
	if err := statedir.CheckID(st.ID); err != nil {
		return runtimeshim.Task{}, err
	}
	d := k.state.Task(st.ID)
	if _, err := os.Lstat(d.Record()); err == nil {
		return runtimeshim.Task{}, fmt.Errorf("start task %s: it already has a record: %w", st.ID, errdefs.ErrAlreadyExists)
	}
	if st.LogLimit != 0 && st.LogLimit < runtimeshim.MinLogLimit {
		return runtimeshim.Task{}, fmt.Errorf("start task %s: log limit %d is below %d: %w",
			st.ID, st.LogLimit, runtimeshim.MinLogLimit, errdefs.ErrInvalidArgument)
	}
	k.c.Step.Pass("client.start.intent")
	if err := prepare(d, st); err != nil {
		return runtimeshim.Task{}, fmt.Errorf("prepare task %s: %w", st.ID, err)
	}
	k.c.Step.Pass("client.start.folder")
	if err := k.askLogger(ctx, quickLimit, "open", wire.LoggerTask{ID: st.ID}); err != nil {
		return runtimeshim.Task{}, fmt.Errorf("open the log of task %s: %w", st.ID, err)
	}
	k.c.Step.Pass("client.start.log")
	k.mu.Lock()
	delete(k.told, st.ID)
	delete(k.late, st.ID)
	k.mu.Unlock()
	t, never, err := k.startTask(ctx, st)
	k.c.Step.Pass("client.start.done")
	// After other errors the task may be running.
	if never || err != nil && !errdefs.IsAlreadyExists(err) && !errdefs.IsUnavailable(err) {
		k.finishLog(ctx, st.ID)
	}
	return t, err
}

// prepare creates the task folder, or resets that of an earlier failed start.
func prepare(d statedir.Task, st runtimeshim.Start) error {
	if err := os.MkdirAll(d.Bundle(), 0o700); err != nil {
		return err
	}
	if err := placeSpec(d.Config(), st); err != nil {
		return err
	}
	// No task ran here: remove what a failed start left of a log.
	if _, err := os.Stat(d.Exit()); errors.Is(err, os.ErrNotExist) {
		for _, name := range []string{"progress", "stdout.spool", "stderr.spool"} {
			if err := os.Remove(d.At(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	label, err := mountLabel(st.Spec)
	if err != nil {
		return err
	}
	for _, name := range []string{d.Stdout(), d.Stderr()} {
		if err := unix.Mkfifo(name, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make FIFO %s: %w", name, err)
		}
		if err := os.Lchown(name, st.OwnerUID, st.OwnerGID); err != nil {
			return err
		}
		if label == "" {
			continue
		}
		if err := unix.Lsetxattr(name, "security.selinux", []byte(label), 0); err != nil {
			return fmt.Errorf("label FIFO %s: %w", name, err)
		}
	}
	return statedir.WriteJSON(d.Log(), statedir.LogRecord{Format: statedir.Format, Path: st.LogPath, Limit: st.LogLimit,
		Terminal: st.Terminal, Start: time.Now().UnixNano()})
}

// placeSpec creates the bundle's config.json. It removes an existing one first: that may be a link
// to the caller's file and must not be written to.
func placeSpec(name string, st runtimeshim.Start) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if st.SpecFile != "" && os.Link(st.SpecFile, name) == nil {
		return nil
	}
	return os.WriteFile(name, st.Spec, 0o600)
}

// mountLabel returns the SELinux label of a task's files (linux.mountLabel of its spec), which its
// streams get too; "" if there is none.
func mountLabel(spec []byte) (string, error) {
	if !bytes.Contains(spec, []byte(`"mountLabel"`)) {
		return "", nil
	}
	var s struct {
		Linux struct {
			MountLabel string `json:"mountLabel"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return "", fmt.Errorf("config.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return s.Linux.MountLabel, nil
}

// startTask sends the request to the shim. If the shim dies meanwhile, it asks the next shim for
// the result; never means that the task was not started.
func (k *Client) startTask(ctx context.Context, st runtimeshim.Start) (t runtimeshim.Task, never bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p := statedir.Params{ID: st.ID, Pod: st.Pod, Runtime: st.Runtime, Terminal: st.Terminal, Stdin: st.Stdin,
		StdinOnce: st.StdinOnce, OOMFile: st.OOMFile, LockFile: st.LockFile, Keeper: st.Keeper,
		OwnerUID: st.OwnerUID, OwnerGID: st.OwnerGID, Systemd: st.SystemdCgroup, Native: st.Native,
		NativeExec: st.NativeExec}
	err = k.ask(ctx, k.shim, "start", p, &t, false)
	if t.RuntimeTook > 0 {
		telemetry.Took(ctx, "runtime.run", t.RuntimeBegan, t.RuntimeTook)
	}
	if !errors.Is(err, wire.ErrBroken) {
		return t, false, err
	}
	err = k.ask(ctx, k.shim, "settle", wire.Task{ID: st.ID}, &t, true)
	if errdefs.IsNotFound(err) {
		return t, true, fmt.Errorf("start task %s: the shim died: %w", st.ID, errdefs.ErrUnavailable)
	}
	return t, false, err
}

// Kill sends a signal to a task's first process; with all, to every process in its cgroup too.
// ErrNotFound when no process received it.
func (k *Client) Kill(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	if err := statedir.CheckID(id); err != nil {
		return err
	}
	k.c.Step.Pass("client.kill")
	return k.askShim(ctx, quickLimit, "kill", wire.Kill{ID: id, Signal: int(sig), All: all}, nil)
}

// Release removes an exited task from the runtime and the cgroups. Its exit status and log stay
// until Delete. ErrFailedPrecondition while it runs.
func (k *Client) Release(ctx context.Context, id string) error {
	if err := statedir.CheckID(id); err != nil {
		return err
	}
	k.finishLog(ctx, id)
	k.c.Step.Pass("client.release")
	return k.askShim(ctx, deleteLimit, "release", wire.Task{ID: id}, nil)
}

// Delete kills a task if it is running and removes everything of it. It returns nil if there is no
// such task. After an error it may be called again, and continues.
func (k *Client) Delete(ctx context.Context, id string) error {
	if err := statedir.CheckID(id); err != nil {
		return err
	}
	k.c.Step.Pass("client.delete")
	d := k.state.Task(id)
	if _, err := os.Lstat(string(d)); err == nil {
		// The processes must die first: while they print, the log is never complete.
		if err := k.askShim(ctx, deleteLimit, "end", wire.Task{ID: id}, nil); err != nil {
			return err
		}
		k.finishLog(ctx, id)
	}
	if err := k.askShim(ctx, deleteLimit, "delete", wire.Task{ID: id}, nil); err != nil {
		return err
	}
	k.mu.Lock()
	delete(k.told, id)
	delete(k.late, id)
	k.mu.Unlock()
	return nil
}

// Update changes the limits of a running task. On error the old limits are restored.
// ErrFailedPrecondition: there is no such task, it is not running, or the kernel rejects the values
// for this task (less memory than is in use, CPUs that the parent does not have).
// ErrInvalidArgument: the kernel would reject them for any task. When ctx is cancelled, the update
// still runs to its end, within a limit of its own. If the shim dies during an update, the next
// shim does it again.
func (k *Client) Update(ctx context.Context, u runtimeshim.Update) error {
	if err := statedir.CheckID(u.ID); err != nil {
		return err
	}
	k.c.Step.Pass("client.update")
	b := wire.Update{ID: u.ID, Resources: u.Resources, Previous: u.Previous, OOMScoreAdj: u.OOMScoreAdj,
		LockFile: u.LockFile}
	return k.askShim(context.WithoutCancel(ctx), updateLimit, "update", b, nil)
}

// finishLog waits until all output of an exited task is in its log, but not longer than a limit:
// the logger continues to try, and the exit is reported without it. A log that has exceeded the
// limit once gets only a second from then on.
func (k *Client) finishLog(ctx context.Context, id string) {
	k.mu.Lock()
	limit := finishLimit
	if k.late[id] {
		limit = time.Second
	}
	k.mu.Unlock()
	var rec statedir.LogRecord
	// Without a record there is nothing to finish; the logger finds that out.
	_ = statedir.ReadJSON(k.state.Task(id).Log(), &rec)
	if k.askLogger(ctx, limit, "finish", wire.LoggerTask{ID: id, Start: rec.Start}) != nil && k.ctx.Err() == nil {
		k.mu.Lock()
		k.late[id] = true
		k.mu.Unlock()
	}
}

// Tasks returns every task, and every task folder that is not started, sorted by id.
func (k *Client) Tasks(ctx context.Context) ([]runtimeshim.Task, error) {
	var all []runtimeshim.Task
	err := k.askShim(ctx, quickLimit, "tasks", struct{}{}, &all)
	return all, err
}

// Task returns one task, as Tasks does. ErrNotFound: there is none. A shim of an earlier version
// lists all tasks for it.
func (k *Client) Task(ctx context.Context, id string) (runtimeshim.Task, error) {
	if err := statedir.CheckID(id); err != nil {
		return runtimeshim.Task{}, err
	}
	var t runtimeshim.Task
	err := k.askShim(ctx, quickLimit, "task", wire.Task{ID: id}, &t)
	if !errors.Is(err, errdefs.ErrNotImplemented) {
		return t, err
	}
	all, err := k.Tasks(ctx)
	if err != nil {
		return runtimeshim.Task{}, err
	}
	if i := slices.IndexFunc(all, func(t runtimeshim.Task) bool { return t.ID == id }); i >= 0 {
		return all[i], nil
	}
	return runtimeshim.Task{}, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
}

// Ping returns nil if the shim answers requests.
func (k *Client) Ping(ctx context.Context) error {
	return k.askShim(ctx, quickLimit, "version", struct{}{}, nil)
}

// ReopenLog makes the logger continue in a new file at the task's log path, after the caller has
// renamed the old one. On error there is no new file.
func (k *Client) ReopenLog(ctx context.Context, id string) error {
	if err := statedir.CheckID(id); err != nil {
		return err
	}
	return k.askLogger(ctx, quickLimit, "reopen", wire.LoggerTask{ID: id})
}

// askShim sends a request that may be repeated if the shim dies during it.
func (k *Client) askShim(ctx context.Context, limit time.Duration, verb string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return k.ask(ctx, k.shim, verb, body, out, true)
}

func (k *Client) askLogger(ctx context.Context, limit time.Duration, verb string, body wire.LoggerTask) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return k.ask(ctx, k.logger, verb, body, nil, true)
}

// ask sends one request without descriptors. While nobody listens it waits until keep has restarted
// the peer. If the connection breaks, it repeats the request only if repeat is set.
func (k *Client) ask(ctx context.Context, p *peer, verb string, body, out any, repeat bool) error {
	return telemetry.Part(ctx, p.name+"."+verb, func(ctx context.Context) error {
		for {
			err := k.whileNobody(ctx, p, verb, func() error {
				_, err := p.call(ctx, verb, body, out)
				return err
			})
			if !repeat || !errors.Is(err, wire.ErrBroken) || ctx.Err() != nil {
				return slow(ctx, p, verb, err)
			}
		}
	})
}

// whileNobody repeats a call while nobody listens, which is safe because the call has had no
// effect. It stops once keep has restarted the peer, or after quickLimit.
func (k *Client) whileNobody(ctx context.Context, p *peer, verb string, try func() error) error {
	for began := time.Now(); ; {
		err := try()
		if !errors.Is(err, wire.ErrNobody) || time.Since(began) > quickLimit {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ask the %s for %s: %w", p.name, verb, err)
		case <-k.ctx.Done():
			return fmt.Errorf("ask the %s for %s: client is closed: %w", p.name, verb, errdefs.ErrUnavailable)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// slow adds to the error of a call that exceeded its deadline which peer did not answer.
func slow(ctx context.Context, p *peer, verb string, err error) error {
	if err == nil || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the %s did not answer %s in time: %w (%w)", p.name, verb, errdefs.ErrUnavailable, err)
	}
	return fmt.Errorf("ask the %s for %s: %w", p.name, verb, err)
}

// logText returns the last 1024 bytes of a peer's own log, for an error message.
func logText(name string) string {
	raw, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw[max(0, len(raw)-1024):]))
}
