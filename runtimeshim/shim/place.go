package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/place"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/systemd"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// place starts a task without its runtime, which takes a tenth of the processor time. It
// returns false when the runtime must do it: place cannot do what the spec asks, has no seccomp
// filter for it yet, or has failed. Then nothing is left of the attempt.
func (s *starter) place(ctx context.Context, t *task, lock *os.File) (placed bool, err error) {
	spec, why := s.placeable(t)
	if why != "" {
		log.L.WithField("container", t.rec.ID).Debugf("starting it with the runtime: %s", why)
		return false, nil
	}
	if spec == nil {
		return false, nil
	}
	start := place.Start{ID: t.rec.ID, Spec: spec, Lock: lock, PidFile: t.dir.Pid(), Mark: s.driver.Mark()}
	key, err := s.keyOf(t, spec)
	if err != nil {
		return false, nil
	}
	if key != nil {
		if start.Filter = s.filters.of(*key); start.Filter == nil {
			t.unfiltered = key
			return false, nil
		}
	}
	err = s.runPlace(ctx, t, start)
	if err == nil {
		return true, nil
	}
	log.L.WithError(err).WithField("container", t.rec.ID).Warn("cannot start a pod natively; the runtime tries it now")
	return false, s.unplace(ctx, t)
}

// placeable returns the spec of a task that place is asked to start, and why it cannot.
func (s *starter) placeable(t *task) (*specs.Spec, string) {
	if !t.rec.Native || !t.rec.Keeper || t.rec.Stdin || t.rec.Terminal {
		return nil, ""
	}
	raw, err := os.ReadFile(t.dir.Config())
	if err != nil {
		return nil, err.Error()
	}
	spec, err := place.Parse(raw)
	if err != nil {
		return nil, err.Error()
	}
	if why := place.Unable(spec); why != "" {
		return nil, why
	}
	return spec, place.UnableHere(spec)
}

// runPlace makes the task's cgroups and starts its process in them.
func (s *starter) runPlace(ctx context.Context, t *task, start place.Start) error {
	keeper, err := s.holder.giveKeeper(t)
	if err != nil {
		return err
	}
	defer keeper.Close()
	if _, err := s.holder.openStdio(t); err != nil {
		return err
	}
	start.Keeper, start.Stdio = keeper, [3]*os.File{nil, t.fifos[0], t.fifos[1]}
	job, err := place.Prepare(start)
	if err != nil {
		return err
	}
	defer job.Close()
	s.step.Pass("shim.place.cgroups")
	c := oci.Command{Wait: wire.PlaceWait}
	if (job.Scope != nil) != t.rec.Systemd {
		return errors.New("linux.cgroupsPath does not fit who makes cgroups")
	}
	if job.Scope != nil {
		c.Begun = func(ctx context.Context, proc procfd.Child) error { return s.admit(ctx, job, proc) }
	}
	ws, err := s.driver.RunProgram(ctx, job.Argv, job.Files, c)
	switch {
	case err != nil: // it was killed then, or had failed before
		return fmt.Errorf("%w; %w", err, job.Failure())
	case !ws.Exited() || ws.ExitStatus() != 0:
		return job.Failure()
	}
	return nil
}

// admit has systemd put the program of a job into its scope, and lets it go on. Whoever speaks on the
// bus can say that systemd's job has ended; Admit sees for itself where the program is.
func (s *starter) admit(ctx context.Context, job *place.Job, proc procfd.Child) error {
	if proc.Pidfd == nil {
		return unix.ESRCH
	}
	if err := procfd.StillHas(proc.Pidfd, proc.Pid); err != nil {
		return err
	}
	if err := systemd.Start(ctx, *job.Scope, proc.Pid); err != nil {
		return err
	}
	// While it is not reaped, the pid was its own all the time.
	if err := procfd.StillHas(proc.Pidfd, proc.Pid); err != nil {
		return err
	}
	s.step.Pass("shim.place.scope")
	return job.Admit(proc.Pid)
}

