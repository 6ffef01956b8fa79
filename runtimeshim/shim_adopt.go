package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// adopt takes over the tasks of a shim that is dead. A folder that cannot be
// read costs that task only. What needs waiting (a runtime still at work) is
// left to goroutines that hold the task's op.
func (s *shim) adopt(ctx context.Context) {
	if err := os.RemoveAll(s.state.gone()); err != nil {
		log.G(ctx).WithError(err).Warn("what a shim before left half removed stays")
	}
	entries, _ := os.ReadDir(s.state.tasks())
	for _, e := range entries {
		if checkID(e.Name()) == nil {
			s.load(s.state.task(e.Name()))
		}
	}
	s.step("shim.adopt")
	saved := s.recallAll()
	all := slices.Collect(maps.Values(s.tasks))
	for _, t := range all {
		s.adoptTask(ctx, t, saved[t.dir.id()])
	}
	for _, k := range saved {
		closeAll(k.files)
	}
	for _, t := range all {
		s.refreshKeeper(t.dir.id())
	}
	stale, _ := filepath.Glob(s.state.at("tty[0-9]*"))
	for _, name := range stale {
		os.Remove(name)
	}
}

// load puts the task of a folder into the table, locked.
func (s *shim) load(d taskDir) {
	var rec taskRecord
	err := readJSON(d.record(), &rec)
	if errdefs.IsNotFound(err) {
		return // never started
	}
	if err == nil && (rec.ID != d.id() || rec.Format > recordFormat+1) {
		err = fmt.Errorf("record of task %q in format %d: %w", rec.ID, rec.Format, errdefs.ErrDataLoss)
	}
	if err != nil {
		log.L.WithError(err).WithField("container", d.id()).Error("task is not adopted")
		return
	}
	rec.OOMBase = oomBase(rec, d)
	s.tasks[rec.ID] = newTask(d, rec)
}

// recallAll finds the pods' keepers and what is in flight in them, by task.
func (s *shim) recallAll() map[string]*kept {
	saved := map[string]*kept{}
	for _, t := range s.tasks {
		if !t.rec.Keeper || t.rec.State != stateRunning {
			continue
		}
		pidfd, err := openSame(t.rec.Pid, t.rec.StartTicks)
		if err != nil {
			continue
		}
		k, err := findKeeper(t.dir, pidfd)
		pidfd.Close()
		if err != nil {
			log.L.WithError(err).WithField("pod", t.rec.ID).Warn("pod has no keeper")
			continue
		}
		t.keeper = k
		for _, it := range k.recall() {
			if other := s.tasks[it.ID]; other == nil || other.rec.Pod != t.rec.ID {
				closeAll(it.files)
				continue
			}
			if old := saved[it.ID]; old != nil {
				closeAll(old.files)
			}
			saved[it.ID] = &it
		}
	}
	return saved
}

// openSame opens a pidfd of the process that has this number and start time.
// unix.ESRCH when it is gone.
func openSame(pid int, ticks uint64) (*os.File, error) {
	if pid <= 1 {
		return nil, unix.ESRCH
	}
	f, err := openPidfd(pid)
	if err != nil {
		return nil, err
	}
	// In this order: while we hold the pidfd of a process that is not reaped
	// after the comparison, the number was its own throughout.
	if st, err := readProcStat(pid); err != nil || st.StartTicks != ticks {
		f.Close()
		return nil, unix.ESRCH
	}
	if now, err := pidfdPid(f); err != nil || now != pid {
		f.Close()
		return nil, unix.ESRCH
	}
	return f, nil
}

// adoptTask continues one task; saved is what its pod kept of it, nil for nothing.
func (s *shim) adoptTask(ctx context.Context, t *task, saved *kept) {
	var e exitRecord
	switch {
	case readJSON(t.dir.exit(), &e) == nil:
		t.exit = &e
		close(t.exited)
		if !t.rec.Released {
			s.reopen(t, saved)
		}
		t.unlock()
	case t.rec.State == stateRunning:
		s.reopen(t, saved)
		s.adoptProcess(ctx, t, saved)
		stale, _ := filepath.Glob(t.dir.at("exec-*.json")) // now: later there may be execs of our own
		go func() {
			defer t.unlock()
			s.endStaleExecs(ctx, t, stale)
		}()
	default:
		go func() {
			defer t.unlock()
			s.adoptStart(ctx, t)
		}()
	}
}

// reopen opens the task's streams again.
func (s *shim) reopen(t *task, saved *kept) {
	var fifos []*os.File
	for _, name := range []string{t.dir.stdout(), t.dir.stderr()} {
		if f, err := openTaskFIFO(name); err == nil {
			fifos = append(fifos, f)
		}
	}
	s.mu.Lock()
	t.fifos = fifos
	s.mu.Unlock()
	if saved == nil {
		return
	}
	s.mu.Lock()
	t.stdin = saved.take("stdin")
	s.mu.Unlock()
	tty := saved.take("tty")
	if tty == nil {
		return
	}
	p, err := newPump(tty, t.dir.stdout())
	if err != nil {
		log.L.WithError(err).WithField("container", t.rec.ID).Error("terminal is not read")
	}
	s.mu.Lock()
	t.tty, t.pump = tty, p
	s.mu.Unlock()
}

