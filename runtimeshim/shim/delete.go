package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// thawWait: a task that is still alive after this time since SIGKILL may be frozen.
const thawWait = 200 * time.Millisecond

// remover ends tasks and removes them from the runtime, the cgroups and the table.
type remover struct {
	env
	table    *table
	holder   *holder
	reporter *reporter
	driver   *oci.Driver
	cgroups  *cgroup.Finder
}

// delete ends a task and removes everything of it. It is idempotent and continues where an earlier
// call stopped.
func (r *remover) delete(ctx context.Context, id string) error {
	t, err := r.table.lock(ctx, id)
	if errdefs.IsNotFound(err) {
		return r.deleteFolder(ctx, id)
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	if err := r.end(ctx, t); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	if err := r.clear(ctx, t); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	r.step.Pass("shim.delete.cleared")
	r.holder.forget(t)
	if err := r.removeFolder(t.dir); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	return nil
}

// removeFolder renames a task's folder before it removes the content: then a logger that has just
// received the task's id finds nothing at the old path, and cannot create files in a folder that is
// being emptied.
func (r *remover) removeFolder(d statedir.Task) error {
	out := filepath.Join(r.state.Gone(), d.ID())
	err := errors.Join(os.MkdirAll(r.state.Gone(), 0o700), os.RemoveAll(out))
	if err != nil {
		return err
	}
	if err := os.Rename(string(d), out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(out)
}

// deleteFolder removes what has no entry in the table: a folder that never became a task or whose
// record is unreadable, or a runtime's state without a folder. It returns nil if there is nothing.
func (r *remover) deleteFolder(ctx context.Context, id string) error {
	t, err := r.table.insert(statedir.Record{Format: statedir.Format, Params: statedir.Params{ID: id},
		State: runtimeshim.StateCreated})
	if errdefs.IsAlreadyExists(err) {
		return r.delete(ctx, id)
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	defer r.holder.forget(t)
	if err := r.clear(ctx, t); err != nil {
		return fmt.Errorf("delete task %s: %w", id, err)
	}
	return r.removeFolder(t.dir)
}

// release removes an exited task from the runtime and the cgroups. Folder, exit status and logs
// stay. ErrFailedPrecondition while it runs, ErrUnavailable while its state cannot be read.
func (r *remover) release(ctx context.Context, id string) error {
	t, err := r.table.lock(ctx, id)
	if err != nil {
		return err
	}
	defer t.unlock()
	r.table.mu.Lock()
	running, unknown := t.exit == nil, t.unknown
	r.table.mu.Unlock()
	if running && unknown {
		return fmt.Errorf("release task %s: it cannot be read now: %w", id, errdefs.ErrUnavailable)
	}
	if running {
		return fmt.Errorf("release task %s: it is running: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := r.clear(ctx, t); err != nil {
		return fmt.Errorf("release task %s: %w", id, err)
	}
	r.holder.letGo(t)
	return nil
}

// endTask kills a task and everything in its cgroup, and returns when its exit is written. nil when
// there is no such task.
func (r *remover) endTask(ctx context.Context, id string) error {
	t, err := r.table.lock(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	if err := r.end(ctx, t); err != nil {
		return fmt.Errorf("end task %s: %w", id, err)
	}
	if t.rec.Released {
		return nil
	}
	dirs, err := r.cgroups.Of(t.dir, 0)
	cgroup.Signal(dirs, unix.SIGKILL)
	return err
}

// end kills the task's process and waits until its exit is written. DeadlineExceeded when the
// process does not die.
func (r *remover) end(ctx context.Context, t *task) error {
	r.table.mu.Lock()
	done, pidfd := t.exit != nil || t.rec.State != runtimeshim.StateRunning, t.pidfd
	unseen := t.unknown && pidfd == nil
	r.table.mu.Unlock()
	if done {
		return nil
	}
	if unseen { // nothing waits for its process, so kill everything in its cgroup
		dirs, err := r.cgroups.Of(t.dir, 0)
		cgroup.Signal(dirs, unix.SIGKILL)
		return err
	}
	r.step.Pass("shim.delete.kill")
	r.reporter.markOOM(t)
	if pidfd != nil {
		_ = procfd.Signal(pidfd, unix.SIGKILL)
	}
	select {
	case <-t.exited:
		return nil
	case <-time.After(thawWait):
		dirs, _ := r.cgroups.Of(t.dir, t.livePid())
		cgroup.Freeze(dirs, false) // a frozen process does not die (v1)
	}
	select {
	case <-t.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(wire.DeathWait):
		return fmt.Errorf("process %d did not exit after SIGKILL: %w", t.rec.Pid, context.DeadlineExceeded)
	}
}

// clear removes a task from the runtime and the cgroups, and kills what is left in its cgroups. It
// is idempotent and works without the runtime's binary or state. Afterwards the record has Released
// set.
func (r *remover) clear(ctx context.Context, t *task) error {
	if t.rec.Released {
		return nil
	}
	home := filepath.Join(r.state.RuncRoot(), t.rec.ID)
	dirs, err := r.cgroups.Of(t.dir, t.livePid())
	if err != nil {
		return err
	}
	var failed error
	if _, err := os.Lstat(home); !errors.Is(err, os.ErrNotExist) && t.rec.Runtime != "" {
		r.step.Pass("shim.delete")
		failed = r.runDelete(ctx, t)
	}
	// Success of the runtime is not enough: a container that shares its pid namespace, or whose
	// state was never written, leaves processes behind.
	sweep, cancel := context.WithTimeout(ctx, wire.DeathWait)
	defer cancel()
	r.stopScope(sweep, t, dirs)
	if err := cgroup.Remove(sweep, dirs); err != nil {
		return errors.Join(err, failed)
	}
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	r.table.mu.Lock()
	t.rec.Released = true
	r.table.mu.Unlock()
	if t.rec.State == runtimeshim.StateRunning {
		// A failed write, on a full disk for example, does no harm: the next clear finds nothing to
		// do.
		_ = statedir.WriteJSON(t.dir.Record(), t.rec)
	}
	return nil
}

// runDelete executes the runtime's delete. It uses --force only if necessary, because runc then
// sleeps 100 ms before it checks whether the process has ended. The command may finish when its
// caller is gone: to end it, the shim stops it first, and a shim that is killed at that moment, as
// the daemon was, would leave it stopped for ever.
func (r *remover) runDelete(ctx context.Context, t *task) error {
	c := oci.Command{Runtime: t.rec.Runtime, Systemd: t.rec.Systemd, Log: t.dir.RuntimeLog(), Wait: wire.DeleteWait,
		Grace: wire.DeleteWait,
		Args:  []string{"delete", t.rec.ID}}
	r.table.mu.Lock()
	ended := t.exit != nil
	r.table.mu.Unlock()
	if ended && r.driver.RunQuietly(ctx, c) == nil {
		return nil
	}
	c.Args = []string{"delete", "--force", t.rec.ID}
	return r.driver.RunQuietly(ctx, c)
}

// livePid returns the pid of the task's process, 0 once it is reaped.
func (t *task) livePid() int {
	if t.pidfd == nil {
		return 0
	}
	pid, err := procfd.PidOf(t.pidfd)
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

// kill sends a signal to a task's process, and with All to everything in its cgroup. ErrNotFound
// when no process received it.
func (r *remover) kill(_ context.Context, in *wire.Inbound) (any, error) {
	var b wire.Kill
	if err := in.Decode(&b); err != nil {
		return nil, err
	}
	if b.Signal < 1 || b.Signal > 64 {
		return nil, fmt.Errorf("signal %d: %w", b.Signal, errdefs.ErrInvalidArgument)
	}
	t, err := r.table.find(b.ID)
	if err != nil {
		return nil, err
	}
	if unix.Signal(b.Signal) == unix.SIGKILL {
		r.reporter.markOOM(t)
	}
	r.table.mu.Lock()
	running, err := t.exit == nil && t.pidfd != nil, error(unix.ESRCH)
	if running {
		err = procfd.Signal(t.pidfd, unix.Signal(b.Signal))
	}
	pid, unseen := t.livePid(), t.unknown && t.exit == nil && !running
	r.table.mu.Unlock()
	if unseen && !b.All {
		return nil, fmt.Errorf("send signal %d to task %s: it cannot be read now: %w", b.Signal, b.ID, errdefs.ErrUnavailable)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("send signal %d to task %s: %w", b.Signal, b.ID, err)
	}
	reached := err == nil
	if b.All {
		dirs, err := r.cgroups.Of(t.dir, pid)
		if err != nil {
			return nil, fmt.Errorf("send signal %d to all of task %s: %w", b.Signal, b.ID, err)
		}
		reached = cgroup.Signal(dirs, unix.Signal(b.Signal)) > 0 || reached
	}
	if !reached {
		return nil, fmt.Errorf("process of task %s: %w", b.ID, errdefs.ErrNotFound)
	}
	return nil, nil
}

// abandon undoes a start that failed, within a deadline of its own.
func (r *remover) abandon(ctx context.Context, t *task) error {
	ctx, cancel := context.WithTimeout(ctx, wire.DeleteWait+10*time.Second)
	defer cancel()
	err := r.clear(ctx, t)
	os.Remove(t.dir.Record())
	os.Remove(t.dir.Pid())
	r.reporter.kills.Drop(t.rec.OOMFile)
	r.holder.forget(t)
	return err
}