// unplace removes what an attempt of place has left.
func (s *starter) unplace(ctx context.Context, t *task) error {
	s.holder.dropStreams(t)
	if err := os.Remove(t.dir.Pid()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dirs, err := s.cgroups.Of(t.dir, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wire.DeathWait)
	defer cancel()
	s.stopScope(ctx, t, dirs)
	return cgroup.Remove(ctx, dirs)
}

// scopeWait is how long systemd may take to forget a scope. It gives processes that are left in one a
// minute and a half to end by SIGTERM; we do not.
const scopeWait = 3 * time.Second

// stopScope has systemd forget the scope of a task that has ended, if its cgroup is there yet: whoever
// removes that may be faster than systemd, which would then have to notice. The runtime's delete
// does the same. If it fails, the cgroup is removed all the same.
func (v *env) stopScope(ctx context.Context, t *task, dirs []string) {
	if !t.rec.Systemd || !systemd.Runs() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, scopeWait)
	defer cancel()
	for _, dir := range dirs {
		if _, err := os.Lstat(dir); err != nil || filepath.Ext(dir) != ".scope" {
			continue
		}
		if err := systemd.Stop(ctx, filepath.Base(dir)); err != nil {
			log.L.WithError(err).WithField("container", t.rec.ID).Warn("systemd may show a scope that has ended")
		}
		return
	}
}

// wantFilter notes the seccomp profile of a container in which commands will be executed.
func (s *starter) wantFilter(t *task) {
	if !t.rec.NativeExec || t.rec.Keeper {
		return
	}
	raw, err := os.ReadFile(t.dir.Config())
	if err != nil {
		return
	}
	spec, err := place.Parse(raw)
	if err != nil {
		return
	}
	if key, err := s.keyOf(t, spec); err == nil && key != nil {
		t.unfiltered = key
	}
}

// keyOf returns the key of a task's seccomp profile, nil if it has none.
func (s *starter) keyOf(t *task, spec *specs.Spec) (*place.Key, error) {
	profile, err := place.ProfileOf(spec)
	if err != nil || profile == nil {
		return nil, err
	}
	key, err := profile.Key(t.rec.Runtime)
	return &key, err
}

// learn takes the seccomp filter of a process that the runtime has started, for later pods or for
// commands. Nobody waits for it.
func (s *starter) learn(ctx context.Context, t *task) {
	if t.unfiltered == nil || t.pidfd == nil || !s.filters.wants(*t.unfiltered) {
		return
	}
	key, lockFile, id := *t.unfiltered, t.lockFile(), t.rec.ID
	pidfd, err := unix.FcntlInt(uintptr(unixfd.Of(t.pidfd)), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return
	}
	go func() {
		defer helper.Survive()
		f := procfd.FromFD(pidfd)
		defer f.Close()
		filter, err := s.takeFilter(ctx, id, lockFile, f)
		switch {
		case err == nil:
			s.filters.taken(key, filter)
		case !unixfd.Readable(unixfd.Of(f)): // that it has ended says nothing of the profile
			log.L.WithError(err).Info("cannot read the seccomp filter of a process; " +
				"what has its profile is started by the runtime")
			s.filters.failure(key)
		}
		s.step.Pass("shim.place.filter")
	}()
}

// takeFilter reads the seccomp filter of a process. It is a child of ours, but a program of its own
// traces it: the reaper would take the stop of a process that this one traces for an exit.
func (s *starter) takeFilter(ctx context.Context, id, lockFile string, pidfd *os.File) (*place.Filter, error) {
	state, err := os.ReadFile(s.state.RuncState(id))
	if err != nil {
		return nil, err
	}
	flags, err := place.FlagsIn(state)
	if err != nil {
		return nil, err
	}
	lock, err := s.driver.LockShared(ctx, lockFile)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	pid, err := procfd.PidOf(pidfd)
	if err != nil {
		return nil, err
	}
	job, err := place.Take(pid, lock, s.driver.Mark())
	if err != nil {
		return nil, err
	}
	defer job.Close()
	ws, err := s.driver.RunProgram(ctx, job.Argv, job.Files, oci.Command{Wait: wire.RequestWait})
	if err != nil {
		return nil, err
	}
	if !ws.Exited() || ws.ExitStatus() != 0 {
		return nil, job.Failure()
	}
	// While it is not reaped, the pid was its own all the time.
	if err := procfd.StillHas(pidfd, pid); err != nil {
		return nil, fmt.Errorf("the pod has ended: %w", err)
	}
	code, err := job.Found()
	return &place.Filter{Flags: flags, Code: code}, err
}
