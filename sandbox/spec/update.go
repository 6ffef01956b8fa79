package spec

import (
	"fmt"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// Update returns a copy of a container's spec in which what r sets is changed
// (CRI UpdateContainerResources); zero and empty fields of r mean "leave
// unchanged". ErrInvalidArgument names the field that no machine could serve,
// ErrFailedPrecondition what this one lacks.
func Update(h Host, s *specs.Spec, r *runtimeapi.LinuxContainerResources) (*specs.Spec, []check.Note, error) {
	if s == nil || s.Process == nil || s.Linux == nil {
		return nil, nil, fmt.Errorf("update spec: it has no process: %w", errdefs.ErrInvalidArgument)
	}
	// Who made the cgroup goes on to limit it, whatever makes new ones now.
	h.SystemdCgroup = s.Linux.CgroupsPath != "" && !path.IsAbs(s.Linux.CgroupsPath)
	d := draft{host: h, spec: clone(s)}
	var err error
	if d.spec.Linux.Resources, d.notes, err = MergeResources(h, s.Linux.Resources, r); err != nil {
		return nil, nil, err
	}
	if adj := r.GetOomScoreAdj(); adj != 0 {
		d.spec.Process.OOMScoreAdj = ptr(d.clampOOM("resources.oom_score_adj", int(adj)))
	}
	return d.spec, d.notes, nil
}

// MergeRequests returns what was asked for altogether: current, with what r sets
// changed as Update changes the spec. It is what the CRI's status tells, and
// shares nothing with its arguments.
func MergeRequests(current, r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	proto.Merge(out, current)
	pages := out.HugepageLimits
	out.HugepageLimits = nil
	proto.Merge(out, r)
	for _, l := range out.HugepageLimits {
		i := slices.IndexFunc(pages, func(x *runtimeapi.HugepageLimit) bool { return x.GetPageSize() == l.GetPageSize() })
		if i < 0 {
			pages = append(pages, l)
			continue
		}
		pages[i] = l
	}
	out.HugepageLimits = pages
	// A limit raised beyond memory and swap together takes that along.
	if memory, swap := out.GetMemoryLimitInBytes(), out.GetMemorySwapLimitInBytes(); swap > 0 && (memory < 0 || memory > swap) {
		out.MemorySwapLimitInBytes = memory
	}
	return out
}

// Lift returns a copy of r that says a word about every limit of cpu and memory
// that other has and r has not: that there is none. To an OCI runtime silence
// means that a limit stays. Less memory than before is asked for with a check,
// or a kernel with cgroup v2 makes room by killing.
func Lift(r, other *specs.LinuxResources) *specs.LinuxResources {
	out := clone(r)
	if other == nil {
		return out
	}
	if other.CPU != nil {
		out.CPU = liftCPU(out.CPU, other.CPU)
	}
	if out.Memory != nil && out.Memory.Limit != nil {
		before := int64(-1)
		if other.Memory != nil && other.Memory.Limit != nil {
			before = *other.Memory.Limit
		}
		if lower := *out.Memory.Limit; lower >= 0 && (before < 0 || lower < before) {
			out.Memory.CheckBeforeUpdate = ptr(true)
		}
		return out
	}
	if other.Memory != nil && other.Memory.Limit != nil {
		out.Memory = &specs.LinuxMemory{Limit: ptr(int64(-1))}
		if other.Memory.Swap != nil {
			out.Memory.Swap = ptr(int64(-1))
		}
	}
	return out
}

// What a new cgroup has.
const defaultShares, defaultPeriod = 1024, 100000

func liftCPU(c, other *specs.LinuxCPU) *specs.LinuxCPU {
	if c == nil {
		c = &specs.LinuxCPU{}
	}
	if c.Shares == nil && other.Shares != nil {
		c.Shares = ptr(uint64(defaultShares))
	}
	if c.Quota == nil && other.Quota != nil {
		c.Quota = ptr(int64(-1))
	}
	if c.Period == nil && other.Period != nil {
		c.Period = ptr(uint64(defaultPeriod))
	}
	return c
}
