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
)

// starter starts tasks.
type starter struct {
	env
	table    *table
	holder   *holder
	reporter *reporter
	remover  *remover
	driver   *driver

	noPreserveFDs map[string]bool // runtimes whose run has no --preserve-fds; under table.mu
}

// start runs a task whose folder the client has prepared. On error nothing of
// it is left but that folder. It is finished whether or not the caller waits:
// half a start serves nobody.
func (s *starter) start(ctx context.Context, p taskParams) (Task, error) {
	if err := errors.Join(checkID(p.ID), s.checkParams(p)); err != nil {
		return Task{}, err
	}
	ctx = context.WithoutCancel(ctx)
	t, err := s.table.insert(taskRecord{Format: recordFormat, taskParams: p, State: stateStarting})
	if err != nil {
		return Task{}, err
	}
	defer t.unlock()
	if err := s.launch(ctx, t); err != nil {
		if errdefs.IsNotFound(err) || errdefs.IsPermissionDenied(err) { // of its program; the task itself was there
			err = fmt.Errorf("%v: %w", err, errdefs.ErrInvalidArgument)
		}
		return Task{}, fmt.Errorf("start task %s: %w", p.ID, errors.Join(err, s.remover.abandon(ctx, t)))
	}
	s.step("shim.start.started")
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return t.view(), nil
}

func (s *starter) checkParams(p taskParams) error {
	switch {
	case p.Pod != "" && checkID(p.Pod) != nil:
		return checkID(p.Pod)
	case !filepath.IsAbs(p.Runtime):
		return fmt.Errorf("runtime %q is not an absolute path: %w", p.Runtime, errdefs.ErrInvalidArgument)
	case p.OOMFile != "" && !strings.HasPrefix(filepath.Clean(p.OOMFile), "/sys/fs/cgroup/"):
		return fmt.Errorf("OOM file %q is not a cgroup's: %w", p.OOMFile, errdefs.ErrInvalidArgument)
	}
	return s.checkLockFile(p.LockFile)
}

