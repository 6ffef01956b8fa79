package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// adopt takes over the tasks of a shim that is dead. A folder that cannot be
// read costs that task only. What needs waiting (a runtime still at work, a file
// that cannot be read now) is left to goroutines that hold the task's op. An
// error means that it is not known what there is: then this must not be the shim.
func (s *shim) adopt(ctx context.Context) error {
	if err := os.RemoveAll(s.state.gone()); err != nil {
		log.G(ctx).WithError(err).Warn("what a shim before left half removed stays")
	}
	entries, err := os.ReadDir(s.state.tasks())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for tasks: %w", err)
	}
	for _, e := range entries {
		if checkID(e.Name()) == nil {
			s.load(ctx, s.state.task(e.Name()))
		}
	}
	s.step("shim.adopt")
	all := s.loaded()
	saved, err := s.recallAll(all)
	if err != nil {
		return err
	}
	for _, t := range all {
		s.adoptTask(ctx, t, saved[t.dir.id()])
	}
	for _, t := range all {
		s.refreshKeeper(t.dir.id())
	}
	for _, t := range s.unread() {
		go s.loadLater(ctx, t)
	}
	stale, _ := filepath.Glob(s.state.at("tty[0-9]*"))
	for _, name := range stale {
		os.Remove(name)
	}
	return nil
}

// load puts the task of a folder into the table, locked. One whose record cannot be read now is
// "starting" until it can.
func (s *shim) load(ctx context.Context, d taskDir) {
	t := newTask(d, taskRecord{taskParams: taskParams{ID: d.id()}, State: stateStarting})
	rec, err := loadRecord(d)
	switch {
	case err == nil:
		t.rec = rec
	case errdefs.IsNotFound(err):
		return // never started
	case errdefs.IsDataLoss(err):
		log.L.WithError(err).WithField("container", d.id()).Error("task is not adopted")
		return
	default:
		log.L.WithError(err).WithField("container", d.id()).Error("record of task cannot be read now; will try again")
		t.unknown = true
	}
	s.mu.Lock()
	s.tasks[d.id()] = t
	s.mu.Unlock()
}

// loaded lists the tasks whose records are read.
func (s *shim) loaded() []*task {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*task
	for _, t := range s.tasks {
		if t.rec.Format != 0 {
			all = append(all, t)
		}
	}
	return all
}

// unread lists the other tasks.
func (s *shim) unread() []*task {
	s.mu.Lock()
	defer s.mu.Unlock()
	var some []*task
	for _, t := range s.tasks {
		if t.rec.Format == 0 {
			some = append(some, t)
		}
	}
	return some
}

// loadRecord reads a task's record. ErrNotFound: it was never started; ErrDataLoss: the record is
// none of ours.
func loadRecord(d taskDir) (taskRecord, error) {
	var rec taskRecord
	err := readJSON(d.record(), &rec)
	if err == nil && (rec.ID != d.id() || rec.Format < 1 || rec.Format > recordFormat+1) {
		err = fmt.Errorf("record of task %q in format %d: %w", rec.ID, rec.Format, errdefs.ErrDataLoss)
	}
	if err == nil {
		rec.OOMBase, err = oomBase(rec, d)
	}
	return rec, err
}

// lookAgain is how long a file that cannot be read now is left alone.
const lookAgain = 200 * time.Millisecond

// loadLater adopts a task as soon as its record can be read. Between two looks others may have the
// task: to delete it needs no record.
func (s *shim) loadLater(ctx context.Context, t *task) {
	defer survive()
	for s.lookLater(ctx, t) {
		rec, err := loadRecord(t.dir)
		switch {
		case err == nil:
			saved := t.saved
			s.mu.Lock()
			t.rec, t.saved, t.keptBy, t.unknown = rec, nil, "", false
			s.mu.Unlock()
			s.adoptTask(ctx, t, saved)
			s.refreshKeeper(rec.Pod)
			return
		case errdefs.IsNotFound(err), errdefs.IsDataLoss(err):
			log.L.WithError(err).WithField("container", t.dir.id()).Error("task is not adopted")
			s.forget(t)
			t.unlock()
			return
		}
	}
}

