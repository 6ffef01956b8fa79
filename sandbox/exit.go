package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/store"
)

const settleLimit = time.Minute

// onExit takes an exit from the shim's client: at least once for each task that ended, after its output was written. It only has it
// recorded; what an ended container still holds is released beside that, in the container's turn.
func (m *Manager) onExit(ctx context.Context, t runtimeshim.Task) {
	if t.Exit == nil {
		return
	}
	select {
	case <-m.open: // until then recovery looks at every task itself
	case <-ctx.Done():
		return
	}
	m.mu.RLock()
	c, isContainer := m.containers[t.ID]
	p, isPod := m.pods[t.ID]
	m.mu.RUnlock()
	switch {
	case isContainer:
		m.exits.add(ctx, c.podID, func() { m.containerExited(ctx, c, t) })
	case isPod:
		m.exits.add(ctx, p.id, func() { m.pauseExited(ctx, p) })
	}
}

func (m *Manager) containerExited(ctx context.Context, c *container, t runtimeshim.Task) {
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container", c.id))
	err := m.insist(c, func(r *store.Container) error {
		if r.State == store.ContainerExited || r.State == store.ContainerRemoving {
			return errdefs.ErrAlreadyExists
		}
		if r.PID != 0 && t.Pid != 0 && r.PID != t.Pid {
			return errdefs.ErrNotFound // of an earlier start
		}
		r.State, r.ExitCode, r.Finished = store.ContainerExited, t.Exit.Code, t.Exit.At.UnixNano()
		if r.Started == 0 {
			r.Started = t.StartedAt.UnixNano()
		}
		r.Finished = max(r.Finished, r.Started+1)
		r.Reason, r.Message = reason(*t.Exit)
		return nil
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return
	}
	if err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
		log.G(ctx).WithError(err).Warn("exit cannot be written down; it is known until a restart")
	}
	m.step("container.exited")
	c.markExited()
	go m.settle(ctx, c)
}

// reason is the word that the kubelet shows for an exit. Only a kill can be the kernel's for want of memory: a child that was killed so does
// not taint a clean exit of its parent.
func reason(e runtimeshim.Exit) (word, message string) {
	switch {
	case !e.Known:
		return "Unknown", "the exit code was lost with the process that waited for it"
	case e.OOMKilled && e.Code == 137:
		return "OOMKilled", ""
	case e.Code == 0:
		return "Completed", ""
	default:
		return "Error", ""
	}
}

// settle gives back what an exited container holds but its writable layer and its log: cgroup, runtime state and mount.
func (m *Manager) settle(ctx context.Context, c *container) {
	err := guard.Call(ctx, "release of a container", func() error {
		return clean(ctx, settleLimit, func(ctx context.Context) error { return m.releaseInTurn(ctx, c) })
	})
	if err != nil {
		log.G(ctx).WithError(err).Warn("an exited container keeps its mount until it is removed")
	}
}

func (m *Manager) releaseInTurn(ctx context.Context, c *container) error {
	done, err := m.turns.Take(ctx, c.id)
	if err != nil {
		return err
	}
	defer done()
	m.release(ctx, c)
	return nil
}

// release is settle's work, in the container's turn. What fails is done again by discard.
func (m *Manager) release(ctx context.Context, c *container) {
	if r, ok := m.record(c); !ok || r.State != store.ContainerExited {
		return
	}
	released := m.shim.Release(ctx, c.id)
	if errors.Is(released, errdefs.ErrNotFound) {
		released = nil // it never had a process
	}
	if err := errors.Join(released, m.unmountRoot(ctx, c.id)); err != nil {
		log.G(ctx).WithError(err).Warn("an exited container is not released yet; its removal tries again")
	}
}

// pauseExited turns a pod whose pause process ended into one that is not ready, without waiting for anybody to ask; the kubelet stops and
// replaces it. A pod that is being made is left to its maker, who looks at paused.
func (m *Manager) pauseExited(ctx context.Context, p *pod) {
	p.markPaused()
	_, err := m.store.Insist(p.id, func(r *store.Pod) error {
		if !ready(r) {
			return errdefs.ErrNotFound // nothing to say
		}
		r.PausePID = 0
		log.G(ctx).WithField("pod", p.id).Warn("the pause process ended; the pod is not ready any more")
		return nil
	})
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithField("pod", p.id).WithError(err).Warn("cannot record that the pause process ended")
	}
}
