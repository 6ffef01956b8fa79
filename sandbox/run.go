package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/network"
	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/pins"
	"github.com/cribox/cribox/sandbox/podfiles"
	"github.com/cribox/cribox/sandbox/rootfs"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// pods makes, stops and removes pods.
type pods struct {
	layout     layout.Layout
	states     *table.States
	table      *table.Table
	node       *node.Node
	mounts     *rootfs.Mounts
	files      podfiles.Files
	labels     *labels
	pins       *pins.Pins
	network    *network.Connector
	containers *containers
	shim       Runtime
	step       step.Hook
	background context.Context // ends with Close; for what nobody waits for
	activity   *activity.Table

	flights keyed.Flights
	turns   keyed.Turns // by pod
}

const (
	// bringUpLimit is longer than the kubelet waits (4 minutes), so that a slow plugin's work is
	// not thrown away just before it is asked for again.
	bringUpLimit  = 5 * time.Minute
	teardownLimit = 2 * time.Minute
)

// RunPod makes a pod and returns its id when its network is up and its pause process runs (CRI
// RunPodSandbox). The same request again joins the first or returns its result. ErrInvalidArgument
// names the field; ErrAlreadyExists when the name is taken by a different request; ErrUnavailable
// when there is no network to join. A failure leaves nothing behind, or a pod that is not ready and
// is still listed.
func (ps *pods) RunPod(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if err := spec.ValidatePod(config, ps.node.HostOf(handler)); err != nil {
		return "", err
	}
	if _, err := ps.node.Handler(handler); err != nil {
		return "", err
	}
	config = proto.CloneOf(config)
	key := table.PodKey(config)
	id, err := ps.flights.Do(ctx, key, bringUpLimit, func(ctx context.Context) (string, error) {
		if id, ok := ps.table.IDByKey(key); ok {
			up, err := ps.reuseOrClear(ctx, id)
			if up || err != nil {
				return id, err
			}
		}
		return ps.runPod(ctx, config, handler)
	})
	if err != nil {
		return "", err
	}
	p, err := ps.table.Pod(id)
	if err == nil && (!proto.Equal(p.Config, config) || p.Handler != handler) {
		return "", fmt.Errorf("%s exists as %s with another configuration: %w", key, id, errdefs.ErrAlreadyExists)
	}
	return id, nil
}

// reuseOrClear says whether the pod that has the name is ready. What a crash or a failure left of an
// attempt, or is being removed, is taken away first. ErrAlreadyExists for a pod that was ready
// once: it can never become so again.
func (ps *pods) reuseOrClear(ctx context.Context, id string) (up bool, err error) {
	r, ok := ps.states.Get(id)
	switch {
	case !ok || r.State == store.PodCreating || r.State == store.PodRemoving:
		return false, ps.RemovePod(ctx, id)
	case table.IsReady(r):
		return true, nil
	}
	return false, fmt.Errorf("pod %s has the same name and attempt and is no longer ready: %w",
		id, errdefs.ErrAlreadyExists)
}

func (ps *pods) runPod(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	p, err := ps.plan(config, handler)
	if err != nil {
		return "", err
	}
	ctx = ps.about(ctx, p.PodEntry)
	if err := do(ctx, "record", func() error { return ps.states.PodCreating(p.record, p.asked) }); err != nil {
		ps.labels.drop(labelsOf(&p.record))
		return "", err
	}
	ps.table.AddPod(p.PodEntry)
	ps.step.Pass("pod.recorded")
	if err := ps.bringUp(ctx, p); err != nil {
		ps.undo(ctx, p.PodEntry)
		return "", err
	}
	return p.ID, nil
}

// undo takes a pod that did not come up away. One that cannot be taken away now is listed as a pod
// that is not ready until it is gone.
func (ps *pods) undo(ctx context.Context, p *table.PodEntry) {
	remove := func(ctx context.Context) error { return ps.removePod(ps.about(ctx, p), p) }
	if err := clean(ctx, teardownLimit, remove); err != nil {
		log.G(ctx).WithError(err).Warn("cannot remove a pod that failed to start yet; will retry")
		go retryUntilDone(ps.about(ps.background, p), "removing", remove)
	}
}

