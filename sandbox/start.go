package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/cgroup"
	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/rootfs"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

const startLimit = 2 * time.Minute

// StartContainer starts a created container (CRI StartContainer). A start that fails leaves a
// container that has exited with code 128 and reason StartError, as the kubelet expects to find it.
// ErrUnavailable, and a machine that lacks room or descriptors for the start, leave it created, so
// that it can be started again. ErrFailedPrecondition when the container is not in state created.
func (cs *containers) StartContainer(ctx context.Context, id string) error {
	c, err := cs.table.FindContainer(id)
	if err != nil {
		return err
	}
	_, err = cs.flights.Do(ctx, "start of container "+c.ID, startLimit, func(ctx context.Context) (string, error) {
		return "", cs.startContainer(aboutContainer(ctx, cs, c), c)
	})
	return err
}

func (cs *containers) startContainer(ctx context.Context, c *table.ContainerEntry) error {
	done, err := turnOf(ctx, cs, c)
	if err != nil {
		return err
	}
	defer done()
	p, _ := cs.table.ByID(c.PodID)
	if p == nil {
		return fmt.Errorf("start container %s: pod %s: %w", c.ID, c.PodID, errdefs.ErrNotFound)
	}
	if err := errors.Join(table.Known(c.Lacks), table.Known(p.Lacks)); err != nil {
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	if err := rootfs.MakeLogFolder(p, c); err != nil { // made at its creation, and taken away since
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	if err := do(ctx, "record of the start", func() error { return cs.states.Starting(c) }); err != nil {
		return err
	}
	cs.step.Pass("container.starting")
	var task runtimeshim.Task
	err = activity.Do(ctx, "start", func(ctx context.Context) (err error) {
		task, err = cs.launch(ctx, c)
		return err
	})
	switch {
	case err == nil:
		cs.step.Pass("container.started")
		return cs.declareRunning(ctx, c, task)
	case errors.Is(err, errdefs.ErrUnavailable) || exhausted(err):
		return cs.startUnanswered(ctx, c, err)
	}
	cs.startFailed(ctx, c, err)
	return err
}

// resolveLimit is how long a start that nobody answered may take to be found out.
const resolveLimit = 30 * time.Second

// startUnanswered returns what became of a start for which shim or logger had no answer, or for
// which the node had no room. That may pass: were the container an exited one for that, a pod that
// restarts nothing had failed.
func (cs *containers) startUnanswered(ctx context.Context, c *table.ContainerEntry, cause error) error {
	err := clean(ctx, resolveLimit, func(ctx context.Context) error { return cs.resolve(ctx, c) })
	if err != nil {
		// the shim may still come to it
		go retryUntilDone(aboutContainer(cs.background, cs, c), "starting",
			func(ctx context.Context) error { return cs.shim.Delete(ctx, c.ID) })
		cs.startFailed(ctx, c, cause)
		return fmt.Errorf("%v; cannot find out whether it was started: %v: %w", cause, err, errdefs.ErrInternal)
	}
	if r, ok := cs.states.Record(c); ok && r.State == store.ContainerCreated {
		return cause
	}
	return nil
}

// exhausted says whether the machine had no more of something, and may have it later.
func exhausted(err error) bool {
	return slices.ContainsFunc([]error{errdefs.ErrResourceExhausted, unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE,
		unix.ENOMEM},
		func(lack error) bool { return errors.Is(err, lack) })
}

// launch asks the shim.
func (cs *containers) launch(ctx context.Context, c *table.ContainerEntry) (runtimeshim.Task, error) {
	p, ok := cs.states.Get(c.PodID)
	if !ok {
		return runtimeshim.Task{}, fmt.Errorf("pod %s: %w", c.PodID, errdefs.ErrNotFound)
	}
	h, err := cs.node.Handler(p.Handler)
	if err != nil {
		return runtimeshim.Task{}, err
	}
	spec, err := os.ReadFile(cs.layout.SpecPath(c.PodID, c.ID))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable) // it may be read later
	}
	if err != nil {
		return runtimeshim.Task{}, fmt.Errorf("spec of container %s: %w", c.ID, err)
	}
	saved, file := spec, cs.layout.SpecPath(c.PodID, c.ID)
	if spec, err = cs.pins.WithoutNumbers(ctx, p, c, spec); err != nil {
		return runtimeshim.Task{}, fmt.Errorf("spec of container %s: %w", c.ID, err)
	}
	if !bytes.Equal(spec, saved) {
		file = ""
	}
	if _, err := cs.pins.Target(c); err != nil {
		return runtimeshim.Task{}, fmt.Errorf("start container %s: %w", c.ID, err)
	}
	rec := p.Containers[c.ID]
	start := runtimeshim.Start{ID: c.ID, Pod: c.PodID, Runtime: h.Path, Spec: spec, SpecFile: file, LogPath: rec.LogPath,
		LogLimit: h.LogLimit,
		OOMFile:  oomFile(rec.Cgroup, cs.node.Host().CgroupV2), SystemdCgroup: node.MadeBySystemd(rec.Cgroup),
		Terminal: c.Config.GetTty(), Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(),
		LockFile: cs.layout.LockPath(c.PodID), NativeExec: cs.node.ExecNatively(p.Handler)}
	root := cs.table.RootIn(c.PodID)
	start.OwnerUID, start.OwnerGID = root.UID, root.GID
	task, err := cs.shim.Start(ctx, start)
	if err != nil {
		return task, fmt.Errorf("start container %s: %w", c.ID, err)
	}
	return task, nil
}

// startFailed records it, and gives up what the container held.
func (cs *containers) startFailed(ctx context.Context, c *table.ContainerEntry, cause error) {
	if err := cs.states.StartFailed(c, cause); err != nil {
		log.G(ctx).WithError(err).Warn("cannot record that the container did not start")
	}
	c.MarkExited()
	_ = clean(ctx, releaseLimit, func(ctx context.Context) error { cs.endings.release(ctx, c); return nil })
}

// declareRunning shows the container, unless its exit was faster.
func (cs *containers) declareRunning(ctx context.Context, c *table.ContainerEntry, task runtimeshim.Task) error {
	err := cs.states.Running(c, task.Pid, task.StartedAt)
	if errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	warn(ctx, err) // a full disk does not make it any less running
	cs.step.Pass("container.running")
	return nil
}

// ReopenLog makes the logger continue in a new file at the container's log path (CRI
// ReopenContainerLog). On error no new file exists.
func (cs *containers) ReopenLog(ctx context.Context, id string) error {
	c, err := cs.table.Container(id)
	if err != nil {
		return err
	}
	if !c.Running() {
		return fmt.Errorf("container %s is %s: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	if c.LogPath == "" {
		return nil
	}
	err = cs.shim.ReopenLog(ctx, c.ID)
	if errors.Is(err, errdefs.ErrNotFound) { // the folder, not the container that was asked for
		return fmt.Errorf("reopen the log of container %s: %v: %w", c.ID, err, errdefs.ErrInternal)
	}
	return err
}

// oomFile returns the file in which the kernel counts the processes of the cgroup that it killed
// for want of memory.
func oomFile(of string, v2 bool) string {
	if v2 {
		return filepath.Join(cgroup.Mount, of, "memory.events")
	}
	return filepath.Join(cgroup.Mount, "memory", of, "memory.oom_control")
}
