package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/podfiles"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/spec/limits"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// updates changes the resources of containers and pods.
type updates struct {
	layout     layout.Layout
	states     *table.States
	table      *table.Table
	node       *node.Node
	files      podfiles.Files
	containers *containers
	shim       Runtime
	step       step.Hook
	background context.Context // ends with Close; for what nobody waits for
}

const updateLimit = 4 * time.Minute // longer than the shim's client waits, and than a kubelet

// UpdateContainer changes what a container may use (CRI UpdateContainerResources): of a created one
// its spec, of a running one the limits of its cgroup and the oom_score_adj of its processes too.
// Zero and empty fields stay as they are. ErrInvalidArgument names the field; ErrFailedPrecondition
// for a container that has exited, and for what the kernel refuses where the container is, such as
// less memory than is in use. On error nothing has changed, except for ErrUnavailable: then the
// shim may still come to it, and it is brought to an end later.
func (u *updates) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := u.table.FindContainer(id)
	if err != nil {
		return err
	}
	if err := errors.Join(u.mayUpdate(c), table.Known(c.Lacks)); err != nil {
		return err
	}
	if err := limits.Check(r, u.node.HostNow().Controllers); err != nil {
		return err
	}
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("container", c.ID))
	done, err := u.updateTurn(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	err = clean(ctx, updateLimit, func(ctx context.Context) error {
		if err := u.completeUpdate(ctx, c); err != nil {
			return err
		}
		if proto.Size(r) == 0 {
			return u.mayUpdate(c)
		}
		return u.updateContainer(ctx, c, r)
	})
	if errors.Is(err, errdefs.ErrUnavailable) {
		u.completeLater(c)
	}
	return err
}

// completeLater goes on with an update that the shim may still come to, once for a container, however
// many have asked for one meanwhile.
func (u *updates) completeLater(c *table.ContainerEntry) {
	if !c.Completing.CompareAndSwap(false, true) {
		return
	}
	ctx := aboutContainer(u.background, u.containers, c)
	go func() {
		defer c.Completing.Store(false)
		retryUntilDone(ctx, "updating", func(ctx context.Context) error { return u.resolveUpdate(ctx, c) })
	}()
}

// updateTurn waits for the container's turn, and until no start of it is under way.
func (u *updates) updateTurn(ctx context.Context, c *table.ContainerEntry) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	if err := u.containers.awaitStart(ctx, c); err != nil {
		return nil, err
	}
	return u.containers.turns.Take(ctx, c.ID)
}

// mayUpdate returns ErrNotFound or ErrFailedPrecondition for a container that has no limits to
// change, or none any more.
func (u *updates) mayUpdate(c *table.ContainerEntry) error {
	r, ok := u.states.Record(c)
	if !ok || r.State == store.ContainerCreating {
		return fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
	}
	return table.Changeable(r)
}

// updateContainer writes down what it is about to do, does it, and writes down that it is done, in
// the container's turn.
func (u *updates) updateContainer(
	ctx context.Context, c *table.ContainerEntry, r *runtimeapi.LinuxContainerResources,
) error {
	asked, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	was, now, err := u.planUpdate(ctx, c, r)
	if err != nil {
		return err
	}
	if err := u.states.Updating(c, asked); err != nil {
		return err
	}
	u.step.Pass("container.updating")
	err = u.applyUpdate(ctx, c, r, was, now)
	if err != nil {
		if !errors.Is(err, errdefs.ErrUnavailable) { // the shim may still come to it: it is completed later
			u.forgetUpdate(ctx, c)
		}
		return err
	}
	u.step.Pass("container.limited")
	return u.declareUpdated(ctx, c, r)
}

// planUpdate returns the container's spec as it is, and as it will be.
func (u *updates) planUpdate(
	ctx context.Context, c *table.ContainerEntry, r *runtimeapi.LinuxContainerResources,
) (was, now *specs.Spec, err error) {
	b, err := os.ReadFile(u.layout.SpecPath(c.PodID, c.ID))
	if err == nil {
		was = &specs.Spec{}
		err = json.Unmarshal(b, was)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("spec of container %s: %w", c.ID, err)
	}
	now, notes, err := spec.Update(u.node.HostNow(), was, r)
	if err != nil {
		return nil, nil, err
	}
	u.node.Note(ctx, notes)
	return was, now, nil
}

