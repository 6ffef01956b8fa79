package spec

import (
	"cmp"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
	"github.com/cribox/cribox/sandbox/spec/limits"
)

// cgroupsPath puts it below the parent that kubelet made. What has no parent
// goes below the host's own for such pods.
func (d *draft) cgroupsPath() error {
	parent := d.pod.Config.GetLinux().GetCgroupParent()
	if d.host.SystemdCgroup {
		slice := cmp.Or(d.host.CgroupParent, "system.slice")
		if parent != "" {
			slice = path.Base(parent)
		}
		d.spec.Linux.CgroupsPath = strings.Join([]string{slice, "cribox", d.id()}, ":")
		return nil
	}
	if parent == "" {
		parent = cmp.Or(d.host.CgroupParent, "/cribox")
	}
	d.spec.Linux.CgroupsPath = path.Join("/", parent, d.id())
	return nil
}

// resources keeps the device rules that are already there.
func (d *draft) resources() error {
	r, notes, err := limits.Merge(d.host.Controllers, d.spec.Linux.Resources, d.c.Config.GetLinux().GetResources())
	if err != nil {
		return err
	}
	if r.Pids == nil && d.host.PidsLimit > 0 {
		r.Pids = &specs.LinuxPids{Limit: new(d.host.PidsLimit)}
	}
	if r.Pids == nil && d.host.SystemdCgroup {
		r.Pids = &specs.LinuxPids{Limit: new(int64(-1))} // without a word systemd sets its DefaultTasksMax
	}
	d.spec.Linux.Resources = r
	d.notes = append(d.notes, notes...)
	return nil
}

// Update returns a copy of a container's spec with what r sets changed in it (CRI
// UpdateContainerResources); zero and empty fields of r mean "leave unchanged". ErrInvalidArgument
// names the field that no machine could serve, ErrFailedPrecondition what this one lacks.
func Update(h Host, s *specs.Spec, r *runtimeapi.LinuxContainerResources) (*specs.Spec, []check.Note, error) {
	if s == nil || s.Process == nil || s.Linux == nil {
		return nil, nil, fmt.Errorf("update spec: it has no process: %w", errdefs.ErrInvalidArgument)
	}
	// A cgroup keeps the driver that made it, also when new ones are made by the other one.
	h.SystemdCgroup = s.Linux.CgroupsPath != "" && !path.IsAbs(s.Linux.CgroupsPath)
	d := draft{host: h, spec: clone(s)}
	var err error
	if d.spec.Linux.Resources, d.notes, err = limits.Merge(h.Controllers, d.spec.Linux.Resources, r); err != nil {
		return nil, nil, err
	}
	if adj := r.GetOomScoreAdj(); adj != 0 {
		d.spec.Process.OOMScoreAdj = new(d.clampOOM("resources.oom_score_adj", int(adj)))
	}
	return d.spec, d.notes, nil
}
