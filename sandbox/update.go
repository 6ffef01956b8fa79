package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
)

const updateLimit = 4 * time.Minute // longer than the shim's client waits, and than a kubelet

// UpdateContainer changes what a container may use (CRI UpdateContainerResources): of a created one its spec, of a running one the limits of
// its cgroup and the oom_score_adj of its processes too. Zero and empty fields stay as they are. ErrInvalidArgument names the field;
// ErrFailedPrecondition for a container that has exited, and for what the kernel refuses where the container is, such as less memory than is
// in use. On error nothing has changed, except for ErrUnavailable: then the shim may still come to it, and it is brought to an end later.
func (m *Manager) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if err := errors.Join(m.mayUpdate(c), known(c.lacks)); err != nil {
		return err
	}
	if err := spec.ValidateResources(r, withHardware(m.host)); err != nil {
		return err
	}
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container", c.id))
	done, err := m.updateTurn(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	err = clean(ctx, updateLimit, func(ctx context.Context) error {
		if err := m.settleUpdate(ctx, c); err != nil {
			return err
		}
		if proto.Size(r) == 0 {
			return m.mayUpdate(c)
		}
		return m.updateContainer(ctx, c, r)
	})
	if errors.Is(err, errdefs.ErrUnavailable) {
		m.settleLater(c)
	}
	return err
}

// settleLater goes on with an update that the shim may still come to, once for a container, however many have asked for one meanwhile.
func (m *Manager) settleLater(c *container) {
	if !c.settling.CompareAndSwap(false, true) {
		return
	}
	ctx := log.WithLogger(m.background, log.G(m.background).WithField("container", c.id))
	go func() {
		defer c.settling.Store(false)
		m.finish(ctx, "updating", func(ctx context.Context) error { return m.resolveUpdate(ctx, c) })
	}()
}

// updateTurn waits for the container's turn, and until no start of it is under way.
func (m *Manager) updateTurn(ctx context.Context, c *container) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	if err := m.awaitStart(ctx, c); err != nil {
		return nil, err
	}
	return m.turns.Take(ctx, c.id)
}

// mayUpdate returns ErrNotFound or ErrFailedPrecondition for a container that has no limits to change, or none any more.
func (m *Manager) mayUpdate(c *container) error {
	r, ok := m.record(c)
	if !ok || r.State == store.ContainerCreating {
		return fmt.Errorf("container %s: %w", c.id, errdefs.ErrNotFound)
	}
	return changeable(r)
}

func changeable(r store.Container) error {
	switch r.State {
	case store.ContainerCreated, store.ContainerStarting, store.ContainerRunning, store.ContainerStopping:
		return nil
	}
	return fmt.Errorf("container %s is %s, its resources cannot be changed: %w", r.ID, r.State, errdefs.ErrFailedPrecondition)
}

// updateContainer writes down what it is about to do, does it, and writes down that it is done, in the container's turn.
func (m *Manager) updateContainer(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) error {
	asked, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	was, now, err := m.planUpdate(ctx, c, r)
	if err != nil {
		return err
	}
	err = m.change(c, func(rec *store.Container) error {
		rec.Updating = asked
		return changeable(*rec)
	})
	if err != nil {
		return err
	}
	m.step("container.updating")
	err = m.applyUpdate(ctx, c, r, was, now)
	if err != nil {
		if !errors.Is(err, errdefs.ErrUnavailable) { // the shim may still come to it: whoever asked settles it later
			m.forgetUpdate(ctx, c)
		}
		return err
	}
	m.step("container.limited")
	return m.declareUpdated(ctx, c, r)
}

// planUpdate returns the container's spec as it is, and as it will be.
func (m *Manager) planUpdate(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) (was, now *specs.Spec, err error) {
	b, err := m.specFile(c)
	if err == nil {
		was = &specs.Spec{}
		err = json.Unmarshal(b, was)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("spec of container %s: %w", c.id, err)
	}
	now, notes, err := spec.Update(withHardware(m.host), was, r)
	if err != nil {
		return nil, nil, err
	}
	m.note(ctx, notes)
	return was, now, nil
}