func (ps *pods) bringUp(ctx context.Context, p *podPlan) error {
	err := telemetry.Part(ctx, "pod.files", func(ctx context.Context) error {
		return do(ctx, "files", func() error {
			return ps.files.Make(p.PodEntry, p.handler.ShmSize, p.record.MountLabel)
		})
	})
	if err != nil {
		return fmt.Errorf("prepare pod %s: %w", p.ID, err)
	}
	ps.step.Pass("pod.files")
	err = telemetry.Part(ctx, "pod.namespaces", func(ctx context.Context) error {
		return do(ctx, "namespaces", func() error { return ps.network.MakeNamespaces(p.PodEntry) })
	})
	if err != nil {
		return fmt.Errorf("namespaces of pod %s: %w", p.ID, err)
	}
	ips, task, err := ps.connectAndStart(ctx, p)
	if err != nil {
		return err
	}
	hosts := func() error { return ps.files.WriteHosts(p.PodEntry, p.record.MountLabel, ips) }
	if err := do(ctx, "hosts file", hosts); err != nil {
		return fmt.Errorf("prepare pod %s: %w", p.ID, err)
	}
	if err := ps.pins.PinPause(ctx, p.ID); err != nil {
		return err
	}
	if err := do(ctx, "ready", func() error { return ps.states.PodReady(p.PodEntry, ips, task.Pid) }); err != nil {
		return err
	}
	ps.step.Pass("pod.ready")
	return nil
}

// connectAndStart runs the network plugins and the pause process beside each other: neither needs
// the other, except for a sysctl of an interface that a plugin has yet to make.
func (ps *pods) connectAndStart(ctx context.Context, p *podPlan) (ips []netip.Addr, task runtimeshim.Task, err error) {
	connect := func(ctx context.Context) error {
		return activity.Do(ctx, "network", func(ctx context.Context) (err error) {
			ips, err = ps.network.Connect(ctx, p.PodEntry)
			return err
		})
	}
	start := func(ctx context.Context) error {
		return activity.Do(ctx, "pause process", func(ctx context.Context) (err error) {
			task, err = ps.startPause(ctx, p)
			return err
		})
	}
	if networkSysctls(p.Config) {
		if err := connect(ctx); err != nil {
			return nil, task, err
		}
		err = start(ctx)
		return ips, task, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return guard.Call(ctx, "network of a pod", func() error { return connect(ctx) }) })
	g.Go(func() error { return guard.Call(ctx, "start of a pod", func() error { return start(ctx) }) })
	err = g.Wait()
	return ips, task, err
}

func networkSysctls(c *runtimeapi.PodSandboxConfig) bool {
	for name := range c.GetLinux().GetSysctls() {
		if strings.HasPrefix(name, "net") {
			return true
		}
	}
	return false
}

func (ps *pods) startPause(ctx context.Context, p *podPlan) (runtimeshim.Task, error) {
	input, err := ps.files.ForSpec(p.PodEntry, &p.record)
	if err != nil {
		return runtimeshim.Task{}, err
	}
	var args []string
	if input.Rootfs, args, err = ps.mounts.PauseRoot(ctx, p.PodEntry, p.record.PauseImage,
		p.record.MountLabel); err != nil {
		return runtimeshim.Task{}, err
	}
	if err := ps.node.AwaitProfile(ctx); err != nil {
		return runtimeshim.Task{}, err
	}
	s, notes, err := spec.ForPod(ps.node.HostOf(p.record.Handler), input)
	if err != nil {
		return runtimeshim.Task{}, err
	}
	ps.node.Note(ctx, notes)
	if err := ps.node.HasProfile(ctx, s); err != nil {
		return runtimeshim.Task{}, err
	}
	if args != nil {
		s.Process.Args = args
	}
	b, err := json.Marshal(s)
	if err != nil {
		return runtimeshim.Task{}, err
	}
	if err := ps.files.SavePodSpec(p.ID, b); err != nil {
		return runtimeshim.Task{}, fmt.Errorf("spec of pod %s: %w", p.ID, err)
	}
	if err := ps.states.PodCgroup(p.ID, node.CgroupPath(s)); err != nil {
		return runtimeshim.Task{}, err
	}
	task, err := ps.shim.Start(ctx, runtimeshim.Start{ID: p.ID, Runtime: p.handler.Path, Spec: b,
		LockFile: ps.layout.LockPath(p.ID), Keeper: true,
		SystemdCgroup: node.MadeBySystemd(node.CgroupPath(s)), Native: args == nil &&
			ps.node.PauseNatively(p.record.Handler)})
	if err != nil {
		return task, fmt.Errorf("start the pause process of pod %s: %w", p.ID, err)
	}
	ps.step.Pass("pod.started")
	return task, nil
}
