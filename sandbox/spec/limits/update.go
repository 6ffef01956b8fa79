package limits

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MergeRequests returns what was asked for altogether: current, with what r sets changed as Merge
// changes the limits. The CRI's status reports it. It shares nothing with its arguments.
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
	// A memory limit above the limit of memory and swap together raises that too.
	if memory, swap := out.GetMemoryLimitInBytes(), out.GetMemorySwapLimitInBytes(); swap > 0 &&
		(memory < 0 || memory > swap) {
		out.MemorySwapLimitInBytes = memory
	}
	return out
}

// Lift returns a copy of r in which every limit of cpu and memory that other has and r has not is
// unlimited: an OCI runtime leaves a limit alone that is not named. When the memory limit becomes
// lower, the runtime is to check the usage first, because with cgroup v2 the kernel would kill
// processes to get below the limit.
func Lift(r, other *specs.LinuxResources) *specs.LinuxResources {
	out := copyOf(r)
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
			out.Memory.CheckBeforeUpdate = new(true)
		}
		return out
	}
	if other.Memory != nil && other.Memory.Limit != nil {
		out.Memory = &specs.LinuxMemory{Limit: new(int64(-1))}
		if other.Memory.Swap != nil {
			out.Memory.Swap = new(int64(-1))
		}
	}
	return out
}

// The values of a new cgroup.
const defaultShares, defaultPeriod = 1024, 100000

func liftCPU(c, other *specs.LinuxCPU) *specs.LinuxCPU {
	if c == nil {
		c = &specs.LinuxCPU{}
	}
	if c.Shares == nil && other.Shares != nil {
		c.Shares = new(uint64(defaultShares))
	}
	if c.Quota == nil && other.Quota != nil {
		c.Quota = new(int64(-1))
	}
	if c.Period == nil && other.Period != nil {
		c.Period = new(uint64(defaultPeriod))
	}
	return c
}
