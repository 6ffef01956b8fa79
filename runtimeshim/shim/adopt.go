package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// adopter takes over the tasks of a shim that has died.
type adopter struct {
	env
	table    *table
	holder   *holder
	reporter *reporter
	remover  *remover
	driver   *oci.Driver
	cgroups  *cgroup.Finder
	exits    procfd.Exits
}

// adopt takes over the tasks of a shim that has died. A task whose folder is damaged is skipped.
// What takes time (a runtime that is still running, a file that cannot be read now) is left to
// goroutines that hold the task's op. An error means that the tasks cannot be listed: then this
// process must not serve as the shim.
func (a *adopter) adopt(ctx context.Context) error {
	if err := os.RemoveAll(a.state.Gone()); err != nil {
		log.G(ctx).WithError(err).Warn("cannot remove what an earlier shim left half removed")
	}
	entries, err := os.ReadDir(a.state.Tasks())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for tasks: %w", err)
	}
	for _, e := range entries {
		if statedir.CheckID(e.Name()) == nil {
			a.load(ctx, a.state.Task(e.Name()))
		}
	}
	a.step.Pass("shim.adopt")
	all := a.table.loaded()
	saved, err := a.holder.recallAll(all)
	if err != nil {
		return err
	}
	for _, t := range all {
		a.adoptTask(ctx, t, saved[t.dir.ID()])
	}
	for _, t := range all {
		a.holder.refreshKeeper(t.dir.ID())
	}
	for _, t := range a.table.unread() {
		go a.loadLater(ctx, t)
	}
	stale, _ := filepath.Glob(a.state.At("tty[0-9]*"))
	for _, name := range stale {
		os.Remove(name)
	}
	return nil
}

// load adds the task of a folder to the table, locked. If its record cannot be read now, its state
// is "starting" until it can.
func (a *adopter) load(ctx context.Context, d statedir.Task) {
	t := newTask(d, statedir.Record{Params: statedir.Params{ID: d.ID()}, State: runtimeshim.StateStarting})
	rec, err := loadRecord(d)
	switch {
	case err == nil:
		t.rec = rec
	case errdefs.IsNotFound(err):
		return // it was never started
	case errdefs.IsDataLoss(err):
		log.L.WithError(err).WithField("container", d.ID()).Error("cannot take over a task of an earlier shim")
		return
	default:
		log.L.WithError(err).WithField("container", d.ID()).Error("cannot read the record of a task now; will try again")
		t.unknown = true
	}
	a.table.mu.Lock()
	a.table.tasks[d.ID()] = t
	a.table.mu.Unlock()
}

// loaded lists the tasks whose records have been read.
func (tab *table) loaded() []*task {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	var all []*task
	for _, t := range tab.tasks {
		if t.rec.Format != 0 {
			all = append(all, t)
		}
	}
	return all
}

// unread lists the tasks whose records have not been read yet.
func (tab *table) unread() []*task {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	var some []*task
	for _, t := range tab.tasks {
		if t.rec.Format == 0 {
			some = append(some, t)
		}
	}
	return some
}

// loadRecord reads a task's record. ErrNotFound: the task was never started; ErrDataLoss: the
// record is damaged or in an unknown format.
func loadRecord(d statedir.Task) (statedir.Record, error) {
	var rec statedir.Record
	err := statedir.ReadJSON(d.Record(), &rec)
	if err == nil && (rec.ID != d.ID() || rec.Format < 1 || rec.Format > statedir.Format+1) {
		err = fmt.Errorf("record of task %q has unknown format %d: %w", rec.ID, rec.Format, errdefs.ErrDataLoss)
	}
	if err == nil {
		rec.OOMBase, err = oomBase(rec, d)
	}
	return rec, err
}

// loadLater adopts a task as soon as its record can be read. Between attempts it releases the lock
// of the task, so that the task can be deleted, which needs no record.
func (a *adopter) loadLater(ctx context.Context, t *task) {
	defer helper.Survive()
	for a.lookLater(ctx, t) {
		rec, err := loadRecord(t.dir)
		switch {
		case err == nil:
			saved := t.saved
			a.table.mu.Lock()
			t.rec, t.saved, t.keptBy, t.unknown = rec, nil, "", false
			a.table.mu.Unlock()
			a.adoptTask(ctx, t, saved)
			a.holder.refreshKeeper(rec.Pod)
			return
		case errdefs.IsNotFound(err), errdefs.IsDataLoss(err):
			log.L.WithError(err).WithField("container", t.dir.ID()).Error("cannot take over a task of an earlier shim")
			a.holder.forget(t)
			t.unlock()
			return
		}
	}
}

