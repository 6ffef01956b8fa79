package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/apparmor"
	"github.com/cribox/cribox/sandbox/cgroup"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/spec/capability"
	"github.com/cribox/cribox/sandbox/spec/limits"
	"github.com/cribox/cribox/sandbox/spec/seccomp"
)

// capSysResource is the capability that lets a process lower its oom_score_adj and raise its hard
// limits (linux/capability.h).
const capSysResource = 24

// ReadHost finds out what this machine can do, user namespaces excepted. What cannot be read counts
// as absent.
func ReadHost() (spec.Host, error) {
	last, err := readInt("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return spec.Host{}, fmt.Errorf("this machine's capabilities: %w", err)
	}
	mask, err := boundingSet()
	if err != nil {
		return spec.Host{}, fmt.Errorf("this machine's capabilities: %w", err)
	}
	kernel := kernelVersion()
	cgroups, err := cgroupOptions()
	if err != nil {
		return spec.Host{}, fmt.Errorf("this machine's mounts: %w", err)
	}
	h := spec.Host{
		CgroupOptions:  cgroups,
		Capabilities:   capability.Known(int(last)),
		Grantable:      capability.Of(mask),
		OOMScoreAdjMin: -1000,
		Seccomp:        present("/proc/sys/kernel/seccomp/actions_avail"),
		AppArmor:       apparmor.Enabled(),
		Machine: seccomp.Machine{
			Kernel:   kernel,
			X32:      x32(),
			Compat32: runtime.GOARCH != "amd64" || present("/proc/sys/abi/vsyscall32"),
		},
		RecursiveReadOnly: atLeast(kernel, [2]int{5, 12}),
		Controllers: limits.Controllers{
			CgroupV2:             cgroup.Unified(),
			MemorySwapAccounting: present(cgroup.Mount+"/memory/memory.memsw.limit_in_bytes") || cgroup.Unified(),
		},
		StackLimit: stackLimit(),
		RlimitHard: map[string]uint64{},
	}
	if most, err := readInt("/proc/sys/fs/nr_open"); err == nil {
		h.RlimitHard["RLIMIT_NOFILE"] = uint64(most) // whoever asks
	}
	h = withHardware(h)
	if mask&(1<<capSysResource) == 0 {
		err = limitHost(&h)
	}
	return h, err
}

// withHardware reads what can change while the daemon runs, for one request. A cpuset is compared
// with what the machine can have: of what is not plugged in the kernel decides.
func withHardware(h spec.Host) spec.Host {
	h.HugePageSizes = hugePageSizes()
	h.CPUs = readString("/sys/devices/system/cpu/possible")
	h.Mems = readString("/sys/devices/system/node/possible")
	return h
}

// stackLimit is the soft limit that processes inherit; 0 is unknown.
func stackLimit() uint64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_STACK, &l) != nil {
		return 0
	}
	return l.Cur
}

// limitHost notes what cannot be given without CAP_SYS_RESOURCE: a lower oom_score_adj and higher
// hard limits than ours.
func limitHost(h *spec.Host) error {
	own, err := readInt("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	h.OOMScoreAdjMin = int(own)
	for name, which := range rlimits {
		var l unix.Rlimit
		if err := unix.Getrlimit(which, &l); err != nil {
			return fmt.Errorf("limit %s: %w", name, err)
		}
		if other, ok := h.RlimitHard[name]; !ok || l.Max < other {
			h.RlimitHard[name] = l.Max
		}
	}
	return nil
}

// rlimits are the limits of a process that an OCI spec can set, by number (sys/resource.h).
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA":  unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func boundingSet() (uint64, error) {
	for line := range strings.Lines(readString("/proc/self/status")) {
		if set, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			return strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		}
	}
	return 0, errors.New("no CapBnd in /proc/self/status")
}

// cgroupOptions returns the options of this machine's cgroup v2 that belong to the whole of it.
func cgroupOptions() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(cgroup.Mount))
	if err != nil || len(mounts) == 0 || mounts[0].FSType != "cgroup2" {
		return nil, err
	}
	var all []string
	for o := range strings.SplitSeq(mounts[0].VFSOptions, ",") {
		if o == "nsdelegate" || o == "memory_recursiveprot" {
			all = append(all, o)
		}
	}
	return all, nil
}

// hugePageSizes returns the sizes that the hugetlb controller limits, as the OCI runtime names
// them.
func hugePageSizes() []string {
	if !present(cgroup.Mount+"/hugetlb") &&
		!(cgroup.Unified() && strings.Contains(readString(cgroup.Mount+"/cgroup.controllers"), "hugetlb")) {
		return nil
	}
	dirs, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	if err != nil {
		return nil
	}
	var sizes []string
	for _, d := range dirs {
		kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB"))
		switch {
		case err != nil:
		case kb >= 1<<20:
			sizes = append(sizes, fmt.Sprintf("%dGB", kb>>20))
		case kb >= 1<<10:
			sizes = append(sizes, fmt.Sprintf("%dMB", kb>>10))
		default:
			sizes = append(sizes, fmt.Sprintf("%dKB", kb))
		}
	}
	return sizes
}

// kernelVersion is zero when it cannot be told.
func kernelVersion() (v [2]int) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return v
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &v[0], &v[1]); err != nil {
		return [2]int{}
	}
	return v
}

func atLeast(v, least [2]int) bool { return v[0] > least[0] || v[0] == least[0] && v[1] >= least[1] }

func readString(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

func present(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
