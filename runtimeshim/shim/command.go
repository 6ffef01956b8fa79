package shim

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/place"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// commands is what all commands in a task share, as of a state file of the runtime.
type commands struct {
	state     os.FileInfo
	container *place.Container
	why       string // nil container: why the runtime must execute them
}

// place executes the command without the runtime, which takes a tenth of the processor time. placed
// is false when the runtime must do it: place cannot do what is asked, has no seccomp filter for it,
// or has failed. Then nothing is left of the attempt. So errors about the command, such as a file
// that is missing, are always the runtime's.
func (e *execution) place(
	ctx context.Context, in *wire.Inbound, lock *os.File,
) (p procfd.Child, placed bool, err error) {
	if !e.body.Native {
		return p, false, nil
	}
	c, cmd, why := e.placeable()
	if why != "" {
		log.L.WithField("container", e.body.ID).Debugf("executing a command with the runtime: %s", why)
		return p, false, nil
	}
	pidfd, why := e.pidfd()
	if why != "" {
		return p, false, nil
	}
	defer pidfd.Close()
	cmd.Pidfd, cmd.Stdio, cmd.Lock, cmd.PidFile, cmd.Mark = pidfd, e.stdio(in), lock, e.pidFile(), e.x.driver.Mark()
	// A later shim finds the command by this name.
	if err := os.WriteFile(e.processFile(), nil, 0o600); err != nil {
		return p, false, err
	}
	e.x.step.Pass("shim.exec.place")
	why, err = e.runPlace(ctx, c, cmd)
	if err != nil { // what it has made was killed; the pid file may be empty
		return p, false, errors.Join(err, e.removePid())
	}
	if why != "" {
		log.L.WithField("container", e.body.ID).Debugf("executing a command with the runtime after an attempt: %s", why)
		return p, false, e.removePid()
	}
	e.x.step.Pass("shim.exec.placed")
	p, err = e.claim()
	return p, err == nil, err
}

// placeable returns the command, and why place cannot execute it.
func (e *execution) placeable() (*place.Container, place.Command, string) {
	var cmd place.Command
	if e.body.Terminal || e.t.rec.Terminal || e.body.Runtime != e.t.rec.Runtime {
		return nil, cmd, "a terminal or another runtime"
	}
	c, why := e.container()
	if why != "" {
		return nil, cmd, why
	}
	if p := c.Profile(); p != nil {
		key, err := p.Key(e.body.Runtime)
		if err != nil {
			return nil, cmd, err.Error()
		}
		if cmd.Filter = e.x.filters.of(key); cmd.Filter == nil {
			return nil, cmd, "the seccomp filter is not known"
		}
	}
	if c.Paused() {
		return nil, cmd, "the container is paused"
	}
	var err error
	if cmd.Process, err = place.ParseProcess(e.body.Process); err != nil {
		return nil, cmd, err.Error()
	}
	return c, cmd, place.UnableCommand(cmd.Process)
}

// container reads the spec and the runtime's state of the task, if that has changed since.
func (e *execution) container() (*place.Container, string) {
	path := e.x.state.RuncState(e.body.ID)
	now, err := os.Stat(path)
	if err != nil {
		return nil, err.Error()
	}
	have := e.t.commands.Load()
	if have != nil && os.SameFile(have.state, now) && have.state.ModTime().Equal(now.ModTime()) {
		return have.container, have.why
	}
	state, err := os.ReadFile(path) // or what has replaced it since: then the next exec reads it again
	if err != nil {
		return nil, err.Error()
	}
	config, err := os.ReadFile(e.t.dir.Config())
	if err != nil {
		return nil, err.Error()
	}
	got := &commands{state: now}
	got.container, got.why = place.NewContainer(e.body.ID, config, state)
	e.t.commands.Store(got)
	return got.container, got.why
}

// pidfd returns a copy of the pidfd of the task's first process, and why there is none.
func (e *execution) pidfd() (*os.File, string) {
	e.x.table.mu.Lock()
	defer e.x.table.mu.Unlock()
	if e.t.pidfd == nil {
		return nil, "its first process is not known"
	}
	fd, err := unix.FcntlInt(uintptr(unixfd.Of(e.t.pidfd)), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err.Error()
	}
	return procfd.FromFD(fd), ""
}

// runPlace executes a command. why says why it was not executed, when nothing of it is left; after
// an error something may be.
func (e *execution) runPlace(ctx context.Context, c *place.Container, cmd place.Command) (why string, err error) {
	job, err := c.Prepare(cmd)
	if err != nil {
		return err.Error(), nil
	}
	defer job.Close()
	return e.runJob(ctx, job)
}

// runJob runs the job of a command, see runPlace.
func (e *execution) runJob(ctx context.Context, job *place.Job) (why string, err error) {
	ws, err := e.x.driver.RunProgram(ctx, job.Argv, job.Files, oci.Command{Wait: wire.StartWait, Grace: execGrace})
	if err == nil && ws.Exited() && ws.ExitStatus() == 0 {
		return "", nil
	}
	if errors.Is(err, oci.ErrNotStarted) {
		return err.Error(), nil
	}
	// It was killed perhaps, and what it has made lives on.
	pid, noPid := job.Pid()
	if noPid == nil {
		if proc, claimErr := e.x.reaper.Claim(pid); claimErr == nil {
			killErr := e.kill(proc)
			unixfd.CloseAll([]*os.File{proc.Pidfd})
			if killErr != nil {
				return "", errors.Join(err, killErr)
			}
		} else if !procfd.Gone(claimErr) {
			return "", errors.Join(err, claimErr)
		}
	}
	if err == nil && noPid == nil && (!ws.Exited() || job.Executed()) { // it may have run, and must not run twice
		err = job.Failure()
	}
	if err != nil {
		return "", fmt.Errorf("execute natively: %w", err)
	}
	return job.Failure().Error(), nil
}

// removePid removes the pid file, if there is one.
func (e *execution) removePid() error {
	if err := os.Remove(e.pidFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
