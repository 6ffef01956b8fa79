package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// StopPod ends everything that runs in the pod and gives its network back (CRI StopPodSandbox). A
// pod that is stopped or unknown is no error. A network plugin that fails does not hold the pod up:
// what it owes is remembered and asked for again until it is given.
func (ps *pods) StopPod(ctx context.Context, id string) error {
	p, err := ps.table.FindPod(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = ps.flights.Do(ctx, "stop of pod "+p.ID, teardownLimit, func(ctx context.Context) (string, error) {
		return "", ps.stopPod(ps.about(ctx, p), p)
	})
	return err
}

func (ps *pods) stopPod(ctx context.Context, p *table.PodEntry) error {
	was, err := ps.states.PodStopping(p.ID)
	if errors.Is(err, errdefs.ErrNotFound) || was == store.PodNotReady {
		return nil
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot record a stop; stopping anyway")
	}
	ps.step.Pass("pod.stopping")
	done, err := ps.turns.Take(ctx, p.ID)
	if err != nil {
		return err
	}
	defer done()
	if _, ok := ps.states.Get(p.ID); !ok {
		return nil // removed while this stop waited for its turn
	}
	if err := ps.teardown(ctx, p, was); err != nil {
		return err
	}
	ps.declareStopped(ctx, p)
	return nil
}

// declareStopped shows that nothing of the pod runs any more. One that is being removed stays so.
func (ps *pods) declareStopped(ctx context.Context, p *table.PodEntry) {
	err := ps.states.PodStopped(p.ID)
	if err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("cannot record that a pod was stopped")
	}
}

// teardown takes away everything of a pod that is not its record: processes, network, mounts. It
// may be called in any state, any number of times, and returns nil when nothing is left but what
// the network plugins owe. Its caller has the pod's turn: of a stop and a removal side by side, the
// second would take the first one's plugin for one that nobody waits for. was is the pod's state
// before its stop or removal was recorded.
func (ps *pods) teardown(ctx context.Context, p *table.PodEntry, was string) error {
	err := activity.Wait(ctx, "stop of the containers", func(ctx context.Context) error { return ps.stopAll(ctx, p) })
	if err != nil {
		return fmt.Errorf("stop the containers of pod %s: %w", p.ID, err)
	}
	err = activity.Do(ctx, "teardown", func(ctx context.Context) error { return ps.endPause(ctx, p, was) })
	if err != nil {
		return err
	}
	ps.step.Pass("pod.unplugged")
	image := ""
	if r, ok := ps.states.Get(p.ID); ok {
		image = r.PauseImage
	}
	return do(ctx, "removal of files", func() error {
		if err := ps.mounts.DropPauseRoot(ctx, p.ID, image); err != nil {
			return err
		}
		return ps.files.Remove(p.ID)
	})
}

// endPause ends the pause process and disconnects the pod. Of a pod that was ready, no network plugin
// can be left that nobody waits for: its ADD had ended, and this is the first attempt to give back
// what it took. So both are done side by side.
func (ps *pods) endPause(ctx context.Context, p *table.PodEntry, was string) error {
	end := func() error {
		return activity.Do(ctx, "end of the pause process", func(ctx context.Context) error {
			if err := ps.shim.Delete(ctx, p.ID); err != nil {
				return fmt.Errorf("stop the pause process of pod %s: %w", p.ID, err)
			}
			return nil
		})
	}
	disconnect := func() error {
		return activity.Do(ctx, "release of the network", func(ctx context.Context) error {
			if err := ps.network.Disconnect(ctx, p); err != nil {
				return fmt.Errorf("disconnect pod %s: %w", p.ID, err)
			}
			return nil
		})
	}
	if was != store.PodReady {
		if err := end(); err != nil {
			return err
		}
		if err := ps.network.Quiesce(ctx, p.ID); err != nil {
			return err
		}
		return disconnect()
	}
	var both errgroup.Group // an error of one does not end the other
	both.Go(func() error { return guard.Call(ctx, "end of a pause process", end) })
	both.Go(func() error { return guard.Call(ctx, "disconnecting a pod", disconnect) })
	if err := both.Wait(); err != nil {
		return err
	}
	return ps.network.Quiesce(ctx, p.ID)
}

func (ps *pods) stopAll(ctx context.Context, p *table.PodEntry) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range ps.table.OfPod(p.ID) {
		g.Go(func() error {
			return guard.Call(ctx, "stop of a container", func() error { return ps.containers.stopContainer(ctx, c, 0) })
		})
	}
	return g.Wait()
}

// RemovePod stops the pod if it must, and forgets it and its containers (CRI RemovePodSandbox). An
// unknown pod is no error.
func (ps *pods) RemovePod(ctx context.Context, id string) error {
	p, err := ps.table.FindPod(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = ps.flights.Do(ctx, "removal of pod "+p.ID, teardownLimit, func(ctx context.Context) (string, error) {
		return "", ps.removePod(ps.about(ctx, p), p)
	})
	return err
}

func (ps *pods) removePod(ctx context.Context, p *table.PodEntry) error {
	was, err := ps.states.PodRemoving(p.ID)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("cannot record a removal; removing anyway")
	}
	ps.step.Pass("pod.removing")
	done, err := ps.turns.Take(ctx, p.ID)
	if err != nil {
		return err
	}
	defer done()
	if was != store.PodNotReady { // otherwise a stop has done it
		if err := ps.teardown(ctx, p, was); err != nil {
			return err
		}
		ps.declareStopped(ctx, p)
	}
	err = activity.Do(ctx, "removal of the containers", func(ctx context.Context) error { return ps.removeAll(ctx, p) })
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", p.ID, err)
	}
	// again: a container that was still being made, or updated, has written its spec there
	if err := ps.files.Remove(p.ID); err != nil {
		return err
	}
	var labels selinux.Labels
	if r, ok := ps.states.Get(p.ID); ok {
		labels = labelsOf(r)
	}
	if err := errors.Join(ps.network.DropLock(p.ID), ps.states.PodForgotten(p.ID)); err != nil {
		return err
	}
	ps.step.Pass("pod.forgotten")
	ps.labels.drop(labels)
	ps.table.ForgetPod(p)
	ps.activity.Forget(podKind, p.ID)
	return nil
}

// removalsAtOnce is how many containers of a pod are removed at the same time.
const removalsAtOnce = 8

func (ps *pods) removeAll(ctx context.Context, p *table.PodEntry) error {
	var g errgroup.Group // one that fails does not end the others
	g.SetLimit(removalsAtOnce)
	for _, c := range ps.table.OfPod(p.ID) {
		g.Go(func() error {
			return guard.Call(ctx, "removal of a container", func() error { return ps.containers.removeContainer(ctx, c) })
		})
	}
	return g.Wait()
}
