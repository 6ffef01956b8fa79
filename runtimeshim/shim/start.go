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

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// starter starts tasks.
type starter struct {
	env
	table    *table
	holder   *holder
	reporter *reporter
	remover  *remover
	driver   *oci.Driver
	reaper   *procfd.Reaper
	filters  *filters
	cgroups  *cgroup.Finder

	noPreserveFDs map[string]bool // runtimes whose run has no --preserve-fds; under table.mu
}

// start runs a task whose folder the client has prepared. On error only that folder is left. It
// runs to the end even if the caller disconnects: a half-started task is of no use.
func (s *starter) start(ctx context.Context, p statedir.Params) (runtimeshim.Task, error) {
	if err := errors.Join(statedir.CheckID(p.ID), s.checkParams(p)); err != nil {
		return runtimeshim.Task{}, err
	}
	ctx = context.WithoutCancel(ctx)
	t, err := s.table.insert(statedir.Record{Format: statedir.Format, Params: p, State: runtimeshim.StateStarting})
	if err != nil {
		return runtimeshim.Task{}, err
	}
	defer t.unlock()
	if err := s.launch(ctx, t); err != nil {
		err = aboutProgram(err)
		return runtimeshim.Task{}, fmt.Errorf("start task %s: %w", p.ID, errors.Join(err, s.remover.abandon(ctx, t)))
	}
	s.step.Pass("shim.start.started")
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	started := t.view()
	started.RuntimeBegan, started.RuntimeTook = t.runtimeBegan, t.runtimeTook
	return started, nil
}

// aboutProgram returns an error of a start with the class ErrInvalidArgument in place of those that
// say what is wrong with the program: the task's folder does exist.
func aboutProgram(err error) error {
	for _, class := range []error{errdefs.ErrNotFound, errdefs.ErrPermissionDenied} {
		if errors.Is(err, class) {
			text, _ := strings.CutSuffix(err.Error(), ": "+class.Error())
			return fmt.Errorf("%s: %w", text, errdefs.ErrInvalidArgument)
		}
	}
	return err
}

func (s *starter) checkParams(p statedir.Params) error {
	switch {
	case p.Pod != "" && statedir.CheckID(p.Pod) != nil:
		return statedir.CheckID(p.Pod)
	case !filepath.IsAbs(p.Runtime):
		return fmt.Errorf("runtime %q is not an absolute path: %w", p.Runtime, errdefs.ErrInvalidArgument)
	case p.OOMFile != "" && !strings.HasPrefix(filepath.Clean(p.OOMFile), "/sys/fs/cgroup/"):
		return fmt.Errorf("OOM file %q is not in a cgroup: %w", p.OOMFile, errdefs.ErrInvalidArgument)
	}
	return s.checkLockFile(p.LockFile)
}

