package table

import (
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/store"
)

// Pod is what is known of a pod at one moment. Whoever gets one may keep it, and changes nothing in
// it.
type Pod struct {
	store.Pod
	Config    *runtimeapi.PodSandboxConfig // as asked
	Encodings *Encodings                   // of Config
}

// Ready says whether containers can be made in the pod (CRI PodSandboxState).
func (p Pod) Ready() bool { return IsReady(&p.Pod) }

// Overhead and Resources return what the pod costs beside its containers, and what those may use
// together, as they were told last (CRI LinuxPodSandboxConfig, UpdatePodSandboxResources).
func (p Pod) Overhead() *runtimeapi.LinuxContainerResources {
	return RememberedOr(p.Pod.Overhead, p.Config.GetLinux().GetOverhead())
}

func (p Pod) Resources() *runtimeapi.LinuxContainerResources {
	return RememberedOr(p.Limits, p.Config.GetLinux().GetResources())
}

// IsReady holds of a pod that came up, whose pause process lives, and that nobody has asked to
// stop.
func IsReady(r *store.Pod) bool { return r.State == store.PodReady && r.PausePID != 0 }

// Pod returns the pod with this id or unique beginning of one. ErrNotFound, ErrInvalidArgument.
func (t *Table) Pod(id string) (Pod, error) {
	p, err := t.FindPod(id)
	if err != nil {
		return Pod{}, err
	}
	r, ok := t.States.Get(p.ID)
	if !ok || r.State == store.PodCreating {
		return Pod{}, fmt.Errorf("pod %s: %w", id, errdefs.ErrNotFound)
	}
	return Pod{Pod: *r, Config: p.Config, Encodings: &p.encodings}, nil
}
