package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/rootfs"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

const releaseLimit = time.Minute

// endings records how containers end, and gives back what an ended one still holds.
type endings struct {
	states *table.States
	mounts *rootfs.Mounts
	shim   Runtime
	turns  *keyed.Turns // by container
	step   step.Hook
}

// onExit takes an exit from the shim's client: at least once for each task that ended, after its
// output was written. It only has it recorded; what an ended container still holds is released
// beside that, in the container's turn.
func (m *Manager) onExit(ctx context.Context, t runtimeshim.Task) {
	if t.Exit == nil {
		return
	}
	select {
	case <-m.open: // until then recovery looks at every task itself
	case <-ctx.Done():
		return
	}
	switch p, c := m.table.ByID(t.ID); {
	case c != nil:
		m.record(ctx, c.PodID, func() { m.endings.exited(ctx, c, t) })
	case p != nil:
		m.record(ctx, p.ID, func() { m.pods.pauseExited(ctx, p) })
	}
}

// record runs act after the acts of the pod's earlier exits. No pod waits for the record of another,
// which may hang with the disk.
func (m *Manager) record(ctx context.Context, pod string, act func()) {
	m.exits.Add(pod, func() {
		if ctx.Err() == nil { // otherwise the shim reports the exit to the next daemon
			guard.Run(ctx, "the record of an exit", act)
		}
	})
}

// closeLimit is how long Close waits for exits that are being recorded.
const closeLimit = 5 * time.Second

func (m *Manager) waitForExits() error {
	if !m.exits.Wait(closeLimit) {
		return errors.New("the record of an exit cannot be written because the disk does not answer; " +
			"the next start will record it")
	}
	return nil
}

func (e *endings) exited(ctx context.Context, c *table.ContainerEntry, t runtimeshim.Task) {
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container", c.ID))
	word, message := reason(*t.Exit)
	err := e.states.Exited(c, table.Ending{PID: t.Pid, Started: t.StartedAt, At: t.Exit.At, Code: t.Exit.Code,
		Reason: word, Message: message})
	if errors.Is(err, errdefs.ErrNotFound) {
		return
	}
	if err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) {
		log.G(ctx).WithError(err).Warn("cannot record an exit; it is lost if the daemon restarts")
	}
	if !errors.Is(err, errdefs.ErrAlreadyExists) {
		telemetry.Add(ctx, telemetry.Exits, word, 1)
	}
	e.step.Pass("container.exited")
	c.MarkExited()
	go e.releaseLater(ctx, c)
}

// reason is the word that the kubelet shows for an exit. Only a kill can be the kernel's for want
// of memory: a child that was killed so does not taint a clean exit of its parent.
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

// releaseLater gives back what an exited container holds but its writable layer and its log:
// cgroup, runtime state and mount.
func (e *endings) releaseLater(ctx context.Context, c *table.ContainerEntry) {
	err := guard.Call(ctx, "release of a container", func() error {
		return clean(ctx, releaseLimit, func(ctx context.Context) error { return e.releaseInTurn(ctx, c) })
	})
	if err != nil {
		log.G(ctx).WithError(err).Warn("an exited container keeps its mount until it is removed")
	}
}

func (e *endings) releaseInTurn(ctx context.Context, c *table.ContainerEntry) error {
	done, err := e.turns.Take(ctx, c.ID)
	if err != nil {
		return err
	}
	defer done()
	e.release(ctx, c)
	return nil
}

// release is releaseLater's work, in the container's turn. What fails is done again by discard.
func (e *endings) release(ctx context.Context, c *table.ContainerEntry) {
	if r, ok := e.states.Record(c); !ok || r.State != store.ContainerExited {
		return
	}
	released := e.shim.Release(ctx, c.ID)
	if errors.Is(released, errdefs.ErrNotFound) {
		released = nil // it never had a process
	}
	if err := errors.Join(released, e.mounts.Unmount(ctx, c.ID)); err != nil {
		log.G(ctx).WithError(err).Warn("cannot release an exited container yet; its removal will retry")
	}
}

// pauseExited turns a pod whose pause process ended into one that is not ready, without waiting for
// anybody to ask; the kubelet stops and replaces it. A pod that is being made is left to its maker,
// who looks at paused.
func (ps *pods) pauseExited(ctx context.Context, p *table.PodEntry) {
	p.MarkPaused()
	err := ps.states.PodPauseEnded(p.ID)
	if errors.Is(err, errdefs.ErrNotFound) {
		return
	}
	entry := log.G(ctx).WithField("pod", p.ID)
	entry.Warn("the pause process exited; the pod is no longer ready")
	if err != nil {
		entry.WithError(err).Warn("cannot record that the pause process ended")
	}
}

// lost records a container that ended while nobody could see it.
func (e *endings) lost(ctx context.Context, c *table.ContainerEntry) {
	r, _ := e.states.Record(c)
	t := runtimeshim.Task{ID: c.ID, StartedAt: time.Unix(0, max(r.Started, r.Created)),
		Exit: &runtimeshim.Exit{Code: 255, At: time.Now()}}
	e.exited(ctx, c, t)
}
