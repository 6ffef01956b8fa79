package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/pins"
	"github.com/cribox/cribox/sandbox/podfiles"
	"github.com/cribox/cribox/sandbox/rootfs"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/spec/signals"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// containers makes, starts, stops and removes containers.
type containers struct {
	layout     layout.Layout
	states     *table.States
	table      *table.Table
	node       *node.Node
	mounts     *rootfs.Mounts
	files      podfiles.Files
	labels     *labels
	pins       *pins.Pins
	shim       Runtime
	step       step.Hook
	background context.Context // ends with Close; for what nobody waits for
	activity   *activity.Table

	endings *endings

	flights keyed.Flights
	turns   *keyed.Turns // by container

	mu    sync.Mutex       // guards what follows
	stops map[string]*stop // running StopContainer, by container id
}

const createLimit = 3 * time.Minute

// CreateContainer prepares a container in a pod and returns its id (CRI CreateContainer): its root
// filesystem is mounted and its spec is written when it returns. The same request again joins the
// first or returns its result. ErrNotFound for pod or image, ErrFailedPrecondition when the pod is
// not ready, ErrInvalidArgument names the field. A failure leaves nothing behind.
//
// sandboxConfig says whether the container may be privileged: a kubelet adds such a container to a
// pod that began without one (kubectl debug --profile=sysadmin). In all else the pod is what it was
// made as.
func (cs *containers) CreateContainer(
	ctx context.Context, podID string, config *runtimeapi.ContainerConfig, sandboxConfig *runtimeapi.PodSandboxConfig,
) (string, error) {
	p, err := cs.table.FindPod(podID)
	if err != nil {
		return "", err
	}
	podConfig := spec.WithPrivilege(p.Config, sandboxConfig)
	if err := table.Known(p.Lacks); err != nil {
		return "", fmt.Errorf("create a container in pod %s: %w", p.ID, err)
	}
	r, ok := cs.states.Get(p.ID)
	if !ok {
		return "", fmt.Errorf("pod %s: %w", p.ID, errdefs.ErrNotFound)
	}
	if err := spec.ValidateContainer(podConfig, config, cs.node.HostOf(r.Handler)); err != nil {
		return "", err
	}
	config = proto.CloneOf(config)
	key := table.ContainerKey(p.ID, config)
	id, err := cs.flights.Do(ctx, key, createLimit, func(ctx context.Context) (string, error) {
		if id, ok := cs.table.IDByKey(key); ok {
			same, err := cs.reuseOrReplace(ctx, id, config)
			if same || err != nil {
				return id, err
			}
		}
		return cs.createContainer(ctx, p, config, podConfig)
	})
	if err != nil {
		return "", err
	}
	// joined one that was under way
	if c, err := cs.table.FindContainer(id); err == nil && !proto.Equal(c.Config, config) {
		return "", fmt.Errorf("%s is being made as %s with another configuration: %w", key, id, errdefs.ErrAlreadyExists)
	}
	return id, nil
}

