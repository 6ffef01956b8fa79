// Package limits changes the limits of a cgroup: what a request sets, in what is there. It writes to
// no cgroup.
package limits

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// Controllers is what of this machine limits depend on.
type Controllers struct {
	// CgroupV2 is true where the unified hierarchy is used.
	CgroupV2 bool
	// SystemdCgroup is true if systemd makes the cgroups; otherwise the OCI runtime does.
	SystemdCgroup bool
	// HugePageSizes that the hugetlb controller limits, "2MB", "1GB"; empty without the controller.
	HugePageSizes []string
	// MemorySwapAccounting is true if a memory cgroup can limit swap.
	MemorySwapAccounting bool
	// CPUs and Mems are the lists of processors and memory nodes that this machine can have, plugged
	// in or not, as the kernel prints them ("0-3,8"). "" means unknown: then a cpuset may be anything.
	CPUs, Mems string
}

const (
	// MinShares is the first of the kernel's bounds of cpu.shares and of the CFS period and quota.
	MinShares, maxShares = 2, 262144
	minPeriod, maxPeriod = 1000, 1000000
	minQuota             = 1000
	// minMemory in bytes: no OCI runtime starts a process in less, and its error would not mention
	// memory.
	minMemory = 1 << 20
)

// Merge returns current with what r sets changed in it; zero and empty fields of r mean "leave
// unchanged". It does not change current, and shares with it what r cannot set. The notes tell what
// this machine cannot enforce. The oom score adjustment is no limit of a cgroup; Merge ignores it.
func Merge(
	c Controllers, current *specs.LinuxResources, r *runtimeapi.LinuxContainerResources,
) (*specs.LinuxResources, []check.Note, error) {
	if err := Check(r, c); err != nil {
		return nil, nil, err
	}
	m := merge{host: c, in: r, out: copyOf(current)}
	for _, s := range []func(*merge) error{(*merge).cpu, (*merge).memory, (*merge).hugepages, (*merge).unified} {
		if err := s(&m); err != nil {
			return nil, nil, err
		}
	}
	return m.out, m.notes, nil
}

// copyOf returns a copy that shares only what this package does not change.
func copyOf(r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil {
		return &specs.LinuxResources{}
	}
	out := *r
	if r.CPU != nil {
		out.CPU = new(*r.CPU)
	}
	if r.Memory != nil {
		out.Memory = new(*r.Memory)
	}
	out.HugepageLimits, out.Unified = slices.Clone(r.HugepageLimits), maps.Clone(r.Unified)
	return &out
}

type merge struct {
	host  Controllers
	in    *runtimeapi.LinuxContainerResources
	out   *specs.LinuxResources
	notes []check.Note
}

func (m *merge) note(field, format string, args ...any) {
	m.notes = append(m.notes, check.Notef("resources."+field, format, args...))
}

func (m *merge) cpu() error {
	r := m.in
	if r.GetCpuShares() == 0 && r.GetCpuQuota() == 0 && r.GetCpuPeriod() == 0 && r.GetCpusetCpus() == "" &&
		r.GetCpusetMems() == "" {
		return nil
	}
	if m.out.CPU == nil {
		m.out.CPU = &specs.LinuxCPU{}
	}
	c := m.out.CPU
	if s := r.GetCpuShares(); s != 0 {
		c.Shares = new(uint64(min(max(s, MinShares), maxShares)))
		if int64(*c.Shares) != s {
			m.note("cpu_shares", "%d was changed to %d, the nearest possible value", s, *c.Shares)
		}
	}
	if q := r.GetCpuQuota(); q != 0 {
		c.Quota = new(q)
	}
	if p := r.GetCpuPeriod(); p != 0 {
		c.Period = new(uint64(p))
	}
	if s := r.GetCpusetCpus(); s != "" {
		c.Cpus = s
	}
	if s := r.GetCpusetMems(); s != "" {
		c.Mems = s
	}
	return nil
}