// lookLater lets go of a task for a while and takes it again. False: it is deleted, or ctx has ended;
// then nothing is held.
func (s *shim) lookLater(ctx context.Context, t *task) bool {
	t.unlock()
	pauseFor(ctx, lookAgain)
	select {
	case <-t.op:
	case <-ctx.Done():
		return false
	}
	s.mu.Lock()
	deleted := t.deleted
	s.mu.Unlock()
	if deleted {
		t.saved.close()
		t.unlock()
	}
	return !deleted
}

// recallAll finds the pods' keepers and what is in flight in them, by task.
func (s *shim) recallAll(all []*task) (map[string]*kept, error) {
	saved := map[string]*kept{}
	for _, t := range all {
		if !t.rec.Keeper || t.rec.State != stateRunning {
			continue
		}
		pidfd, err := openSame(t.rec.Pid, t.rec.StartTicks)
		if isGone(err) {
			continue
		}
		var k *keeper
		if err == nil {
			k, err = findKeeper(t.dir, pidfd)
			pidfd.Close()
		}
		if err != nil && outOfResources(err) { // the next shim may have some
			return nil, fmt.Errorf("find what pod %s keeps: %w", t.rec.ID, err)
		}
		if err != nil {
			log.L.WithError(err).WithField("pod", t.rec.ID).Warn("pod has no keeper")
			continue
		}
		t.keeper = k
		if err := s.recall(k, t.rec.ID, saved); err != nil {
			return nil, fmt.Errorf("find what pod %s keeps: %w", t.rec.ID, err)
		}
	}
	return saved, nil
}

// recall adds what a pod's keeper has in flight.
func (s *shim) recall(k *keeper, pod string, saved map[string]*kept) error {
	all, err := k.recall()
	if err != nil {
		return err
	}
	for _, it := range all {
		s.mu.Lock()
		other := s.tasks[it.ID]
		s.mu.Unlock()
		switch {
		case other != nil && other.rec.Format == 0: // whose task it is will be seen
			other.saved.close()
			other.saved, other.keptBy = &it, pod
		case other == nil || other.rec.Pod != pod:
			it.close()
		default:
			saved[it.ID].close()
			saved[it.ID] = &it
		}
	}
	return nil
}

// adoptTask continues one task; saved is what its pod kept of it, nil for nothing, and is the
// function's to close. Where something cannot be read now, it goes on when it can.
func (s *shim) adoptTask(ctx context.Context, t *task, saved *kept) {
	wait, err := s.takeOver(ctx, t, saved)
	if err == nil && wait == nil {
		saved.close()
		t.unlock()
		return
	}
	if err == nil {
		go func() {
			defer survive()
			defer t.unlock()
			defer saved.close()
			wait()
		}()
		return
	}
	log.L.WithError(err).WithField("container", t.rec.ID).Error("task cannot be adopted now; will try again")
	s.setUnknown(t, true)
	go s.adoptLater(ctx, t, saved)
}

// adoptLater takes a task over as soon as that can be done.
func (s *shim) adoptLater(ctx context.Context, t *task, saved *kept) {
	defer survive()
	defer saved.close()
	for s.lookLater(ctx, t) {
		wait, err := s.takeOver(ctx, t, saved)
		if err != nil {
			continue
		}
		s.setUnknown(t, false)
		s.refreshKeeper(t.rec.Pod)
		if wait != nil {
			wait()
		}
		t.unlock()
		return
	}
}

func (s *shim) setUnknown(t *task, unknown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.unknown = unknown
}

