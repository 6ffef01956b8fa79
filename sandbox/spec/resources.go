package spec

import (
	"cmp"
	"fmt"
	"math/bits"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

const (
	// Bounds of cpu.shares and of the CFS period and quota, in the kernel.
	minShares, maxShares = 2, 262144
	minPeriod, maxPeriod = 1000, 1000000
	minQuota             = 1000
	// minMemory in bytes: no OCI runtime starts a process in less, and what
	// comes of trying says nothing about memory.
	minMemory = 1 << 20
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
	r, notes, err := MergeResources(d.host, d.spec.Linux.Resources, d.c.Config.GetLinux().GetResources())
	if err != nil {
		return err
	}
	if r.Pids == nil && d.host.PidsLimit > 0 {
		r.Pids = &specs.LinuxPids{Limit: ptr(d.host.PidsLimit)}
	}
	if r.Pids == nil && d.host.SystemdCgroup {
		r.Pids = &specs.LinuxPids{Limit: ptr(int64(-1))} // without a word systemd sets its DefaultTasksMax
	}
	d.spec.Linux.Resources = r
	d.notes = append(d.notes, notes...)
	return nil
}

// MergeResources returns a copy of current in which what r sets is changed;
// zero and empty fields of r mean "leave unchanged". The notes tell what this
// machine cannot enforce. The oom score adjustment is not a resource of a
// cgroup and is not looked at.
func MergeResources(h Host, current *specs.LinuxResources, r *runtimeapi.LinuxContainerResources) (*specs.LinuxResources, []check.Note, error) {
	if err := ValidateResources(r, h); err != nil {
		return nil, nil, err
	}
	m := merge{host: h, in: r, out: &specs.LinuxResources{}}
	if current != nil {
		m.out = clone(current)
	}
	for _, s := range []func(*merge) error{(*merge).cpu, (*merge).memory, (*merge).hugepages, (*merge).unified} {
		if err := s(&m); err != nil {
			return nil, nil, err
		}
	}
	return m.out, m.notes, nil
}

type merge struct {
	host  Host
	in    *runtimeapi.LinuxContainerResources
	out   *specs.LinuxResources
	notes []check.Note
}

func (m *merge) note(field, format string, args ...any) {
	m.notes = append(m.notes, check.Notef("resources."+field, format, args...))
}

func (m *merge) cpu() error {
	r := m.in
	if r.GetCpuShares() == 0 && r.GetCpuQuota() == 0 && r.GetCpuPeriod() == 0 && r.GetCpusetCpus() == "" && r.GetCpusetMems() == "" {
		return nil
	}
	if m.out.CPU == nil {
		m.out.CPU = &specs.LinuxCPU{}
	}
	c := m.out.CPU
	if s := r.GetCpuShares(); s != 0 {
		c.Shares = ptr(uint64(min(max(s, minShares), maxShares)))
		if int64(*c.Shares) != s {
			m.note("cpu_shares", "%d clamped to %d", s, *c.Shares)
		}
	}
	if q := r.GetCpuQuota(); q != 0 {
		c.Quota = ptr(q)
	}
	if p := r.GetCpuPeriod(); p != 0 {
		c.Period = ptr(uint64(p))
	}
	if s := r.GetCpusetCpus(); s != "" {
		c.Cpus = s
	}
	if s := r.GetCpusetMems(); s != "" {
		c.Mems = s
	}
	return nil
}

// memory: swap is limited to nothing unless the request says otherwise. The
// OCI figure is memory and swap together.
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
		out.Limit = ptr(limit)
	}
	if !m.host.MemorySwapAccounting {
		out.Swap = nil
		if swap != 0 && swap != limit {
			m.note("memory_swap_limit_in_bytes", "%d is not enforced: this machine does not account for swap", swap)
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
		return check.Invalid("resources.memory_swap_limit_in_bytes", "%d is below the memory limit %d, which it includes", swap, *out.Limit)
	}
	out.Swap = ptr(swap)
	m.noSwap(was)
	return nil
}