// memory allows no swap unless the request says otherwise. The OCI runtime spec has one number for
// memory and swap together.
func (m *merge) memory() error {
	limit, swap := m.in.GetMemoryLimitInBytes(), m.in.GetMemorySwapLimitInBytes()
	if limit == 0 && swap == 0 {
		return nil
	}
	if m.out.Memory == nil {
		m.out.Memory = &specs.LinuxMemory{}
	}
	out, was := m.out.Memory, *m.out.Memory
	if limit != 0 {
		out.Limit = new(limit)
	}
	if !m.host.MemorySwapAccounting {
		out.Swap = nil
		if swap != 0 && swap != limit {
			m.note("memory_swap_limit_in_bytes", "%d is not enforced: this machine cannot limit swap", swap)
		}
		return nil
	}
	if swap == 0 {
		swap = swapBeside(limit, was)
	}
	if out.Limit == nil {
		m.note("memory_swap_limit_in_bytes", "%d is not enforced: there is no memory limit", swap)
		return nil
	}
	if swap > 0 && *out.Limit > 0 && swap < *out.Limit {
		return check.Invalid("resources.memory_swap_limit_in_bytes", "%d is below the memory limit %d, which it includes",
			swap, *out.Limit)
	}
	out.Swap = new(swap)
	m.noSwap(was)
	return nil
}

// noSwap sets memory.swap.max as well when there is to be no swap: runc does not pass a swap limit of
// 0 on to systemd, which would make it "max" with the next daemon-reload. A limit that allows swap
// removes this setting again.
func (m *merge) noSwap(was specs.LinuxMemory) {
	if !m.host.CgroupV2 || !m.host.SystemdCgroup {
		return
	}
	if hasNoSwap(*m.out.Memory) {
		m.setUnified(swapMax, "0")
	} else if hasNoSwap(was) && m.out.Unified[swapMax] == "0" {
		delete(m.out.Unified, swapMax)
	}
}

const swapMax = "memory.swap.max"

func hasNoSwap(l specs.LinuxMemory) bool {
	return l.Limit != nil && l.Swap != nil && *l.Limit > 0 && *l.Swap == *l.Limit
}

func (m *merge) setUnified(key, value string) {
	if m.out.Unified == nil {
		m.out.Unified = map[string]string{}
	}
	m.out.Unified[key] = value
}

// swapBeside returns the limit of memory and swap together for a request that names a memory limit
// alone: no swap if there was none, else the limit that there was, or the memory limit if that is
// higher.
func swapBeside(limit int64, was specs.LinuxMemory) int64 {
	switch {
	case was.Swap == nil, was.Limit != nil && *was.Swap == *was.Limit:
		return limit
	case limit < 0 || *was.Swap < 0:
		return -1
	}
	return max(limit, *was.Swap)
}

// hugepages knows that the kubelet lists every page size of the machine, most with limit 0, also
// where the controller is missing.
func (m *merge) hugepages() error {
	for _, l := range m.in.GetHugepageLimits() {
		size := l.GetPageSize()
		if !slices.Contains(m.host.HugePageSizes, size) {
			if l.GetLimit() != 0 {
				m.note("hugepage_limits", "%s: %d is not enforced: this machine has no hugetlb controller for it",
					size, l.GetLimit())
			}
			continue
		}
		i := slices.IndexFunc(m.out.HugepageLimits, func(x specs.LinuxHugepageLimit) bool { return x.Pagesize == size })
		if i < 0 {
			i = len(m.out.HugepageLimits)
			m.out.HugepageLimits = append(m.out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size})
		}
		m.out.HugepageLimits[i].Limit = l.GetLimit()
	}
	return nil
}

func (m *merge) unified() error {
	if len(m.in.GetUnified()) == 0 {
		return nil
	}
	if !m.host.CgroupV2 {
		return fmt.Errorf("resources.unified: this machine does not use cgroup v2: %w", errdefs.ErrFailedPrecondition)
	}
	for key, value := range m.in.GetUnified() {
		if strings.HasPrefix(key, "memory.swap.") && !m.host.MemorySwapAccounting {
			m.note("unified", "%s is not enforced: this machine cannot limit swap", key)
			continue
		}
		if m.host.SystemdCgroup { // the OCI runtime tells systemd, and reads only decimal numbers
			value = decimal(key, value)
		}
		m.setUnified(key, value)
	}
	slices.SortFunc(m.notes, func(a, b check.Note) int { return strings.Compare(a.String(), b.String()) })
	return nil
}