// takeOver finds out what has become of a task and goes on from there. wait, unless nil, is what is
// left to do and may take long. It may be called again after an error.
func (s *shim) takeOver(ctx context.Context, t *task, saved *kept) (wait func(), err error) {
	var e exitRecord
	switch err := readJSON(t.dir.exit(), &e); {
	case err == nil:
		return nil, s.adoptExit(t, e, saved)
	case !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err):
		return nil, err
	}
	if t.rec.State != stateRunning {
		return func() { s.adoptStart(ctx, t, saved) }, nil
	}
	if err := s.reopen(t, saved); err != nil {
		return nil, errors.Join(err, s.watchLiving(ctx, t))
	}
	stale, err := staleExecs(t.dir) // now: later there may be execs of our own
	if err != nil {
		return nil, err
	}
	if err := s.adoptProcess(ctx, t, saved); err != nil || len(stale) == 0 {
		return nil, err
	}
	return func() { s.endStaleExecs(ctx, t, stale) }, nil
}

// watchLiving begins to wait for a task's process if it lives, whatever else cannot be read.
func (s *shim) watchLiving(ctx context.Context, t *task) error {
	if f, err := openSame(t.rec.Pid, t.rec.StartTicks); err != nil {
		return nil // its end is told when its output can be read
	} else {
		f.Close()
	}
	return s.adoptProcess(ctx, t, nil)
}

// adoptExit takes over a task whose end is written down. What its terminal has not given yet comes
// before anybody is told.
func (s *shim) adoptExit(t *task, e exitRecord, saved *kept) error {
	if !t.rec.Released {
		if err := s.reopen(t, saved); err != nil {
			return err
		}
	}
	s.finishTerminal(t)
	s.tell(t, e)
	return nil
}

// reopen opens the task's streams again. What is open already stays.
func (s *shim) reopen(t *task, saved *kept) error {
	if t.fifos == nil {
		fifos, err := reopenFIFOs(t.dir)
		if err != nil {
			return err
		}
		s.mu.Lock()
		t.fifos = fifos
		s.mu.Unlock()
	}
	s.mu.Lock()
	if t.stdin == nil {
		t.stdin = saved.take("stdin")
	}
	if t.tty == nil {
		t.tty = saved.take("tty")
	}
	tty, pumping := t.tty, t.pump != nil
	s.mu.Unlock()
	if tty == nil || pumping {
		return nil
	}
	p, err := newPump(tty, t.dir.stdout())
	if err != nil {
		return fmt.Errorf("terminal is not read: %w", err)
	}
	s.mu.Lock()
	t.pump = p
	s.mu.Unlock()
	return nil
}

// reopenFIFOs opens those that are there.
func reopenFIFOs(d taskDir) ([]*os.File, error) {
	var fifos []*os.File
	for _, name := range []string{d.stdout(), d.stderr()} {
		f, err := openTaskFIFO(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			closeAll(fifos)
			return nil, err
		}
		if err == nil {
			fifos = append(fifos, f)
		}
	}
	return fifos, nil
}

// adoptProcess begins to wait for a process that is no child of ours. An error says nothing about it.
func (s *shim) adoptProcess(ctx context.Context, t *task, saved *kept) error {
	if t.pidfd != nil {
		return nil
	}
	if t.rec.StartTicks == 0 { // a shim before us could not read it: no process has started then
		p, err := s.identify(t)
		if err != nil && !errors.Is(err, errNotStarted) {
			return err
		}
		if err == nil && p.pid == t.rec.Pid {
			s.mu.Lock()
			t.rec.StartTicks = p.ticks
			s.mu.Unlock()
		}
	}
	pidfd, err := openSame(t.rec.Pid, t.rec.StartTicks)
	if err != nil && !isGone(err) {
		return err
	}
	if err != nil {
		if pidfd, err = saved.ended(); err != nil {
			return err
		}
	}
	if pidfd == nil {
		s.ended(t, unknownExit)
		return nil
	}
	s.mu.Lock()
	t.pidfd = pidfd
	s.mu.Unlock()
	s.kills.add(t.rec.OOMFile)
	go func() {
		if waitDead(ctx, pidfd) != nil {
			return
		}
		e := unknownExit
		if ws, ok := lastStatus(t, pidfd); ok {
			e = exitOf(ws)
		}
		s.ended(t, e)
	}()
	return nil
}