// lookLater unlocks a task for a while and locks it again. It returns false, without the lock, when
// the task was deleted or ctx has ended.
func (a *adopter) lookLater(ctx context.Context, t *task) bool {
	t.unlock()
	helper.Pause(ctx, helper.LookAgain)
	select {
	case <-t.op:
	case <-ctx.Done():
		return false
	}
	a.table.mu.Lock()
	deleted := t.deleted
	a.table.mu.Unlock()
	if deleted {
		t.saved.close()
		t.unlock()
	}
	return !deleted
}

// adoptTask continues one task. saved has the descriptors from its pod's keeper socket, nil for
// none; adoptTask closes it. If something cannot be read now, it retries in the background.
func (a *adopter) adoptTask(ctx context.Context, t *task, saved *kept) {
	wait, err := a.takeOver(ctx, t, saved)
	if err == nil && wait == nil {
		saved.close()
		t.unlock()
		return
	}
	if err == nil {
		go func() {
			defer helper.Survive()
			defer t.unlock()
			defer saved.close()
			wait()
		}()
		return
	}
	log.L.WithError(err).WithField("container", t.rec.ID).
		Error("cannot take over a task of an earlier shim now; will try again")
	a.table.setUnknown(t, true)
	go a.adoptLater(ctx, t, saved)
}

// adoptLater retries takeOver until it succeeds.
func (a *adopter) adoptLater(ctx context.Context, t *task, saved *kept) {
	defer helper.Survive()
	defer saved.close()
	for a.lookLater(ctx, t) {
		wait, err := a.takeOver(ctx, t, saved)
		if err != nil {
			continue
		}
		a.table.setUnknown(t, false)
		a.holder.refreshKeeper(t.rec.Pod)
		if wait != nil {
			wait()
		}
		t.unlock()
		return
	}
}

func (tab *table) setUnknown(t *task, unknown bool) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	t.unknown = unknown
}

// takeOver finds out what happened to a task and continues from there. wait, unless nil, does the
// rest, which may take long. After an error takeOver may be called again.
func (a *adopter) takeOver(ctx context.Context, t *task, saved *kept) (wait func(), err error) {
	var e statedir.ExitRecord
	switch err := statedir.ReadJSON(t.dir.Exit(), &e); {
	case err == nil:
		return nil, a.adoptExit(t, e, saved)
	case !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err):
		return nil, err
	}
	if t.rec.State != runtimeshim.StateRunning {
		return func() { a.adoptStart(ctx, t, saved) }, nil
	}
	if err := a.holder.reopen(t, saved); err != nil {
		return nil, errors.Join(err, a.watchLiving(ctx, t))
	}
	stale, err := staleExecs(t.dir) // list them now: later there may be new execs of this shim
	if err != nil {
		return nil, err
	}
	if err := a.adoptProcess(ctx, t, saved); err != nil || len(stale) == 0 {
		return nil, err
	}
	return func() { a.endStaleExecs(ctx, t, stale) }, nil
}

// watchLiving waits for the exit of a task's process if it is alive, even if other things are
// unreadable.
func (a *adopter) watchLiving(ctx context.Context, t *task) error {
	if f, err := procfd.OpenSame(t.rec.Pid, t.rec.StartTicks); err != nil {
		return nil // its exit is reported once its output can be read
	} else {
		f.Close()
	}
	return a.adoptProcess(ctx, t, nil)
}

// adoptExit takes over a task whose exit is written. It moves the remaining output of its terminal
// before it reports the exit.
func (a *adopter) adoptExit(t *task, e statedir.ExitRecord, saved *kept) error {
	if !t.rec.Released {
		if err := a.holder.reopen(t, saved); err != nil {
			return err
		}
	}
	a.holder.finishTerminal(t)
	a.reporter.tell(t, e)
	return nil
}

