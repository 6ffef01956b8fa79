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

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/store"
)

const startLimit = 2 * time.Minute

// startError is the reason of a container that had no process (CRI ContainerStatus.reason, as the kubelet knows it).
const startError = "StartError"

// StartContainer starts a created container (CRI StartContainer). A start that fails leaves a container that has exited with code 128 and
// reason StartError, as the kubelet expects to find it. ErrUnavailable, and a machine that lacks room or descriptors for the start, leave it
// created, so that it can be started again.
// ErrFailedPrecondition when the container is not in state created.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	_, err = m.flights.Do(ctx, "start of container "+c.id, startLimit, func(ctx context.Context) (string, error) {
		return "", m.startContainer(log.WithLogger(ctx, log.G(ctx).WithField("container", c.id)), c)
	})
	return err
}

func (m *Manager) startContainer(ctx context.Context, c *container) error {
	done, err := m.turns.Take(ctx, c.id)
	if err != nil {
		return err
	}
	defer done()
	if p, err := m.findPod(c.podID); err == nil {
		if err := m.makeLogFolder(p, c); err != nil { // made at its creation, and taken away since
			return fmt.Errorf("start container %s: %w", c.id, err)
		}
	}
	if err := errors.Join(known(c.lacks), m.knownPod(c.podID)); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if err := m.declareStarting(c); err != nil {
		return err
	}
	m.step("container.starting")
	task, err := m.launch(ctx, c)
	switch {
	case err == nil:
		m.step("container.started")
		return m.declareRunning(ctx, c, task)
	case errors.Is(err, errdefs.ErrUnavailable) || exhausted(err):
		return m.startUnanswered(ctx, c, err)
	}
	m.startFailed(ctx, c, err)
	return err
}

// resolveLimit is how long a start that nobody answered may take to be found out.
const resolveLimit = 30 * time.Second

// startUnanswered returns what became of a start for which shim or logger had no answer, or for which the node had no room. That may pass:
// were the container an exited one for that, a pod that restarts nothing had failed.
func (m *Manager) startUnanswered(ctx context.Context, c *container, cause error) error {
	err := clean(ctx, resolveLimit, func(ctx context.Context) error { return m.resolve(ctx, c) })
	if err != nil {
		go m.finish(m.background, "starting", func(ctx context.Context) error { return m.shim.Delete(ctx, c.id) }) // the shim may still come to it
		m.startFailed(ctx, c, cause)
		return fmt.Errorf("%v; nor could be found out what became of it: %v: %w", cause, err, errdefs.ErrInternal)
	}
	if r, ok := m.record(c); ok && r.State == store.ContainerCreated {
		return cause
	}
	return nil
}

// exhausted says whether the machine had no more of something, and may have it later.
func exhausted(err error) bool {
	return slices.ContainsFunc([]error{errdefs.ErrResourceExhausted, unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM},
		func(lack error) bool { return errors.Is(err, lack) })
}

// startFailed records it, and gives up what the container held.
func (m *Manager) startFailed(ctx context.Context, c *container, cause error) {
	m.recordStartError(ctx, c, cause)
	_ = clean(ctx, settleLimit, func(ctx context.Context) error { m.release(ctx, c); return nil })
}

func (m *Manager) declareStarting(c *container) error {
	_, err := m.store.Update(c.podID, func(p *store.Pod) error {
		r, ok := p.Containers[c.id]
		if !ok {
			return fmt.Errorf("container %s: %w", c.id, errdefs.ErrNotFound)
		}
		if r.State != store.ContainerCreated {
			return fmt.Errorf("container %s is %s, only a created one can be started: %w", c.id, r.State, errdefs.ErrFailedPrecondition)
		}
		if !ready(p) {
			return fmt.Errorf("pod %s is not ready: %w", p.ID, errdefs.ErrFailedPrecondition)
		}
		r.State = store.ContainerStarting
		p.Containers[c.id] = r
		return nil
	})
	return err
}

