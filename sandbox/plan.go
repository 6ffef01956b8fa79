package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// podPlan is what is decided about a pod before anything of it is made, and handed down to whoever
// makes a part of it. A container that is made in a pod has a containerPlan.
type podPlan struct {
	*table.PodEntry
	record  store.Pod // as it begins; its labels are those of the pod's files and pause process
	asked   []byte    // the encoded request
	handler node.Handler
}

// plan decides about a new pod. ErrUnavailable when there is no network to join. The SELinux level
// in its labels belongs to the pod until labels.drop.
func (ps *pods) plan(config *runtimeapi.PodSandboxConfig, handler string) (*podPlan, error) {
	if !spec.HostNetwork(config) {
		if err := ps.network.Ready(); err != nil {
			return nil, fmt.Errorf("no network for pods: %w: %w", err, errdefs.ErrUnavailable)
		}
	}
	p := &podPlan{PodEntry: table.NewPodEntry(table.NewID(), config)}
	var err error
	if p.handler, err = ps.node.Handler(handler); err != nil {
		return nil, err
	}
	if p.asked, err = proto.Marshal(config); err != nil {
		return nil, err
	}
	p.record = store.Pod{ID: p.ID, Handler: handler, Created: ps.table.Now(config)}
	p.Latest = p.record.Created
	if p.record.PauseImage, err = ps.mounts.PauseImage(); err != nil {
		return nil, err
	}
	if !spec.HostNetwork(config) {
		p.record.NetNS = ps.layout.NetNS(p.ID)
	}
	labels, err := ps.labels.forPod(config)
	if err != nil {
		return nil, err
	}
	p.record.ProcessLabel, p.record.MountLabel = labels.Process, labels.Mount
	return p, nil
}

// containerPlan is what is decided about a container before anything of it is made.
type containerPlan struct {
	*table.ContainerEntry
	pod     *table.PodEntry
	request *runtimeapi.PodSandboxConfig // the pod's, with the privilege that the container's request gives it
	record  *store.Pod                   // of the pod
	image   imageservice.Image
	handler node.Handler
	host    spec.Host
	labels  selinux.Labels
}

// plan decides about a new container of a pod. ErrNotFound for its images, ErrInvalidArgument when
// the pod's handler is gone.
func (cs *containers) plan(
	ctx context.Context, pod *table.PodEntry, config *runtimeapi.ContainerConfig, request *runtimeapi.PodSandboxConfig,
) (*containerPlan, error) {
	c := &containerPlan{pod: pod, request: request}
	var err error
	if c.image, err = cs.mounts.Images.Lookup(config.GetImage().GetImage()); err != nil {
		return nil, fmt.Errorf("image %q of container %s: %w", table.Short(config.GetImage().GetImage()),
			config.GetMetadata().GetName(), err)
	}
	volumes, err := cs.mounts.VolumeImages(config.GetMounts())
	if err != nil {
		return nil, err
	}
	c.ContainerEntry = table.NewContainerEntry(pod.ID,
		store.Container{ID: table.NewID(), ImageID: c.image.ID, MountImages: volumes}, config)
	var known bool
	if c.record, known = cs.states.Get(pod.ID); !known {
		return nil, fmt.Errorf("pod %s: %w", pod.ID, errdefs.ErrNotFound)
	}
	if err := cs.node.AwaitProfile(ctx); err != nil { // what host says depends on it
		return nil, err
	}
	if c.host, c.handler, err = cs.node.InPod(c.record); err != nil {
		return nil, err
	}
	if c.labels, err = cs.labels.forContainer(c.record, config); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	return c, nil
}