func (v *env) checkLockFile(path string) error {
	if path != "" && !strings.HasPrefix(filepath.Clean(path), string(v.state)+"/") {
		return fmt.Errorf("lock file %q is not in the state folder: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// launch takes the task from "starting" to "running".
func (s *starter) launch(ctx context.Context, t *task) error {
	os.Remove(t.dir.pid())
	os.Remove(t.dir.exit())
	os.Remove(t.dir.oom())
	var err error
	if t.rec.OOMBase, err = oomKills(t.rec.OOMFile); err != nil {
		return err
	}
	if err := writeJSON(t.dir.record(), t.rec); err != nil {
		return err
	}
	s.step("shim.start.intent")
	release := s.driver.reaper.hold()
	defer release()
	if err := s.runTask(ctx, t); err != nil {
		return err
	}
	s.step("shim.start.runc")
	pid, err := readPid(t.dir.pid())
	if err != nil {
		return err
	}
	proc, err := s.driver.reaper.claim(pid)
	if err != nil {
		return err
	}
	return s.running(t, proc)
}

// running records the process and begins to wait for its end.
func (s *starter) running(t *task, proc child) error {
	ticks, err := startTicks(proc.pid)
	if err != nil {
		closeAll([]*os.File{proc.pidfd})
		return err
	}
	s.table.mu.Lock()
	t.pidfd = proc.pidfd
	t.rec.Pid, t.rec.StartTicks, t.rec.StartedAt, t.rec.State = proc.pid, ticks, time.Now(), stateRunning
	rec := t.rec // a kill may change it from here on
	s.table.mu.Unlock()
	// First what must survive us, then the record that relies on it: a terminal without its master is
	// lost, and then this was no start.
	s.holder.refreshKeeper(t.rec.Pod)
	s.step("shim.start.kept")
	err = writeJSON(t.dir.record(), rec)
	s.reporter.kills.add(t.rec.OOMFile)
	go func() {
		s.reporter.ended(t, exitOf(<-proc.done))
	}()
	return err
}

// startTicks reads the start time of a child of ours; 0 when it has ended and is reaped, and nobody
// will look for it. A record without it would be one of a process that is gone.
func startTicks(pid int) (uint64, error) {
	for tries := 0; ; tries++ {
		st, err := readProcStat(pid)
		if err == nil || isGone(err) {
			return st.StartTicks, nil
		}
		if tries == 50 {
			return 0, fmt.Errorf("find the start time of process %d: %w", pid, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// runTask executes the runtime's run, and once more without the option that not every runtime has.
func (s *starter) runTask(ctx context.Context, t *task) error {
	lock, err := s.driver.lockShared(ctx, t.lockFile())
	if err != nil {
		return err
	}
	defer lock.Close()
	keeper := t.rec.Keeper && !s.lacksPreserveFDs(t.rec.Runtime)
	err = s.runTaskOnce(ctx, t, lock, keeper)
	if keeper && errors.Is(err, errNoPreserveFDs) {
		log.L.WithField("runtime", t.rec.Runtime).Warn("runtime has no run --preserve-fds: what a pod's containers print, and how they end, is lost when all of cribox is killed at once")
		s.table.mu.Lock()
		s.noPreserveFDs[t.rec.Runtime] = true
		s.table.mu.Unlock()
		keeper = false
		s.holder.dropStreams(t)
		err = s.runTaskOnce(ctx, t, lock, keeper)
	}
	if err != nil && !t.shareKeyring && strings.Contains(err.Error(), "session key") && errdefs.IsResourceExhausted(err) {
		// Keys of root are a quota of the whole node, which any container without a user namespace can use up.
		log.L.WithError(err).WithField("container", t.rec.ID).Warn("no keyring is left; the task is started without one of its own")
		t.shareKeyring = true
		s.holder.dropStreams(t)
		err = s.runTaskOnce(ctx, t, lock, keeper)
	}
	return err
}

// runTaskOnce opens the task's streams and executes the runtime's run.
func (s *starter) runTaskOnce(ctx context.Context, t *task, lock *os.File, keeper bool) error {
	c := ociCommand{runtime: t.rec.Runtime, systemd: t.rec.Systemd, log: t.dir.runtimeLog(), wait: startWait,
		args: []string{"run", "--detach", "--bundle", t.dir.bundle(), "--pid-file", t.dir.pid()}}
	if keeper {
		f, err := s.holder.giveKeeper(t)
		if err != nil {
			return err
		}
		defer f.Close()
		c.args, c.extra = append(c.args, "--preserve-fds", "1"), append(c.extra, f)
	}
	if t.shareKeyring {
		c.args = append(c.args, "--no-new-keyring")
	}
	c.extra = append(c.extra, lock)
	if t.rec.Terminal {
		return s.runOnTerminal(ctx, t, c)
	}
	stdin, err := s.holder.openStdio(t)
	if err != nil {
		return err
	}
	if stdin != nil {
		defer stdin.Close()
	}
	c.stdio = [3]*os.File{stdin, t.fifos[0], t.fifos[1]}
	c.args = append(c.args, t.rec.ID)
	if !t.rec.Keeper {
		c.said = func() string { return spooled(t.dir, t.fifos[1]) }
		return s.driver.run(ctx, c)
	}
	errs, err := newErrPipe(t.rec.OwnerUID, t.rec.OwnerGID) // a pod's own process prints nothing
	if err != nil {
		return err
	}
	defer errs.close()
	c.stdio[2], c.said = errs.w, errs.text
	err = s.driver.run(ctx, c)
	if err != nil && strings.Contains(errs.text()+err.Error(), "preserve-fds") {
		err = fmt.Errorf("%w: %w", err, errNoPreserveFDs)
	}
	return err
}

// errNoPreserveFDs: the runtime does not know the option.
var errNoPreserveFDs = errors.New("no option --preserve-fds")

// lacksPreserveFDs: this runtime has refused the option before.
func (s *starter) lacksPreserveFDs(runtime string) bool {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.noPreserveFDs[runtime]
}

// runOnTerminal runs with a terminal that the runtime makes and hands over.
func (s *starter) runOnTerminal(ctx context.Context, t *task, c ociCommand) error {
	c.args = append(c.args, t.rec.ID)
	tty, err := s.driver.runWithConsole(ctx, c)
	if err != nil {
		return err
	}
	return s.holder.attachTerminal(t, tty)
}

// lockFile is the file that every runtime process of the task inherits locked.
func (t *task) lockFile() string {
	if t.rec.LockFile != "" {
		return t.rec.LockFile
	}
	return t.dir.at("lock")
}

// readPid reads a runtime's pid file.
func readPid(name string) (int, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("pid file %s says %.40q: %w", name, raw, errdefs.ErrDataLoss)
	}
	return pid, nil
}