// launch asks the shim.
func (m *Manager) launch(ctx context.Context, c *container) (runtimeshim.Task, error) {
	p, ok := m.store.Get(c.podID)
	if !ok {
		return runtimeshim.Task{}, fmt.Errorf("pod %s: %w", c.podID, errdefs.ErrNotFound)
	}
	h, err := m.handler(p.Handler)
	if err != nil {
		return runtimeshim.Task{}, err
	}
	spec, err := m.specFile(c)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable) // it may be read later
	}
	if err != nil {
		return runtimeshim.Task{}, fmt.Errorf("spec of container %s: %w", c.id, err)
	}
	saved, file := spec, m.specPath(c)
	if spec, err = m.withoutNumbers(ctx, p, c, spec); err != nil {
		return runtimeshim.Task{}, fmt.Errorf("spec of container %s: %w", c.id, err)
	}
	if !bytes.Equal(spec, saved) {
		file = ""
	}
	if _, err := m.target(c); err != nil {
		return runtimeshim.Task{}, fmt.Errorf("start container %s: %w", c.id, err)
	}
	rec := p.Containers[c.id]
	start := runtimeshim.Start{ID: c.id, Pod: c.podID, Runtime: h.Path, Spec: spec, SpecFile: file, LogPath: rec.LogPath, LogLimit: h.LogLimit,
		OOMFile: m.oomFile(rec.Cgroup), SystemdCgroup: madeBySystemd(rec.Cgroup),
		Terminal: c.config.GetTty(), Stdin: c.config.GetStdin(), StdinOnce: c.config.GetStdinOnce(), LockFile: m.lockPath(c.podID)}
	root := m.rootIn(c.podID)
	start.OwnerUID, start.OwnerGID = root.uid, root.gid
	task, err := m.shim.Start(ctx, start)
	if err != nil {
		return task, fmt.Errorf("start container %s: %w", c.id, err)
	}
	return task, nil
}

func (m *Manager) recordStartError(ctx context.Context, c *container, cause error) {
	err := m.insist(c, func(r *store.Container) error {
		if r.State == store.ContainerExited {
			return nil // it ran, and its end is told
		}
		r.State, r.ExitCode, r.Reason, r.Message = store.ContainerExited, 128, startError, cause.Error()
		r.Started = time.Now().UnixNano() // not m.now: a kubelet waits for so long after an end before it tries again
		r.Finished = r.Started + 1
		return nil
	})
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot record that the container did not start")
	}
	c.markExited()
}

// declareRunning shows the container, unless its exit was faster.
func (m *Manager) declareRunning(ctx context.Context, c *container, task runtimeshim.Task) error {
	err := m.insist(c, func(r *store.Container) error {
		r.PID, r.Started = task.Pid, task.StartedAt.UnixNano()
		if r.State == store.ContainerStarting {
			r.State = store.ContainerRunning
		}
		if r.Finished != 0 {
			r.Finished = max(r.Finished, r.Started+1)
		}
		return nil
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	m.log(ctx, err) // a full disk does not make it any less running
	m.step("container.running")
	return nil
}

// ReopenLog makes the logger continue in a new file at the container's log path (CRI ReopenContainerLog). On error no new file exists.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.Container(id)
	if err != nil {
		return err
	}
	if !c.Running() {
		return fmt.Errorf("container %s is %s: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	if c.LogPath == "" {
		return nil
	}
	err = m.shim.ReopenLog(ctx, c.ID)
	if errors.Is(err, errdefs.ErrNotFound) { // the folder, not the container that was asked for
		return fmt.Errorf("reopen the log of container %s: %v: %w", c.ID, err, errdefs.ErrInternal)
	}
	return err
}

// oomFile returns the file in which the kernel counts the processes of the cgroup that it killed for want of memory.
func (m *Manager) oomFile(cgroup string) string {
	if m.host.CgroupV2 {
		return filepath.Join(cgroupRoot, cgroup, "memory.events")
	}
	return filepath.Join(cgroupRoot, "memory", cgroup, "memory.oom_control")
}