// applyUpdate changes the cgroup, if there is one, and then the spec: what a later exec is given,
// or the start. On error both are as before.
func (u *updates) applyUpdate(
	ctx context.Context, c *table.ContainerEntry, r *runtimeapi.LinuxContainerResources, was, now *specs.Spec,
) error {
	rec, ok := u.states.Record(c)
	if !ok {
		return fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
	}
	runs := rec.State != store.ContainerCreated
	if runs {
		if err := u.limitTask(ctx, c, was, now, r.GetOomScoreAdj() != 0); err != nil {
			return fmt.Errorf("resources of container %s: %w", c.ID, err)
		}
	}
	err := u.files.SaveSpec(c, now)
	if err != nil && runs {
		err = errors.Join(err, u.limitTask(ctx, c, now, was, r.GetOomScoreAdj() != 0))
	}
	if err != nil {
		return fmt.Errorf("spec of container %s: %w", c.ID, err)
	}
	return nil
}

// limitTask has the shim make the limits of was those of now.
func (u *updates) limitTask(ctx context.Context, c *table.ContainerEntry, was, now *specs.Spec, oom bool) error {
	up := runtimeshim.Update{ID: c.ID, LockFile: u.layout.LockPath(c.PodID)}
	if oom {
		up.OOMScoreAdj = now.Process.OOMScoreAdj
	}
	var err error
	if up.Resources, err = json.Marshal(limits.Lift(now.Linux.Resources, was.Linux.Resources)); err != nil {
		return err
	}
	if up.Previous, err = json.Marshal(limits.Lift(was.Linux.Resources, now.Linux.Resources)); err != nil {
		return err
	}
	return u.shim.Update(ctx, up)
}

// declareUpdated makes the status say what holds now. A full disk does not undo it: what is on the
// disk then says that the update was under way, and a restart does it again.
func (u *updates) declareUpdated(
	ctx context.Context, c *table.ContainerEntry, r *runtimeapi.LinuxContainerResources,
) error {
	err := u.states.Updated(c, func(before []byte) ([]byte, error) {
		return proto.Marshal(limits.MergeRequests(table.RememberedOr(before, c.Config.GetLinux().GetResources()), r))
	})
	if errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	warn(ctx, err)
	u.step.Pass("container.updated")
	return nil
}

func (u *updates) forgetUpdate(ctx context.Context, c *table.ContainerEntry) {
	err := u.states.NotUpdated(c)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		log.G(ctx).WithError(err).Warn("cannot delete the record of a failed update; a restart tries the update again")
	}
}

// resolveUpdate is completeUpdate in the container's turn.
func (u *updates) resolveUpdate(ctx context.Context, c *table.ContainerEntry) error {
	done, err := u.updateTurn(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	return u.completeUpdate(ctx, c)
}

// completeUpdate brings an update that was interrupted to an end, in the container's turn. Whoever
// asked for it has no answer, so either end is right: done, or, where it fails now, as before.
func (u *updates) completeUpdate(ctx context.Context, c *table.ContainerEntry) error {
	rec, ok := u.states.Record(c)
	if !ok || rec.Updating == nil {
		return nil
	}
	r := &runtimeapi.LinuxContainerResources{}
	err := table.Changeable(rec)
	if err == nil {
		err = proto.Unmarshal(rec.Updating, r)
	}
	if err == nil {
		err = u.updateContainer(ctx, c, r)
	}
	if errors.Is(err, errdefs.ErrUnavailable) {
		return err
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("undoing an interrupted update of resources")
		return u.undoUpdate(ctx, c, r)
	}
	return nil
}

// undoUpdate makes the cgroup of a container what its spec says, after an update that was
// interrupted when the shim had done its part.
func (u *updates) undoUpdate(
	ctx context.Context, c *table.ContainerEntry, r *runtimeapi.LinuxContainerResources,
) error {
	defer u.forgetUpdate(ctx, c)
	rec, ok := u.states.Record(c)
	if !ok || table.Changeable(rec) != nil || rec.State == store.ContainerCreated {
		return nil
	}
	was, now, err := u.planUpdate(ctx, c, r)
	if err == nil {
		err = u.limitTask(ctx, c, now, was, r.GetOomScoreAdj() != 0)
	}
	warn(ctx, err)
	return nil
}

// UpdatePod remembers what the kubelet has made of the pod's cgroup, which is its own (CRI
// UpdatePodSandboxResources): what the pod costs beside its containers, and what those may use
// together. nil leaves as it is what was told before. A pod that is not ready still has that
// cgroup. ErrNotFound, ErrInvalidArgument.
func (u *updates) UpdatePod(id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	p, err := u.table.Pod(id)
	if err != nil {
		return err
	}
	if err := spec.ValidatePodResources(overhead, resources); err != nil {
		return err
	}
	costs, err := encode(overhead)
	if err != nil {
		return err
	}
	limits, err := encode(resources)
	if err != nil {
		return err
	}
	return u.states.PodLimits(p.ID, costs, limits)
}

// encode returns nil for nil alone, not for a message without figures.
func encode(r *runtimeapi.LinuxContainerResources) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	return proto.MarshalOptions{}.MarshalAppend([]byte{}, r)
}
