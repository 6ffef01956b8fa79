package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/store"
)

// StopPod ends everything that runs in the pod and gives its network back (CRI StopPodSandbox). A pod that is stopped or unknown is no
// error. A network plugin that fails does not hold the pod up: what it owes is remembered and asked for again until it is given.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	p, err := m.findPod(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.Do(ctx, "stop of pod "+p.id, teardownLimit, func(ctx context.Context) (string, error) {
		return "", m.stopPod(withPod(ctx, p.id), p)
	})
	return err
}

func withPod(ctx context.Context, id string) context.Context {
	return log.WithLogger(ctx, log.G(ctx).WithField("pod", id))
}

func (m *Manager) stopPod(ctx context.Context, p *pod) error {
	r, err := m.store.Insist(p.id, func(r *store.Pod) error {
		if r.State == store.PodReady {
			r.State = store.PodStopping
		}
		return nil
	})
	if errors.Is(err, errdefs.ErrNotFound) || r.State == store.PodNotReady {
		return nil
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("stopping although it cannot be recorded")
	}
	m.step("pod.stopping")
	done, err := m.turns.Take(ctx, p.id)
	if err != nil {
		return err
	}
	defer done()
	if _, ok := m.store.Get(p.id); !ok {
		return nil // removed while this stop waited for its turn
	}
	if err := m.teardown(ctx, p); err != nil {
		return err
	}
	m.declareStopped(ctx, p)
	return nil
}

// declareStopped shows that nothing of the pod runs any more. One that is being removed stays so.
func (m *Manager) declareStopped(ctx context.Context, p *pod) {
	_, err := m.store.Insist(p.id, func(r *store.Pod) error {
		if r.State == store.PodRemoving && r.PausePID == 0 {
			return errdefs.ErrAlreadyExists // nothing to say
		}
		if r.State == store.PodStopping {
			r.State = store.PodNotReady
		}
		r.PausePID, r.IPs = 0, nil
		return nil
	})
	if err != nil && !errors.Is(err, errdefs.ErrAlreadyExists) && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("stopped although it cannot be recorded")
	}
}

// teardown takes away everything of a pod that is not its record: processes, network, mounts. It may be called in any state, any number of
// times, and returns nil when nothing is left but what the network plugins owe. Its caller has the pod's turn: of a stop and a removal side by
// side, the second would take the first one's plugin for one that nobody waits for.
func (m *Manager) teardown(ctx context.Context, p *pod) error {
	if err := m.stopAll(ctx, p); err != nil {
		return fmt.Errorf("stop the containers of pod %s: %w", p.id, err)
	}
	if err := m.shim.Delete(ctx, p.id); err != nil {
		return fmt.Errorf("stop pause of pod %s: %w", p.id, err)
	}
	if err := m.quiesce(ctx, p.id); err != nil {
		return err
	}
	if err := m.disconnect(ctx, p); err != nil {
		return fmt.Errorf("disconnect pod %s: %w", p.id, err)
	}
	m.step("pod.unplugged")
	if err := m.dropPauseRoot(ctx, p.id); err != nil {
		return err
	}
	return m.removePodFiles(p.id)
}

func (m *Manager) stopAll(ctx context.Context, p *pod) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range m.ofPod(p.id) {
		g.Go(func() error {
			return guard.Call(ctx, "stop of a container", func() error { return m.stopContainer(ctx, c, 0) })
		})
	}
	return g.Wait()
}

// disconnect gives the pod's addresses back and removes its network namespace. A plugin that fails is no error: it is asked again, without the
// namespace, until it has given back what it owes.
func (m *Manager) disconnect(ctx context.Context, p *pod) error {
	if r, ok := m.store.Get(p.id); ok && r.NetNS == "" { // the host's; the request may not be readable
		return nil
	}
	lock, err := m.podLock(ctx, p.id)
	if err != nil {
		return err
	}
	defer lock.Close()
	network := m.networkOf(p)
	network.Lock = lock
	if err := m.network.Teardown(ctx, network); err != nil {
		log.G(ctx).WithError(err).WithField("step", "cni").Warn("the network of the pod is not given back yet; will be tried again")
		m.lookAgain()
	}
	return m.network.RemoveNetNS(m.netns(p.id))
}

// dropPauseRoot is the opposite of pauseRoot, and may be called at any time.
func (m *Manager) dropPauseRoot(ctx context.Context, id string) error {
	r, ok := m.store.Get(id)
	if !ok || r.PauseImage == "" {
		return m.removeRoot(ctx, id)
	}
	if err := m.removeRoot(ctx, id); err != nil {
		return err
	}
	m.images.Release(r.PauseImage, id)
	return m.trash.Put(ctx, m.rootPath("containers", id))
}

// RemovePod stops the pod if it must, and forgets it and its containers (CRI RemovePodSandbox). An unknown pod is no error.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	p, err := m.findPod(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.flights.Do(ctx, "removal of pod "+p.id, teardownLimit, func(ctx context.Context) (string, error) {
		return "", m.removePod(withPod(ctx, p.id), p)
	})
	return err
}

func (m *Manager) removePod(ctx context.Context, p *pod) error {
	_, err := m.store.Insist(p.id, func(r *store.Pod) error { r.State = store.PodRemoving; return nil })
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("removing although it cannot be recorded")
	}
	m.step("pod.removing")
	done, err := m.turns.Take(ctx, p.id)
	if err != nil {
		return err
	}
	defer done()
	if err := m.teardown(ctx, p); err != nil {
		return err
	}
	m.declareStopped(ctx, p)
	for _, c := range m.ofPod(p.id) {
		if err := m.removeContainer(ctx, c); err != nil {
			return fmt.Errorf("remove pod %s: %w", p.id, err)
		}
	}
	if err := m.removePodFiles(p.id); err != nil { // again: a container that was still being made, or updated, has written its spec there
		return err
	}
	var labels selinux.Labels
	if r, ok := m.store.Get(p.id); ok {
		labels = labelsOf(r)
	}
	if err := errors.Join(m.dropLock(p.id), m.store.Remove(p.id)); err != nil {
		return err
	}
	m.step("pod.forgotten")
	m.dropLabels(labels)
	m.forgetPod(p)
	return nil
}

// collectEvery is how long the collector waits after a round that left something, doubled up to collectAtMost.
const (
	collectEvery  = 10 * time.Second
	collectAtMost = 5 * time.Minute
)

// collector asks the network plugins for what they owe until nothing is owed. Whatever is new is asked for soon, whatever is old ever later.
func (m *Manager) collector(ctx context.Context) {
	wait := collectEvery
	for {
		var again <-chan time.Time
		done := false
		guard.Run(ctx, "asking network plugins", func() { done = m.collectOnce(ctx) })
		if !done {
			again = time.After(wait)
			wait = min(2*wait, collectAtMost)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-m.collect:
			wait = collectEvery
		}
	}
}

// lookAgain wakes the collector.
func (m *Manager) lookAgain() {
	select {
	case m.collect <- struct{}{}:
	default:
	}
}

// collectOnce makes one round and says whether nothing is left to do.
func (m *Manager) collectOnce(ctx context.Context) bool {
	done := true
	for _, id := range m.network.Debts() {
		if r, ok := m.store.Get(id); ok && r.State != store.PodNotReady || m.recordUnread(id) != nil {
			continue // its processes may still use the address
		}
		if err := m.network.Teardown(ctx, cni.Pod{ID: id, NetNS: m.netns(id)}); err != nil {
			log.G(ctx).WithField("pod", id).WithError(err).Warn("the network plugin still does not give an address back")
			done = false
		}
	}
	return done
}