// adoptProcess waits in the background for the exit of a process that is not our child. An error
// says nothing about the process.
func (a *adopter) adoptProcess(ctx context.Context, t *task, saved *kept) error {
	if t.pidfd != nil {
		return nil
	}
	// 0 is not a valid start time: the shim before us could not read it.
	if t.rec.StartTicks == 0 {
		p, err := a.identify(t)
		if err != nil && !errors.Is(err, errNotStarted) {
			return err
		}
		if err == nil && p.Pid == t.rec.Pid {
			a.table.mu.Lock()
			t.rec.StartTicks = p.Ticks
			a.table.mu.Unlock()
		}
	}
	exit := a.follow(t)
	pidfd, err := procfd.OpenSame(t.rec.Pid, t.rec.StartTicks)
	if err != nil {
		exit.Forget()
		exit = nil
	}
	if err != nil && !procfd.Gone(err) {
		return err
	}
	if err != nil {
		if pidfd, err = saved.ended(); err != nil {
			return err
		}
	}
	if pidfd == nil {
		a.reporter.ended(t, unknownExit)
		return nil
	}
	a.table.mu.Lock()
	t.pidfd = pidfd
	a.table.mu.Unlock()
	a.reporter.kills.Add(t.rec.OOMFile)
	go func() {
		defer exit.Forget()
		if procfd.WaitDead(ctx, pidfd) != nil {
			return
		}
		e := unknownExit
		ws, ok := lastStatus(t, pidfd)
		if !ok {
			ws, ok = exit.Status()
		}
		if ok {
			e = exitOf(ws)
		}
		a.reporter.ended(t, e)
	}()
	return nil
}

// follow listens for the end of a task's process where the kernel does not keep it; nil where it does,
// or where one cannot listen.
func (a *adopter) follow(t *task) *procfd.Exit {
	if procfd.KeepsExits() {
		return nil
	}
	exit, err := a.exits.Follow(t.rec.Pid)
	if err != nil {
		log.L.WithError(err).WithField("container", t.rec.ID).Warn("how this task ends may stay unknown")
	}
	return exit
}

// lastStatus returns the wait status of a process that is not our child: from the pidfd once it is
// reaped, from /proc while it is a zombie. It looks twice, because the process may be reaped
// between the two.
func lastStatus(t *task, pidfd *os.File) (unix.WaitStatus, bool) {
	for looks := 0; looks < 2; {
		if ws, ok := procfd.ExitOf(pidfd); ok {
			return ws, true
		}
		st, err := procfd.ReadStat(t.rec.Pid)
		if err == nil && st.StartTicks == t.rec.StartTicks && st.State == 'Z' {
			return st.ExitCode, true
		}
		if err != nil && helper.OutOfResources(err) {
			time.Sleep(helper.LookAgain)
			continue
		}
		looks++
	}
	return 0, false
}

// adoptStart completes a start whose shim died. If the runtime started the task, the task is
// running; otherwise the start is undone. A start is also undone if the master of its terminal was
// lost with the shim, because nothing could read that terminal any more.
func (a *adopter) adoptStart(ctx context.Context, t *task, saved *kept) {
	a.driver.Outlast(ctx, t.lockFile(), wire.StartWait)
	for said := false; ctx.Err() == nil; helper.Pause(ctx, helper.LookAgain) {
		err := a.adoptPid(ctx, t, saved)
		if err == nil {
			a.step.Pass("shim.adopt.start")
			return
		}
		if errors.Is(err, errNotStarted) {
			log.L.WithError(err).WithField("container", t.rec.ID).Warn("undoing an interrupted start")
			err = a.remover.abandon(context.WithoutCancel(ctx), t)
			if err != nil {
				log.L.WithError(err).WithField("container", t.rec.ID).Error("cannot clean up after an interrupted start")
			}
			return
		}
		if !said {
			said = true
			log.L.WithError(err).WithField("container", t.rec.ID).
				Error("cannot take over an interrupted start now; will try again")
		}
	}
}