// noSwap says that there is no swap in a second way, which systemd keeps: runc tells systemd nothing
// of a swap limit of 0, and with the next daemon-reload systemd makes it "max". A limit that leaves
// swap takes that word back.
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

// swapBeside returns the OCI figure for a request that names a memory limit
// alone: no swap where there was none, else what it was if that holds the memory.
func swapBeside(limit int64, was specs.LinuxMemory) int64 {
	switch {
	case was.Swap == nil, was.Limit != nil && *was.Swap == *was.Limit:
		return limit
	case limit < 0 || *was.Swap < 0:
		return -1
	}
	return max(limit, *was.Swap)
}

// hugepages: kubelet lists every size of the machine with most of them 0,
// also where the controller is missing.
func (m *merge) hugepages() error {
	for _, l := range m.in.GetHugepageLimits() {
		size := l.GetPageSize()
		if !slices.Contains(m.host.HugePageSizes, size) {
			if l.GetLimit() != 0 {
				m.note("hugepage_limits", "%s: %d is not enforced: this machine has no controller for it", size, l.GetLimit())
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
		return fmt.Errorf("resources.unified: this machine has no cgroup v2: %w", errdefs.ErrFailedPrecondition)
	}
	for key, value := range m.in.GetUnified() {
		if strings.HasPrefix(key, "memory.swap.") && !m.host.MemorySwapAccounting {
			m.note("unified", "%s is not enforced: this machine does not account for swap", key)
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

// ValidateResources checks the figures by themselves.
func ValidateResources(r *runtimeapi.LinuxContainerResources, h Host) error {
	for _, valid := range []func(*runtimeapi.LinuxContainerResources, Host) error{
		checkCPU, checkMemory, checkCPUSets, checkHugePages, checkUnified, checkOOMScoreAdj,
	} {
		if err := valid(r, h); err != nil {
			return err
		}
	}
	return nil
}

func checkCPU(r *runtimeapi.LinuxContainerResources, _ Host) error {
	if s := r.GetCpuShares(); s < 0 {
		return check.Invalid("resources.cpu_shares", "%d is negative", s)
	}
	if p := r.GetCpuPeriod(); p != 0 && (p < minPeriod || p > maxPeriod) {
		return check.Invalid("resources.cpu_period", "%d is not between %d and %d microseconds", p, minPeriod, maxPeriod)
	}
	if q := r.GetCpuQuota(); q < -1 || (q > 0 && q < minQuota) {
		return check.Invalid("resources.cpu_quota", "%d is neither -1 nor at least %d microseconds", q, minQuota)
	}
	return nil
}

func checkMemory(r *runtimeapi.LinuxContainerResources, _ Host) error {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < -1 || (limit >= 0 && limit < minMemory && limit != 0) {
		return check.Invalid("resources.memory_limit_in_bytes", "%d is too small: nothing starts in less than %d bytes", limit, minMemory)
	}
	if swap < -1 {
		return check.Invalid("resources.memory_swap_limit_in_bytes", "%d is negative", swap)
	}
	if swap > 0 && limit > 0 && swap < limit {
		return check.Invalid("resources.memory_swap_limit_in_bytes", "%d is below the memory limit %d, which it includes", swap, limit)
	}
	return nil
}

func checkCPUSets(r *runtimeapi.LinuxContainerResources, h Host) error {
	if err := check.Set("resources.cpuset_cpus", r.GetCpusetCpus(), h.CPUs); err != nil {
		return err
	}
	return check.Set("resources.cpuset_mems", r.GetCpusetMems(), h.Mems)
}

func checkOOMScoreAdj(r *runtimeapi.LinuxContainerResources, _ Host) error {
	if v := r.GetOomScoreAdj(); v < -1000 || v > 1000 {
		return check.Invalid("resources.oom_score_adj", "%d is not between -1000 and 1000", v)
	}
	return nil
}

// hugePageSize is a power of two, in the unit that leaves the smallest number.
var hugePageSize = regexp.MustCompile(`^(1|2|4|8|16|32|64|128|256|512)[KMG]B$`)

func checkHugePages(r *runtimeapi.LinuxContainerResources, h Host) error {
	seen := map[string]bool{}
	for _, l := range r.GetHugepageLimits() {
		size := l.GetPageSize()
		if !hugePageSize.MatchString(size) {
			return check.Invalid("resources.hugepage_limits", "%q is not a page size such as 2MB", check.Truncate(size))
		}
		if seen[size] {
			return check.Invalid("resources.hugepage_limits", "%s occurs twice", size)
		}
		seen[size] = true
		if l.GetLimit() != 0 && len(h.HugePageSizes) > 0 && !slices.Contains(h.HugePageSizes, size) {
			return check.Invalid("resources.hugepage_limits", "this machine has no pages of %s", size)
		}
	}
	return nil
}

// unifiedKey is the name of a file in which a controller takes a limit: no
// path, and none of the files that make up the hierarchy itself.
var unifiedKey = regexp.MustCompile(`^(pids\.max|(cpu|cpuset|dmem|hugetlb|io|memory|misc|rdma)(\.[A-Za-z0-9_-]+)+)$`)

func checkUnified(r *runtimeapi.LinuxContainerResources, _ Host) error {
	for key, value := range r.GetUnified() {
		if len(key) > check.MaxName || !unifiedKey.MatchString(key) {
			return check.Invalid("resources.unified", "%q is not a limit of cpu, cpuset, dmem, hugetlb, io, memory, misc, pids or rdma", check.Truncate(key))
		}
		if len(value) > check.MaxPath || strings.ContainsFunc(value, check.IsControl) {
			return check.Invalid("resources.unified", "the value of %s holds a control character or is too long", key)
		}
		if !isUnifiedValue(key, value) {
			return check.Invalid("resources.unified", "%q is no value of %s", check.Truncate(value), key)
		}
	}
	return nil
}

// isUnifiedValue says whether the kernel takes the value for a file of cgroup v2, of those files
// that an OCI runtime reads itself when systemd makes the cgroups. It would fail at the start,
// without saying whose fault it is. The kernel judges the values of all other files.
func isUnifiedValue(key, value string) bool {
	value = strings.TrimSpace(value)
	switch key {
	case "memory.min", "memory.low", "memory.high", "memory.max", swapMax, "pids.max":
		_, ok := kernelNumber(value, key != "pids.max")
		return ok || value == "max"
	case "cpu.weight":
		_, ok := kernelNumber(value, false)
		return ok
	case "cpu.max":
		part := strings.Fields(value)
		for i, p := range part {
			if _, err := strconv.ParseUint(p, 10, 63); err != nil && (i > 0 || p != "max") {
				return false
			}
		}
		return len(part) == 1 || len(part) == 2
	case "memory.oom.group", "cpu.idle":
		return value == "0" || value == "1"
	case "cpuset.cpus", "cpuset.mems":
		return value == "" || check.IsSet(value)
	}
	return true
}

// decimal returns a number as a decimal one; any other value as it is.
func decimal(key, value string) string {
	switch key {
	case "memory.min", "memory.low", "memory.high", "memory.max", swapMax, "pids.max", "cpu.weight":
		if n, ok := kernelNumber(strings.TrimSpace(value), strings.HasPrefix(key, "memory.")); ok {
			return strconv.FormatUint(n, 10)
		}
	}
	return value
}

var kernelDigits = regexp.MustCompile(`^(0[xX][0-9a-fA-F]+|[0-9]+)$`)

// kernelNumber reads a number as the kernel does: 0x is hexadecimal, a leading 0 octal, and where
// there may be a unit, K to E are powers of 1024.
func kernelNumber(s string, unit bool) (n uint64, ok bool) {
	shift := 0
	if last := len(s) - 1; unit && last > 0 && !strings.HasPrefix(strings.ToLower(s), "0x") {
		if i := strings.IndexByte("KMGTPE", strings.ToUpper(s[last:])[0]); i >= 0 {
			s, shift = s[:last], 10*(i+1)
		}
	}
	if !kernelDigits.MatchString(s) {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil || bits.Len64(n)+shift > 64 {
		return 0, false
	}
	return n << shift, true
}