// lastStatus finds out how a process that is not our child has ended: from the
// kernel's record once it is reaped, from /proc while it is a zombie. It may
// be reaped between the two looks.
func lastStatus(t *task, pidfd *os.File) (unix.WaitStatus, bool) {
	for looks := 0; looks < 2; {
		if ws, ok := pidfdExit(pidfd); ok {
			return ws, true
		}
		st, err := readProcStat(t.rec.Pid)
		if err == nil && st.StartTicks == t.rec.StartTicks && st.State == 'Z' {
			return st.ExitCode, true
		}
		if err != nil && outOfResources(err) {
			time.Sleep(lookAgain)
			continue
		}
		looks++
	}
	return 0, false
}

// adoptStart finishes a start whose shim died: when the runtime that was in
// flight has brought the task up, it runs; otherwise it was never started. So
// is a task whose terminal has gone with the shim: nobody could read it again.
func (s *shim) adoptStart(ctx context.Context, t *task, saved *kept) {
	s.outlast(ctx, t.lockFile(), startWait)
	for said := false; ctx.Err() == nil; pauseFor(ctx, lookAgain) {
		err := s.adoptPid(ctx, t, saved)
		if err == nil {
			s.step("shim.adopt.start")
			return
		}
		if errors.Is(err, errNotStarted) {
			log.L.WithError(err).WithField("container", t.rec.ID).Warn("start cut short is undone")
			err = s.abandon(context.WithoutCancel(ctx), t)
			if err != nil {
				log.L.WithError(err).WithField("container", t.rec.ID).Error("start cut short is not cleaned up")
			}
			return
		}
		if !said {
			said = true
			log.L.WithError(err).WithField("container", t.rec.ID).Error("start cut short cannot be taken over now; will try again")
		}
	}
}

// adoptPid takes the process of the runtime's pid file for the task's. errNotStarted: it is not to
// be taken over, and what there is of it must go; after any other error it may be called again.
func (s *shim) adoptPid(ctx context.Context, t *task, saved *kept) error {
	p, err := s.identify(t)
	if err != nil {
		return err
	}
	if err := s.reopen(t, saved); err != nil {
		return err
	}
	if t.rec.Terminal && t.tty == nil { // also when it has ended since, of the hang-up
		return fmt.Errorf("its terminal has gone with the shim that began it: %w", errNotStarted)
	}
	rec := t.rec
	rec.Pid, rec.StartTicks, rec.StartedAt, rec.State = p.pid, p.ticks, time.Now(), stateRunning
	if st, err := os.Stat(t.dir.pid()); err == nil {
		rec.StartedAt = st.ModTime()
	}
	if err := writeJSON(t.dir.record(), rec); err != nil {
		return err
	}
	s.mu.Lock()
	t.rec = rec
	s.mu.Unlock()
	if err := s.adoptProcess(ctx, t, saved); err != nil {
		return err
	}
	if t.rec.Keeper && t.pidfd != nil {
		if k, err := findKeeper(t.dir, t.pidfd); err == nil {
			s.mu.Lock()
			t.keeper = k
			s.mu.Unlock()
		}
	}
	s.refreshKeeper(t.rec.Pod)
	s.refreshKeeper(t.rec.ID)
	return nil
}

// outlast waits until no process holds the lock file, and kills the runtimes
// that still do after limit.
func (s *shim) outlast(ctx context.Context, path string, limit time.Duration) {
	for end := time.Now().Add(limit); !unlocked(path) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end.Add(killedWait)) {
			return
		}
		if time.Now().After(end) {
			s.killHolders(path)
		}
	}
}

