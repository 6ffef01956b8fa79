package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/sandbox/table"
	"github.com/cribox/cribox/sandbox/userns"
)

// RemoveContainer ends the container if it runs and forgets it (CRI RemoveContainer). Its log
// stays: that is the kubelet's. An unknown container is no error.
func (cs *containers) RemoveContainer(ctx context.Context, id string) error {
	c, err := cs.table.FindContainer(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = cs.flights.Do(ctx, "removal of container "+c.ID, teardownLimit, func(ctx context.Context) (string, error) {
		return "", cs.removeContainer(aboutContainer(ctx, cs, c), c)
	})
	return err
}

func (cs *containers) removeContainer(ctx context.Context, c *table.ContainerEntry) error {
	ctx = aboutContainer(ctx, cs, c)
	if err := cs.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	done, err := turnOf(ctx, cs, c)
	if err != nil {
		return err
	}
	defer done()
	return activity.Do(ctx, "removal", func(ctx context.Context) error { return cs.discard(ctx, c) })
}

// discard takes everything of a container away, its record last, in the container's turn. It may be
// called in any state, any number of times.
func (cs *containers) discard(ctx context.Context, c *table.ContainerEntry) error {
	err := cs.states.Removing(c)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("cannot record a removal; removing anyway")
	}
	cs.step.Pass("container.removing")
	if err := cs.shim.Delete(ctx, c.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	if err := cs.mounts.Remove(ctx, c.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	if err := userns.Unpin(cs.layout.TargetNS(c.PodID, c.ID)); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	err = errors.Join(cs.mounts.Discard(ctx, c.ID), os.RemoveAll(cs.layout.StatePath("pods", c.PodID, c.ID)),
		cs.states.DropAsked(c))
	if err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	cs.step.Pass("container.trashed")
	err = cs.states.Forgotten(c)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("cannot record that a container was removed; a restart removes it again")
	}
	cs.step.Pass("container.forgotten")
	cs.mounts.Release(c)
	c.MarkExited()
	cs.table.ForgetContainer(c)
	cs.activity.Forget(containerKind, c.ID)
	return nil
}
