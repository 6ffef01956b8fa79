package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	deathWait = 10 * time.Second       // a task may take so long to end after SIGKILL
	thawWait  = 200 * time.Millisecond // and then it may be frozen
)

// delete ends a task and removes everything of it. Idempotent, and it goes on
// where an earlier one stopped.
func (s *shim) delete(ctx context.Context, id string) error {
	t, err := s.lock(ctx, id)
	if errdefs.IsNotFound(err) {
		return s.deleteFolder(ctx, id)
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	if err := s.end(ctx, t); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	if err := s.clear(ctx, t); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	s.step("shim.delete.cleared")
	s.forget(t)
	if err := s.removeFolder(t.dir); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	return nil
}

// removeFolder moves a task's folder out of the way before it is emptied: a
// logger that has just heard of the task finds nothing by that path any more,
// and cannot put a file where one was counted on to be empty.
func (s *shim) removeFolder(d taskDir) error {
	out := filepath.Join(s.state.gone(), d.id())
	err := errors.Join(os.MkdirAll(s.state.gone(), 0o700), os.RemoveAll(out))
	if err != nil {
		return err
	}
	if err := os.Rename(string(d), out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(out)
}

// deleteFolder removes what has no entry in the table: a folder that never
// became a task or whose record is not readable, a runtime's state without a
// folder, or nothing.
func (s *shim) deleteFolder(ctx context.Context, id string) error {
	t, err := s.insert(taskRecord{Format: recordFormat, taskParams: taskParams{ID: id}, State: stateCreated})
	if errdefs.IsAlreadyExists(err) {
		return s.delete(ctx, id)
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	defer s.forget(t)
	if err := s.clear(ctx, t); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	return s.removeFolder(t.dir)
}

// release removes what the runtime and the kernel have of an exited task.
// Folder, exit status and logs stay. ErrFailedPrecondition while it runs.
func (s *shim) release(ctx context.Context, id string) error {
	t, err := s.lock(ctx, id)
	if err != nil {
		return err
	}
	defer t.unlock()
	s.mu.Lock()
	running, unknown := t.exit == nil, t.unknown
	s.mu.Unlock()
	if running && unknown {
		return fmt.Errorf("release task %s: it cannot be read now: %w", id, errdefs.ErrUnavailable)
	}
	if running {
		return fmt.Errorf("release task %s: it is running: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := s.clear(ctx, t); err != nil {
		return fmt.Errorf("release task %s: %w", id, err)
	}
	s.letGo(t)
	return nil
}

// endTask kills a task with all that is left in its cgroup, and returns when
// its exit is written. No such task = nil.
func (s *shim) endTask(ctx context.Context, id string) error {
	t, err := s.lock(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	if err := s.end(ctx, t); err != nil {
		return fmt.Errorf("end task %s: %w", id, err)
	}
	if t.rec.Released {
		return nil
	}
	dirs, err := s.cgroupsOf(t.dir, 0)
	signalCgroups(dirs, unix.SIGKILL)
	return err
}

// end kills the task's process and waits until its exit is written.
// DeadlineExceeded when it does not die.
func (s *shim) end(ctx context.Context, t *task) error {
	s.mu.Lock()
	done, pidfd := t.exit != nil || t.rec.State != stateRunning, t.pidfd
	unseen := t.unknown && pidfd == nil
	s.mu.Unlock()
	if done {
		return nil
	}
	if unseen { // nobody waits for it: what is in its cgroup goes
		dirs, err := s.cgroupsOf(t.dir, 0)
		signalCgroups(dirs, unix.SIGKILL)
		return err
	}
	s.step("shim.delete.kill")
	s.markOOM(t)
	if pidfd != nil {
		_ = signalPidfd(pidfd, unix.SIGKILL)
	}
	select {
	case <-t.exited:
		return nil
	case <-time.After(thawWait):
		dirs, _ := s.cgroupsOf(t.dir, t.livePid())
		freezeCgroups(dirs, false) // a frozen process does not die (v1)
	}
	select {
	case <-t.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(deathWait):
		return fmt.Errorf("process %d does not die: %w", t.rec.Pid, context.DeadlineExceeded)
	}
}

// clear makes the runtime, and the cgroup file systems, forget a task: what is
// left in its cgroups is killed. Idempotent; works without the runtime's
// binary or its state. Afterwards the record says released.
func (s *shim) clear(ctx context.Context, t *task) error {
	if t.rec.Released {
		return nil
	}
	home := filepath.Join(s.state.runcRoot(), t.rec.ID)
	dirs, err := s.cgroupsOf(t.dir, t.livePid())
	if err != nil {
		return err
	}
	var failed error
	if _, err := os.Lstat(home); !errors.Is(err, os.ErrNotExist) && t.rec.Runtime != "" {
		s.step("shim.delete")
		failed = s.runDelete(ctx, t)
	}
	// The runtime's own success is not taken for it: a container that shares
	// its pid namespace, or one whose state was never written, leaves processes.
	sweep, cancel := context.WithTimeout(ctx, deathWait)
	defer cancel()
	if err := removeCgroups(sweep, dirs); err != nil {
		return errors.Join(err, failed)
	}
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	s.mu.Lock()
	t.rec.Released = true
	s.mu.Unlock()
	if t.rec.State == stateRunning {
		// A full disk does not stop it: the next clear finds nothing to do.
		_ = writeJSON(t.dir.record(), t.rec)
	}
	return nil
}

// runDelete executes the runtime's delete. By force only if it must: runc then
// sleeps 100 ms before it looks whether the process has ended.
func (s *shim) runDelete(ctx context.Context, t *task) error {
	c := ociCommand{runtime: t.rec.Runtime, systemd: t.rec.Systemd, log: t.dir.runtimeLog(), wait: deleteWait, args: []string{"delete", t.rec.ID}}
	s.mu.Lock()
	ended := t.exit != nil
	s.mu.Unlock()
	if ended && s.runQuietly(ctx, c) == nil {
		return nil
	}
	c.args = []string{"delete", "--force", t.rec.ID}
	return s.runQuietly(ctx, c)
}

// livePid is the number of the task's process if that is still its own.
func (t *task) livePid() int {
	if t.pidfd == nil {
		return 0
	}
	pid, err := pidfdPid(t.pidfd)
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

// kill sends a signal to a task's process, and with All to everything in its
// cgroup. ErrNotFound when nobody was there to get it.
func (s *shim) kill(_ context.Context, in *inbound) (any, error) {
	var b killBody
	if err := in.decode(&b); err != nil {
		return nil, err
	}
	if b.Signal < 1 || b.Signal > 64 {
		return nil, fmt.Errorf("signal %d: %w", b.Signal, errdefs.ErrInvalidArgument)
	}
	t, err := s.find(b.ID)
	if err != nil {
		return nil, err
	}
	if unix.Signal(b.Signal) == unix.SIGKILL {
		s.markOOM(t)
	}
	s.mu.Lock()
	running, err := t.exit == nil && t.pidfd != nil, error(unix.ESRCH)
	if running {
		err = signalPidfd(t.pidfd, unix.Signal(b.Signal))
	}
	pid, unseen := t.livePid(), t.unknown && t.exit == nil && !running
	s.mu.Unlock()
	if unseen && !b.All {
		return nil, fmt.Errorf("send signal %d to task %s: it cannot be read now: %w", b.Signal, b.ID, errdefs.ErrUnavailable)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("send signal %d to task %s: %w", b.Signal, b.ID, err)
	}
	reached := err == nil
	if b.All {
		dirs, err := s.cgroupsOf(t.dir, pid)
		if err != nil {
			return nil, fmt.Errorf("send signal %d to all of task %s: %w", b.Signal, b.ID, err)
		}
		reached = signalCgroups(dirs, unix.Signal(b.Signal)) > 0 || reached
	}
	if !reached {
		return nil, fmt.Errorf("process of task %s: %w", b.ID, errdefs.ErrNotFound)
	}
	return nil, nil
}