// unlocked: nobody holds the lock file. One that cannot be opened now may be held.
func unlocked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(fdOf(f), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// killHolders sends SIGKILL to the runtimes of ours that have path open, and
// to what they have started. Others may hold it too, the daemon for one.
func (s *shim) killHolders(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fdOf(f)))
	f.Close()
	if err != nil {
		return
	}
	eachName("/proc", func(pid string) {
		if _, err := strconv.Atoi(pid); err != nil {
			return
		}
		fds := filepath.Join("/proc", pid, "fd")
		eachName(fds, func(fd string) {
			// The link is read, not followed: the file may be on a disk that hangs.
			if to, err := os.Readlink(filepath.Join(fds, fd)); err == nil && to == name {
				s.killHolder(filepath.Join(fds, fd), name)
			}
		})
	})
}

// eachName calls f with the names in a folder, some at a time: there may be a million.
func eachName(folder string, f func(name string)) {
	d, err := os.Open(folder)
	if err != nil {
		return
	}
	defer d.Close()
	for err == nil {
		var names []string
		names, err = d.Readdirnames(256)
		for _, name := range names {
			f(name)
		}
	}
}

// killHolder kills the runtime whose descriptor fd, a link in /proc, is the file name.
func (s *shim) killHolder(fd, name string) {
	pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
	f, err := openPidfd(pid)
	if err != nil {
		return
	}
	defer f.Close()
	to, err := os.Readlink(fd) // again: by now the number cannot become another's unseen
	if err != nil || to != name || !s.isRuntime(pid) || stillHas(f, pid) != nil {
		return
	}
	_ = signalPidfd(f, unix.SIGSTOP)
	killDescendants(f)
	_ = signalPidfd(f, unix.SIGKILL)
}

// isRuntime: the process runs a runtime's command that is about our tasks.
func (s *shim) isRuntime(pid int) bool {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Contains(string(cmdline), "\x00--root\x00"+s.state.runcRoot()+"\x00")
}

// staleExecs lists the execs that a dead shim had under way in a task: the path that the files of
// each begin with.
func staleExecs(d taskDir) ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && strings.HasPrefix(name, "exec-") {
			found = append(found, d.at(name))
		}
	}
	return found, nil
}

// endStaleExecs kills what a dead shim had executed in the task: its callers
// are gone.
func (s *shim) endStaleExecs(ctx context.Context, t *task, names []string) {
	s.outlast(ctx, t.lockFile(), requestWait)
	for _, name := range names {
		e := execution{s: s, t: t, name: name}
		for ctx.Err() == nil {
			err := s.killStale(e)
			if err == nil {
				e.cleanup()
				break
			}
			log.L.WithError(err).WithField("container", t.rec.ID).Warn("exec that lost its caller cannot be ended now; will try again")
			pauseFor(ctx, 5*time.Second)
		}
	}
}

// killStale kills the process group of the process that an exec's pid file was written for. It leads
// a session, and it is in the task's cgroup, or a runtime of ours; the task's own process is not it.
func (s *shim) killStale(e execution) error {
	pid, err := readPid(e.pidFile())
	if isGone(err) || errdefs.IsDataLoss(err) || err == nil && pid == e.t.rec.Pid {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := openPidfd(pid)
	if err == nil {
		defer f.Close()
		err = s.isExec(e, pid)
	}
	if err == nil {
		err = stillHas(f, pid)
	}
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if unix.PidfdSendSignal(fdOf(f), unix.SIGKILL, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP) != nil {
		_ = signalPidfd(f, unix.SIGKILL)
	}
	return nil
}

// isExec: the process is one that was executed in the task. os.ErrNotExist when it is not.
func (s *shim) isExec(e execution, pid int) error {
	st, err := readProcStat(pid)
	if err != nil {
		return err
	}
	dirs, err := s.cgroupsOf(e.t.dir, 0)
	if err != nil {
		return err
	}
	in, err := inCgroups(s.hierarchies, pid, dirs)
	if err == nil && (!in && !s.isRuntime(pid) || st.Session != pid) {
		err = os.ErrNotExist
	}
	return err
}