// adoptProcess begins to wait for a process that is no child of ours.
func (s *shim) adoptProcess(ctx context.Context, t *task, saved *kept) {
	pidfd, err := openSame(t.rec.Pid, t.rec.StartTicks)
	if err != nil && saved != nil {
		// Gone, but the pod kept a descriptor that knows how it went. One that
		// is still alive under another number is not ours.
		if f := saved.take("pidfd"); f != nil {
			if pid, err := pidfdPid(f); err == nil && pid == -1 {
				pidfd = pidfdFile(dupFD(f))
			}
			f.Close()
		}
	}
	if pidfd == nil {
		s.ended(t, unknownExit)
		return
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
}

func dupFD(f *os.File) int {
	fd, err := unix.FcntlInt(uintptr(fdOf(f)), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1
	}
	return fd
}

// lastStatus finds out how a process that is not our child has ended: from the
// kernel's record once it is reaped, from /proc while it is a zombie. It may
// be reaped between the two looks.
func lastStatus(t *task, pidfd *os.File) (unix.WaitStatus, bool) {
	for range 2 {
		if ws, ok := pidfdExit(pidfd); ok {
			return ws, true
		}
		if st, err := readProcStat(t.rec.Pid); err == nil && st.StartTicks == t.rec.StartTicks && st.State == 'Z' {
			return st.ExitCode, true
		}
	}
	return 0, false
}

// adoptStart finishes a start whose shim died: when the runtime that was in
// flight has brought the task up, it runs; otherwise it was never started.
func (s *shim) adoptStart(ctx context.Context, t *task) {
	s.outlast(ctx, t.lockFile(), startWait)
	ended, err := s.adoptPid(ctx, t)
	if err == nil {
		s.step("shim.adopt.start")
		if ended {
			s.ended(t, unknownExit)
		}
		return
	}
	if err := s.abandon(context.WithoutCancel(ctx), t); err != nil {
		log.L.WithError(err).WithField("container", t.rec.ID).Error("start cut short is not cleaned up")
	}
}

// adoptPid takes the process of the runtime's pid file for the task's. True
// when there was one and it has ended.
func (s *shim) adoptPid(ctx context.Context, t *task) (bool, error) {
	pid, err := readPid(t.dir.pid())
	if err != nil {
		return false, err
	}
	written, err := os.Stat(t.dir.pid())
	if err != nil {
		return false, err
	}
	ended, ticks := true, uint64(0)
	if st, err := readProcStat(pid); err == nil && !startedAfter(st, written.ModTime()) {
		ended, ticks = false, st.StartTicks
	}
	s.mu.Lock()
	t.rec.Pid, t.rec.StartedAt, t.rec.StartTicks, t.rec.State = pid, written.ModTime(), ticks, stateRunning
	s.mu.Unlock()
	if err := writeJSON(t.dir.record(), t.rec); err != nil {
		return false, err
	}
	if ended {
		return true, nil
	}
	s.reopen(t, nil)
	s.adoptProcess(ctx, t, nil)
	if t.rec.Keeper && t.pidfd != nil {
		if k, err := findKeeper(t.dir, t.pidfd); err == nil {
			s.mu.Lock()
			t.keeper = k
			s.mu.Unlock()
		}
	}
	s.refreshKeeper(t.rec.Pod)
	s.refreshKeeper(t.rec.ID)
	return false, nil
}

// startedAfter: the process is younger than at, so it only has the number of
// the one that was written down then.
func startedAfter(st procStat, at time.Time) bool {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return false
	}
	age := time.Duration(now.Nano()) - time.Duration(st.StartTicks)*(time.Second/clockTicks)
	return time.Since(at)-age > time.Second/clockTicks
}

const clockTicks = 100 // sysconf(_SC_CLK_TCK), the same on every Linux

// outlast waits until no process holds the lock file, and kills the runtimes
// that still do after limit.
func (s *shim) outlast(ctx context.Context, path string, limit time.Duration) {
	free := func() bool {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return true
		}
		defer f.Close()
		return !errors.Is(unix.Flock(fdOf(f), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	}
	for end := time.Now().Add(limit); !free() && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end.Add(killedWait)) {
			return
		}
		if time.Now().After(end) {
			s.killHolders(path)
		}
	}
}

// killHolders sends SIGKILL to the runtimes of ours that have path open, and
// to what they have started. Others may hold it too, the daemon for one.
func (s *shim) killHolders(path string) {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, name := range fds {
		// The link is read, not followed: the file may be on a disk that hangs.
		if to, err := os.Readlink(name); err != nil || filepath.Base(to) != filepath.Base(path) {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		f, err := openPidfd(pid)
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(cmdline), "\x00--root\x00"+s.state.runcRoot()+"\x00") {
			killDescendants(pid)
			_ = signalPidfd(f, unix.SIGKILL)
		}
		f.Close()
	}
}

// endStaleExecs kills what a dead shim had executed in the task: its callers
// are gone.
func (s *shim) endStaleExecs(ctx context.Context, t *task, files []string) {
	if len(files) == 0 {
		return
	}
	s.outlast(ctx, t.lockFile(), requestWait)
	for _, name := range files {
		e := execution{s: s, t: t, name: strings.TrimSuffix(name, ".json")}
		if pid, err := readPid(e.pidFile()); err == nil {
			killStale(pid, e.pidFile())
		}
		e.cleanup()
	}
}

// killStale kills the process group of the process that a pid file was written for.
func killStale(pid int, pidFile string) {
	f, err := openPidfd(pid)
	if err != nil {
		return
	}
	defer f.Close()
	written, err := os.Stat(pidFile)
	if err != nil {
		return
	}
	if st, err := readProcStat(pid); err != nil || startedAfter(st, written.ModTime()) {
		return
	}
	if unix.PidfdSendSignal(fdOf(f), unix.SIGKILL, nil, unix.PIDFD_SIGNAL_PROCESS_GROUP) != nil {
		_ = signalPidfd(f, unix.SIGKILL)
	}
}