// adoptPid takes the process in the runtime's pid file for the task's. errNotStarted: the task
// cannot be taken over and must be removed. After any other error adoptPid may be called again.
func (a *adopter) adoptPid(ctx context.Context, t *task, saved *kept) error {
	p, err := a.identify(t)
	if err != nil {
		return err
	}
	if err := a.holder.reopen(t, saved); err != nil {
		return err
	}
	// The process may even have ended already, because of the hang-up.
	if t.rec.Terminal && t.tty == nil {
		return fmt.Errorf("its terminal was lost with the shim that started it: %w", errNotStarted)
	}
	rec := t.rec
	rec.Pid, rec.StartTicks, rec.StartedAt, rec.State = p.Pid, p.Ticks, time.Now(), runtimeshim.StateRunning
	if st, err := os.Stat(t.dir.Pid()); err == nil {
		rec.StartedAt = st.ModTime()
	}
	if err := statedir.WriteJSON(t.dir.Record(), rec); err != nil {
		return err
	}
	a.table.mu.Lock()
	t.rec = rec
	a.table.mu.Unlock()
	if err := a.adoptProcess(ctx, t, saved); err != nil {
		return err
	}
	if t.rec.Keeper && t.pidfd != nil {
		if k, err := findKeeper(t.dir, t.pidfd); err == nil {
			a.table.mu.Lock()
			t.keeper = k
			a.table.mu.Unlock()
		}
	}
	a.holder.refreshKeeper(t.rec.Pod)
	a.holder.refreshKeeper(t.rec.ID)
	return nil
}

// staleExecs lists the execs of a dead shim in a task: the common path prefix of each exec's files.
func staleExecs(d statedir.Task) ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && strings.HasPrefix(name, "exec-") {
			found = append(found, d.At(name))
		}
	}
	return found, nil
}

// endStaleExecs kills the execs of a dead shim in the task, because their callers are gone.
func (a *adopter) endStaleExecs(ctx context.Context, t *task, names []string) {
	a.driver.Outlast(ctx, t.lockFile(), wire.RequestWait)
	for _, name := range names {
		e := execution{t: t, name: name}
		for ctx.Err() == nil {
			err := a.killStale(e)
			if err == nil {
				e.cleanup()
				break
			}
			log.L.WithError(err).WithField("container", t.rec.ID).Warn("cannot end an exec whose caller is gone; will try again")
			helper.Pause(ctx, 5*time.Second)
		}
	}
}

// killStale kills the process group of the process in an exec's pid file. It checks that this
// process leads a session, is in the task's cgroup or is a runtime of ours, and is not the task's
// own process.
func (a *adopter) killStale(e execution) error {
	pid, err := oci.ReadPid(e.pidFile())
	if errdefs.IsDataLoss(err) {
		return a.killUnborn(e)
	}
	if procfd.Gone(err) || err == nil && pid == e.t.rec.Pid {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := procfd.Open(pid)
	if err == nil {
		defer f.Close()
		err = a.isExec(e, pid)
	}
	if err == nil {
		err = procfd.StillHas(f, pid)
	}
	if procfd.Gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if unix.PidfdSendSignal(unixfd.Of(f), unix.SIGKILL, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP) != nil {
		_ = procfd.Signal(f, unix.SIGKILL)
	}
	return nil
}

// killUnborn kills what an earlier shim's place has made for commands of a task, without executing
// them. Their pid files are written after that, which never comes where a file system of the
// container hangs.
func (a *adopter) killUnborn(e execution) error {
	dirs, err := a.cgroups.Of(e.t.dir, 0)
	if err != nil {
		return err
	}
	own, err := procfd.ReadStat(os.Getpid())
	if err != nil {
		return err
	}
	for _, pid := range cgroup.AllProcs(dirs) {
		f, err := procfd.Open(pid)
		if err != nil {
			continue // it has ended
		}
		st, err := procfd.ReadStat(pid)
		older := err == nil && st.StartTicks <= own.StartTicks // than this shim, whose own commands go on
		if older && pid != e.t.rec.Pid && a.driver.IsRuntime(pid) && procfd.StillHas(f, pid) == nil {
			_ = procfd.Signal(f, unix.SIGKILL)
		}
		f.Close()
	}
	return nil
}

// isExec returns nil if the process is an exec in the task, os.ErrNotExist if it is not.
func (a *adopter) isExec(e execution, pid int) error {
	st, err := procfd.ReadStat(pid)
	if err != nil {
		return err
	}
	dirs, err := a.cgroups.Of(e.t.dir, 0)
	if err != nil {
		return err
	}
	in, err := a.cgroups.Contain(pid, dirs)
	if err == nil && (!in && !a.driver.IsRuntime(pid) || st.Session != pid) {
		err = os.ErrNotExist
	}
	return err
}