// reuseOrReplace says whether the container that has the name already is the one that is asked for. One that
// is being removed, was never finished, or was made for another request and never started is taken
// away first: whoever asked for it has given up, and must not poison what comes after.
// ErrAlreadyExists when it was started with another configuration.
func (cs *containers) reuseOrReplace(
	ctx context.Context, id string, config *runtimeapi.ContainerConfig,
) (same bool, err error) {
	c, err := cs.table.FindContainer(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	r, ok := cs.states.Record(c)
	switch {
	case !ok || r.State == store.ContainerCreating || r.State == store.ContainerRemoving:
	case proto.Equal(c.Config, config):
		return true, nil
	case r.State != store.ContainerCreated:
		return false, fmt.Errorf("container %s has the same name and attempt but another configuration, and is %s: %w",
			id, r.State, errdefs.ErrAlreadyExists)
	}
	return false, cs.removeContainer(ctx, c)
}

func (cs *containers) createContainer(
	ctx context.Context, p *table.PodEntry, config *runtimeapi.ContainerConfig, podConfig *runtimeapi.PodSandboxConfig,
) (string, error) {
	c, err := cs.plan(ctx, p, config, podConfig)
	if err != nil {
		return "", err
	}
	ctx = aboutContainer(ctx, cs, c.ContainerEntry)
	done, err := turnOf(ctx, cs, c.ContainerEntry)
	if err != nil {
		return "", err
	}
	defer done()
	if err := cs.mounts.Hold(c.ContainerEntry); err != nil {
		return "", err
	}
	err = do(ctx, "record", func() error { return cs.recordContainer(c) })
	if err == nil {
		err = cs.prepare(ctx, c)
	}
	if err == nil {
		err = cs.states.Created(c.ContainerEntry)
	}
	if err != nil {
		cs.undoContainer(ctx, c.ContainerEntry)
		return "", err
	}
	cs.step.Pass("container.created")
	return c.ID, nil
}

// recordContainer writes the intent: from here on the container has a name and recovery knows of
// it.
func (cs *containers) recordContainer(c *containerPlan) error {
	asked, err := proto.Marshal(c.Config)
	if err != nil {
		return err
	}
	signal, err := signals.Stop(c.Config, c.image.Config.Config.StopSignal)
	if err != nil {
		return err
	}
	rec := store.Container{ID: c.ID, Created: cs.table.Now(c.pod.Config), ImageID: c.image.ID, ImageRef: imageRef(c.image),
		MountImages: c.MountImages, Signal: int(signal)}
	if path := c.Config.GetLogPath(); path != "" && c.pod.Config.GetLogDirectory() != "" {
		rec.LogPath = filepath.Join(c.pod.Config.GetLogDirectory(), path)
	}
	cs.table.AddContainer(c.ContainerEntry) // before the record, so that whoever finds the record finds the container
	if err := cs.states.Creating(c.PodID, rec); err != nil {
		return err
	}
	cs.step.Pass("container.recorded")
	return cs.states.SetAsked(c.ContainerEntry, asked)
}

// undoContainer takes a container that was not made away, in its turn.
func (cs *containers) undoContainer(ctx context.Context, c *table.ContainerEntry) {
	if err := clean(ctx, teardownLimit, func(ctx context.Context) error { return cs.discard(ctx, c) }); err != nil {
		log.G(ctx).WithError(err).Warn("cannot remove a container that failed to be created yet; will retry")
		go retryUntilDone(aboutContainer(cs.background, cs, c), "removing",
			func(ctx context.Context) error { return cs.removeContainer(ctx, c) })
	}
}

// imageRef is how a container's image is told to the kubelet: by repository digest when there is
// one, else by id.
func imageRef(img imageservice.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// prepare mounts the root filesystem and the image volumes, and writes the spec that StartContainer
// hands to the runtime.
func (cs *containers) prepare(ctx context.Context, c *containerPlan) error {
	if err := rootfs.MakeLogFolder(c.pod, c.ContainerEntry); err != nil {
		return err
	}
	var root string
	err := telemetry.Part(ctx, "container.mount", func(ctx context.Context) error {
		return activity.Do(ctx, "root filesystem", func(ctx context.Context) (err error) {
			root, err = cs.mounts.Mount(ctx, c.pod, c.ID, imageservice.Rootfs{ImageID: c.image.ID, Label: c.labels.Mount})
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("root filesystem of container %s: %w", c.ID, err)
	}
	cs.step.Pass("container.mounted")
	err = activity.Do(ctx, "image volumes", func(ctx context.Context) error {
		return cs.mounts.MountVolumes(ctx, c.pod, c.ContainerEntry, c.labels.Mount)
	})
	if err != nil {
		return err
	}
	var s *specs.Spec
	var input spec.Container
	err = activity.Do(ctx, "mounts, users, devices, OCI spec", func(ctx context.Context) (err error) {
		if input, err = cs.specContainer(ctx, c, root); err == nil {
			s, err = cs.spec(ctx, c, input)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := cs.pins.PinPause(ctx, c.PodID); err != nil { // for a pod of an earlier version; it stays with the pod
		return err
	}
	if err := cs.files.SaveSpec(c.ContainerEntry, s); err != nil {
		return fmt.Errorf("spec of container %s: %w", c.ID, err)
	}
	cs.step.Pass("container.prepared")
	return cs.states.Prepared(c.ContainerEntry, node.CgroupPath(s), input.User)
}

// spec returns the OCI spec of a container. ErrFailedPrecondition when this machine lacks what it
// names: an AppArmor profile, a CDI device.
func (cs *containers) spec(ctx context.Context, c *containerPlan, input spec.Container) (*specs.Spec, error) {
	pod, err := cs.files.ForSpec(c.pod, c.record)
	if err != nil {
		return nil, err
	}
	pod.Config = c.request
	s, notes, err := spec.ForContainer(c.host, pod, input)
	if err != nil {
		return nil, err
	}
	cs.node.Note(ctx, notes)
	if err := cs.node.HasProfile(ctx, s); err != nil {
		return nil, err
	}
	return s, cs.node.InjectDevices(c.pod, c.ContainerEntry, s)
}

// specContainer gathers what needs the disk: the user's numbers from the image, host paths, a
// seccomp profile.
func (cs *containers) specContainer(ctx context.Context, c *containerPlan, root string) (spec.Container, error) {
	in := spec.Container{ID: c.ID, Config: c.Config, Image: c.image.Config, ImageName: c.Config.GetImage().GetImage(),
		Rootfs:       root,
		ProcessLabel: c.labels.Process, MountLabel: c.labels.Mount}
	var err error
	if in.User, err = rootfs.LookupUser(in.Rootfs, c.image.Config.Config.User,
		c.Config.GetLinux().GetSecurityContext()); err != nil {
		return in, fmt.Errorf("user of container %s: %w", c.Config.GetMetadata().GetName(), err)
	}
	profile, err := spec.ContainerSeccompPath(c.Config)
	if err != nil {
		return in, err
	}
	if in.SeccompProfile, err = node.ReadSeccomp(profile); err != nil {
		return in, err
	}
	if in.Volumes, err = cs.mounts.MakeVolumes(ctx, c.pod, c.ContainerEntry, root, c.image); err != nil {
		return in, err
	}
	if in.Mounts, err = cs.mounts.Resolve(ctx, c.handler.MissingPaths, c.ContainerEntry); err != nil {
		return in, err
	}
	if err := cs.mounts.CanMap(c.pod, c.Config.GetMounts(), in.Mounts); err != nil {
		return in, err
	}
	if in.TargetNS, err = cs.pins.PinTarget(c.ContainerEntry); err != nil {
		return in, err
	}
	if err := rootfs.Relabel(ctx, c.ContainerEntry, &in); err != nil {
		return in, err
	}
	in.Devices, err = node.ResolveDevices(c.Config, !c.host.NoHostDevices)
	return in, err
}