// applyUpdate changes the cgroup, if there is one, and then the spec: what a later exec is given, or the start. On error both are as before.
func (m *Manager) applyUpdate(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources, was, now *specs.Spec) error {
	rec, ok := m.record(c)
	if !ok {
		return fmt.Errorf("container %s: %w", c.id, errdefs.ErrNotFound)
	}
	runs := rec.State != store.ContainerCreated
	if runs {
		if err := m.limitTask(ctx, c, was, now, r.GetOomScoreAdj() != 0); err != nil {
			return fmt.Errorf("resources of container %s: %w", c.id, err)
		}
	}
	err := m.saveSpec(c, now)
	if err != nil && runs {
		err = errors.Join(err, m.limitTask(ctx, c, now, was, r.GetOomScoreAdj() != 0))
	}
	if err != nil {
		return fmt.Errorf("spec of container %s: %w", c.id, err)
	}
	return nil
}

// limitTask has the shim make the limits of was those of now.
func (m *Manager) limitTask(ctx context.Context, c *container, was, now *specs.Spec, oom bool) error {
	u := runtimeshim.Update{ID: c.id, LockFile: m.lockPath(c.podID)}
	if oom {
		u.OOMScoreAdj = now.Process.OOMScoreAdj
	}
	var err error
	if u.Resources, err = json.Marshal(spec.Lift(now.Linux.Resources, was.Linux.Resources)); err != nil {
		return err
	}
	if u.Previous, err = json.Marshal(spec.Lift(was.Linux.Resources, now.Linux.Resources)); err != nil {
		return err
	}
	return m.shim.Update(ctx, u)
}

// declareUpdated makes the status say what holds now. A full disk does not undo it: what is on the disk then says that the update was under
// way, and a restart does it again.
func (m *Manager) declareUpdated(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) error {
	err := m.insist(c, func(rec *store.Container) error {
		limits, err := proto.Marshal(spec.MergeRequests(rememberedOr(rec.Limits, c.config.GetLinux().GetResources()), r))
		rec.Limits, rec.Updating = limits, nil
		return err
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	m.log(ctx, err)
	m.step("container.updated")
	return nil
}

func (m *Manager) forgetUpdate(ctx context.Context, c *container) {
	err := m.insist(c, func(rec *store.Container) error { rec.Updating = nil; return nil })
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("an update that failed stays noted; a restart tries it again")
	}
}

// resolveUpdate is settleUpdate in the container's turn.
func (m *Manager) resolveUpdate(ctx context.Context, c *container) error {
	done, err := m.updateTurn(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	return m.settleUpdate(ctx, c)
}

// settleUpdate brings an update that was interrupted to an end, in the container's turn. Whoever asked for it has no answer, so either end is
// right: done, or, where it fails now, as before.
func (m *Manager) settleUpdate(ctx context.Context, c *container) error {
	rec, ok := m.record(c)
	if !ok || rec.Updating == nil {
		return nil
	}
	r := &runtimeapi.LinuxContainerResources{}
	err := changeable(rec)
	if err == nil {
		err = proto.Unmarshal(rec.Updating, r)
	}
	if err == nil {
		err = m.updateContainer(ctx, c, r)
	}
	if errors.Is(err, errdefs.ErrUnavailable) {
		return err
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("an interrupted update of resources is undone")
		return m.undoUpdate(ctx, c, r)
	}
	return nil
}

// undoUpdate makes the cgroup of a container what its spec says, after an update that was interrupted when the shim had done its part.
func (m *Manager) undoUpdate(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) error {
	defer m.forgetUpdate(ctx, c)
	rec, ok := m.record(c)
	if !ok || changeable(rec) != nil || rec.State == store.ContainerCreated {
		return nil
	}
	was, now, err := m.planUpdate(ctx, c, r)
	if err == nil {
		err = m.limitTask(ctx, c, now, was, r.GetOomScoreAdj() != 0)
	}
	m.log(ctx, err)
	return nil
}

// UpdatePod remembers what the kubelet has made of the pod's cgroup, which is its own (CRI UpdatePodSandboxResources): what the pod costs
// beside its containers, and what those may use together. nil leaves as it is what was told before. A pod that is not ready still has that
// cgroup. ErrNotFound, ErrInvalidArgument.
func (m *Manager) UpdatePod(id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	p, err := m.Pod(id)
	if err != nil {
		return err
	}
	if err := spec.ValidatePodResources(overhead, resources); err != nil {
		return err
	}
	_, err = m.store.Update(p.ID, func(r *store.Pod) error {
		return errors.Join(encode(&r.Overhead, overhead), encode(&r.Limits, resources))
	})
	return err
}

func encode(to *[]byte, r *runtimeapi.LinuxContainerResources) error {
	if r == nil {
		return nil
	}
	b, err := proto.MarshalOptions{}.MarshalAppend([]byte{}, r) // not nil, also for a message without figures
	if err == nil {
		*to = b
	}
	return err
}
