package table

import (
	"cmp"
	"fmt"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/signals"
	"github.com/cribox/cribox/sandbox/store"
)

// Container is what is known of a container at one moment. Whoever gets one may keep it, and
// changes nothing in it.
type Container struct {
	store.Container
	PodID     string
	Config    *runtimeapi.ContainerConfig // as asked
	Encodings *Encodings                  // of Config
}

// Container returns the container with this id or unique beginning of one. ErrNotFound,
// ErrInvalidArgument.
func (t *Table) Container(id string) (Container, error) {
	c, err := t.FindContainer(id)
	if err != nil {
		return Container{}, err
	}
	return t.view(c)
}

func (t *Table) view(c *ContainerEntry) (Container, error) {
	r, ok := t.States.Record(c)
	if !ok || r.State == store.ContainerCreating {
		return Container{}, fmt.Errorf("container %s: %w", c.ID, errdefs.ErrNotFound)
	}
	return Container{Container: r, PodID: c.PodID, Config: c.Config, Encodings: &c.encodings}, nil
}

// ContainersOf returns the containers of one pod that are more than an attempt, the newest first,
// as they were when p was looked up.
func (t *Table) ContainersOf(p Pod) []Container {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := t.addContainers(nil, &p.Pod)
	slices.SortFunc(all, newestFirst)
	return all
}

// addContainers adds the containers of a record that a list has, in no order. The caller holds
// m.mu.
func (t *Table) addContainers(all []Container, r *store.Pod) []Container {
	for cid, c := range r.Containers {
		if known, ok := t.containers[cid]; ok && c.State != store.ContainerCreating {
			all = append(all, Container{Container: c, PodID: r.ID, Config: known.Config, Encodings: &known.encodings})
		}
	}
	return all
}

func newestFirst(a, b Container) int {
	return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.ID, b.ID))
}

// Running says whether the container's process is alive as far as is known.
func (c Container) Running() bool {
	return c.State == store.ContainerRunning || c.State == store.ContainerStopping
}

// CRIState maps the state to the CRI's four, which only ever go forward. A container that is
// starting has no process yet as far as is known.
func (c Container) CRIState() runtimeapi.ContainerState {
	switch c.State {
	case store.ContainerCreating, store.ContainerCreated, store.ContainerStarting:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case store.ContainerRunning, store.ContainerStopping:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case store.ContainerRemoving:
		if c.Started == 0 { // taken away before it ever ran
			return runtimeapi.ContainerState_CONTAINER_CREATED
		}
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case store.ContainerExited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

// Mounts returns the mounts as asked. Image and image_ref of an image volume are the id of the
// image that is mounted: the kubelet learns from it which images are in use, and which image a tag
// meant (CRI ImageSpec.image_ref, KEP-5365).
func (c Container) Mounts() []*runtimeapi.Mount {
	if c.MountImages == nil {
		return c.Config.GetMounts()
	}
	all := slices.Clone(c.Config.GetMounts())
	for i, id := range c.MountImages {
		if id != "" && i < len(all) { // a request that cannot be read any more has none
			all[i] = proto.CloneOf(all[i])
			all[i].Image.Image, all[i].Image.ImageRef = id, id
		}
	}
	return all
}

// Resources returns what was asked for at creation and since (CRI ContainerStatus.resources).
func (c Container) Resources() *runtimeapi.LinuxContainerResources {
	return RememberedOr(c.Limits, c.Config.GetLinux().GetResources())
}

// RememberedOr decodes what an update has left in a record, or returns what was asked for before
// any.
func RememberedOr(b []byte, asked *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{}
	if b == nil || proto.Unmarshal(b, r) != nil { // we wrote it
		return asked
	}
	return r
}

// StopSignal returns the signal that a stop sends, by the CRI's number.
func (c Container) StopSignal() runtimeapi.Signal { return signals.CRI(syscall.Signal(c.Signal)) }
