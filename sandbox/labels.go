package sandbox

import (
	"context"

	"github.com/containerd/log"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

func seLinuxOptions(o *runtimeapi.SELinuxOption) selinux.Options {
	return selinux.Options{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// labelLayers gives the folder of unpacked layers a label that containers may read. The kernel maps
// the file of a layer itself into a process, and SELinux then looks at this one's label, not at
// the label that the mount has.
func labelLayers(ctx context.Context, dir string) {
	if err := selinux.Relabel(ctx, dir, selinux.Layers()); err != nil {
		log.G(ctx).WithError(err).Warn("programs of images may be denied to containers by SELinux")
	}
}

// labels are the SELinux labels of pods and containers, as their records have them.
type labels struct {
	on     bool // the kernel labels, and so does this daemon
	states *table.States
}

// forPod returns the SELinux labels of a new pod, none where the host has no SELinux. Their level
// belongs to the pod until drop.
func (l *labels) forPod(c *runtimeapi.PodSandboxConfig) (selinux.Labels, error) {
	if !l.on {
		return selinux.Labels{}, nil
	}
	return selinux.NewPod(seLinuxOptions(c.GetLinux().GetSecurityContext().GetSelinuxOptions()))
}

func labelsOf(r *store.Pod) selinux.Labels {
	return selinux.Labels{Process: r.ProcessLabel, Mount: r.MountLabel}
}

// reserve keeps the levels of all pods that were made by an earlier daemon.
func (l *labels) reserve() {
	for _, r := range l.states.List() {
		if r.MountLabel != "" {
			selinux.Reserve(labelsOf(r))
		}
	}
}

// drop lets the level of a pod that is forgotten be given away, unless another pod has it: several
// may have asked for the same.
func (l *labels) drop(of selinux.Labels) {
	if of.Mount == "" {
		return
	}
	for _, r := range l.states.List() {
		if selinux.Level(r.MountLabel) == selinux.Level(of.Mount) {
			return
		}
	}
	selinux.Release(of)
}

// forContainer returns the labels of a container: its pod's, with what its own request puts in
// their place.
func (l *labels) forContainer(pod *store.Pod, config *runtimeapi.ContainerConfig) (selinux.Labels, error) {
	if !l.on {
		return selinux.Labels{}, nil
	}
	sc := config.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() { // its processes have none, its files those of the pod
		return labelsOf(pod), nil
	}
	return labelsOf(pod).Container(seLinuxOptions(sc.GetSelinuxOptions()))
}
