package limits

import (
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// Check checks the limits of a request by themselves.
func Check(r *runtimeapi.LinuxContainerResources, c Controllers) error {
	for _, valid := range []func(*runtimeapi.LinuxContainerResources, Controllers) error{
		checkCPU, checkMemory, checkCPUSets, checkHugePages, checkUnified, checkOOMScoreAdj,
	} {
		if err := valid(r, c); err != nil {
			return err
		}
	}
	return nil
}

func checkCPU(r *runtimeapi.LinuxContainerResources, _ Controllers) error {
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

func checkMemory(r *runtimeapi.LinuxContainerResources, _ Controllers) error {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < -1 || (limit >= 0 && limit < minMemory && limit != 0) {
		return check.Invalid("resources.memory_limit_in_bytes", "%d is too small: no process starts with less than %d bytes",
			limit, minMemory)
	}
	if swap < -1 {
		return check.Invalid("resources.memory_swap_limit_in_bytes", "%d is negative", swap)
	}
	if swap > 0 && limit > 0 && swap < limit {
		return check.Invalid("resources.memory_swap_limit_in_bytes", "%d is below the memory limit %d, which it includes",
			swap, limit)
	}
	return nil
}

func checkCPUSets(r *runtimeapi.LinuxContainerResources, c Controllers) error {
	if err := check.Set("resources.cpuset_cpus", r.GetCpusetCpus(), c.CPUs); err != nil {
		return err
	}
	return check.Set("resources.cpuset_mems", r.GetCpusetMems(), c.Mems)
}

func checkOOMScoreAdj(r *runtimeapi.LinuxContainerResources, _ Controllers) error {
	if v := r.GetOomScoreAdj(); v < -1000 || v > 1000 {
		return check.Invalid("resources.oom_score_adj", "%d is not between -1000 and 1000", v)
	}
	return nil
}

// hugePageSize is a power of two, in the unit that leaves the smallest number.
var hugePageSize = regexp.MustCompile(`^(1|2|4|8|16|32|64|128|256|512)[KMG]B$`)

func checkHugePages(r *runtimeapi.LinuxContainerResources, c Controllers) error {
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
		if l.GetLimit() != 0 && len(c.HugePageSizes) > 0 && !slices.Contains(c.HugePageSizes, size) {
			return check.Invalid("resources.hugepage_limits", "this machine has no pages of %s", size)
		}
	}
	return nil
}

// unifiedKey is the name of a file in which a controller has a limit: no path, and no file of the
// hierarchy itself, such as cgroup.procs.
var unifiedKey = regexp.MustCompile(`^(pids\.max|(cpu|cpuset|dmem|hugetlb|io|memory|misc|rdma)(\.[A-Za-z0-9_-]+)+)$`)

func checkUnified(r *runtimeapi.LinuxContainerResources, _ Controllers) error {
	for key, value := range r.GetUnified() {
		if len(key) > check.MaxName || !unifiedKey.MatchString(key) {
			return check.Invalid("resources.unified",
				"%q is not a limit of cpu, cpuset, dmem, hugetlb, io, memory, misc, pids or rdma", check.Truncate(key))
		}
		if len(value) > check.MaxPath || strings.ContainsFunc(value, check.IsControl) {
			return check.Invalid("resources.unified", "the value of %s contains a control character or is too long", key)
		}
		if !isUnifiedValue(key, value) {
			return check.Invalid("resources.unified", "%q is not a valid value of %s", check.Truncate(value), key)
		}
	}
	return nil
}

// isUnifiedValue is true if the kernel takes the value for a file of cgroup v2. It knows the files
// that an OCI runtime reads itself when systemd makes the cgroups: its error at the start would not
// say which value is wrong. The kernel checks the values of all other files.
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
