package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/userns"
)

// RemoveContainer ends the container if it runs and forgets it (CRI RemoveContainer). Its log stays: that is the kubelet's. An unknown
// container is no error.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.Do(ctx, "removal of container "+c.id, teardownLimit, func(ctx context.Context) (string, error) {
		return "", m.removeContainer(log.WithLogger(ctx, log.G(ctx).WithField("container", c.id)), c)
	})
	return err
}

func (m *Manager) removeContainer(ctx context.Context, c *container) error {
	if err := m.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	done, err := m.turns.Take(ctx, c.id)
	if err != nil {
		return err
	}
	defer done()
	return m.discard(ctx, c)
}

// discard takes everything of a container away, its record last, in the container's turn. It may be called in any state, any number of
// times.
func (m *Manager) discard(ctx context.Context, c *container) error {
	err := m.insist(c, func(r *store.Container) error {
		r.State = store.ContainerRemoving
		return nil
	})
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("removing although it cannot be recorded")
	}
	m.step("container.removing")
	if err := m.shim.Delete(ctx, c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	if err := m.removeRoot(ctx, c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	if err := userns.Unpin(m.targetNS(c.podID, c.id)); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	err = errors.Join(m.trash.Put(ctx, m.rootPath("containers", c.id)), os.RemoveAll(m.statePath("pods", c.podID, c.id)),
		m.store.DropAsked(c.podID, c.id))
	if err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	m.step("container.trashed")
	_, err = m.store.Insist(c.podID, func(p *store.Pod) error { delete(p.Containers, c.id); return nil })
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("removed although it cannot be recorded; a restart removes it again")
	}
	m.step("container.forgotten")
	m.releaseImages(c)
	c.markExited()
	m.forgetContainer(c)
	return nil
}

// removeDir removes an empty folder: a mountpoint, which must not be emptied should it still be one.
func removeDir(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