func (v *env) checkLockFile(path string) error {
	if path != "" && !strings.HasPrefix(filepath.Clean(path), string(v.state)+"/") {
		return fmt.Errorf("lock file %q is not in the state folder: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// launch takes the task from state "starting" to "running".
func (s *starter) launch(ctx context.Context, t *task) error {
	os.Remove(t.dir.Pid())
	os.Remove(t.dir.Exit())
	os.Remove(t.dir.Oom())
	var err error
	if t.rec.OOMBase, err = cgroup.OOMKills(t.rec.OOMFile); err != nil {
		return err
	}
	if err := statedir.WriteJSON(t.dir.Record(), t.rec); err != nil {
		return err
	}
	s.reporter.kills.Expect(t.rec.OOMFile)
	s.step.Pass("shim.start.intent")
	release := s.reaper.Hold()
	defer release()
	t.runtimeBegan = time.Now()
	if err := s.runTask(ctx, t); err != nil {
		return err
	}
	t.runtimeTook = time.Since(t.runtimeBegan)
	s.step.Pass("shim.start.runc")
	pid, err := oci.ReadPid(t.dir.Pid())
	if err != nil {
		return err
	}
	proc, err := s.reaper.Claim(pid)
	if err != nil {
		return err
	}
	if err := s.running(t, proc); err != nil {
		return err
	}
	s.wantFilter(t)
	s.learn(ctx, t)
	return nil
}

// running records the process of a started task and waits in the background for its exit.
func (s *starter) running(t *task, proc procfd.Child) error {
	ticks, err := startTicks(proc.Pid)
	if err != nil {
		unixfd.CloseAll([]*os.File{proc.Pidfd})
		return err
	}
	s.table.mu.Lock()
	t.pidfd = proc.Pidfd
	t.rec.Pid, t.rec.StartTicks, t.rec.StartedAt, t.rec.State = proc.Pid, ticks, time.Now(), runtimeshim.StateRunning
	rec := t.rec // from here on a kill may change t.rec
	s.table.mu.Unlock()
	// Refresh the keeper before the record that relies on it is written: without its master a
	// terminal is lost, and then the start must count as failed.
	s.holder.refreshKeeper(t.rec.Pod)
	s.step.Pass("shim.start.kept")
	err = statedir.WriteJSON(t.dir.Record(), rec)
	s.reporter.kills.Add(t.rec.OOMFile)
	go func() {
		s.reporter.ended(t, exitOf(<-proc.Done))
	}()
	return err
}

// startTicks returns the start time of a child of ours; 0 when it has already been reaped. It
// retries other errors: a record without the start time would look like one of a process that is
// gone.
func startTicks(pid int) (uint64, error) {
	for tries := 0; ; tries++ {
		st, err := procfd.ReadStat(pid)
		if err == nil || procfd.Gone(err) {
			return st.StartTicks, nil
		}
		if tries == 50 {
			return 0, fmt.Errorf("find the start time of process %d: %w", pid, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// runTask executes the runtime's run. It retries without options that the runtime or the node does
// not support.
func (s *starter) runTask(ctx context.Context, t *task) error {
	lock, err := s.driver.LockShared(ctx, t.lockFile())
	if err != nil {
		return err
	}
	defer lock.Close()
	if placed, err := s.place(ctx, t, lock); placed || err != nil {
		return err
	}
	keeper := t.rec.Keeper && !s.lacksPreserveFDs(t.rec.Runtime)
	err = s.runTaskOnce(ctx, t, lock, keeper)
	if keeper && errors.Is(err, errNoPreserveFDs) {
		log.L.WithField("runtime", t.rec.Runtime).
			Warn("the runtime lacks run --preserve-fds: " +
				"output and exit codes are lost if all cribox processes are killed at once")
		s.table.mu.Lock()
		s.noPreserveFDs[t.rec.Runtime] = true
		s.table.mu.Unlock()
		keeper = false
		s.holder.dropStreams(t)
		err = s.runTaskOnce(ctx, t, lock, keeper)
	}
	if err != nil && !t.shareKeyring && strings.Contains(err.Error(), "session key") && errdefs.IsResourceExhausted(err) {
		// Root's keys count against a quota of the whole node, which any container without a user
		// namespace can use up.
		log.L.WithError(err).WithField("container", t.rec.ID).
			Warn("no session keyring is available; starting the task without one of its own")
		t.shareKeyring = true
		s.holder.dropStreams(t)
		err = s.runTaskOnce(ctx, t, lock, keeper)
	}
	return err
}

// runTaskOnce opens the task's streams and executes the runtime's run.
func (s *starter) runTaskOnce(ctx context.Context, t *task, lock *os.File, keeper bool) error {
	c := oci.Command{Runtime: t.rec.Runtime, Systemd: t.rec.Systemd, Log: t.dir.RuntimeLog(), Wait: wire.StartWait,
		Args: []string{"run", "--detach", "--bundle", t.dir.Bundle(), "--pid-file", t.dir.Pid()}}
	if keeper {
		f, err := s.holder.giveKeeper(t)
		if err != nil {
			return err
		}
		defer f.Close()
		c.Args, c.Extra = append(c.Args, "--preserve-fds", "1"), append(c.Extra, f)
	}
	if t.shareKeyring {
		c.Args = append(c.Args, "--no-new-keyring")
	}
	c.Extra = append(c.Extra, lock)
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
	c.Stdio = [3]*os.File{stdin, t.fifos[0], t.fifos[1]}
	c.Args = append(c.Args, t.rec.ID)
	if !t.rec.Keeper {
		c.Said = func() string { return spooled(t.dir, t.fifos[1]) }
		return s.driver.Run(ctx, c)
	}
	// The pod's own process prints nothing, so stderr is only the runtime's.
	errs, err := oci.NewStderr(t.rec.OwnerUID, t.rec.OwnerGID)
	if err != nil {
		return err
	}
	defer errs.Close()
	c.Stdio[2], c.Said = errs.W, errs.Text
	err = s.driver.Run(ctx, c)
	if err != nil && strings.Contains(errs.Text()+err.Error(), "preserve-fds") {
		err = fmt.Errorf("%w: %w", err, errNoPreserveFDs)
	}
	return err
}

// errNoPreserveFDs: the runtime does not support the option.
var errNoPreserveFDs = errors.New("no option --preserve-fds")

// lacksPreserveFDs reports whether this runtime has rejected the option before.
func (s *starter) lacksPreserveFDs(runtime string) bool {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return s.noPreserveFDs[runtime]
}

// runOnTerminal runs the task with a terminal that the runtime creates and sends to us.
func (s *starter) runOnTerminal(ctx context.Context, t *task, c oci.Command) error {
	c.Args = append(c.Args, t.rec.ID)
	tty, err := s.driver.RunWithConsole(ctx, c)
	if err != nil {
		return err
	}
	return s.holder.attachTerminal(t, tty)
}

// lockFile returns the file that every runtime process of the task inherits, locked.
func (t *task) lockFile() string {
	if t.rec.LockFile != "" {
		return t.rec.LockFile
	}
	return t.dir.At("lock")
}
