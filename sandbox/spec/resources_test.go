package spec

import (
	"reflect"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/signals"
)

func TestMergeResources(t *testing.T) {
	current := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{denyAll()},
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(512)), Cpus: "0"},
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		Unified: map[string]string{"memory.low": "1"},
	}
	for _, r := range []struct {
		name  string
		in    *runtimeapi.LinuxContainerResources
		want  func(*specs.LinuxResources)
		notes int
	}{
		{"nothing", nil, func(*specs.LinuxResources) {}, 0},
		{"zeros", &runtimeapi.LinuxContainerResources{Unified: map[string]string{}}, func(*specs.LinuxResources) {}, 0},
		{"cpu", &runtimeapi.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 50000}, func(r *specs.LinuxResources) {
			r.CPU.Quota, r.CPU.Period = ptr(int64(-1)), ptr(uint64(50000))
		}, 0},
		{"shares at the bounds", &runtimeapi.LinuxContainerResources{CpuShares: 1 << 40}, func(r *specs.LinuxResources) { r.CPU.Shares = ptr(uint64(262144)) }, 1},
		{"memory takes swap along", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, func(r *specs.LinuxResources) {
			r.Memory.Limit, r.Memory.Swap = ptr(int64(128<<20)), ptr(int64(128<<20))
		}, 0},
		{"swap alone", &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 96 << 20}, func(r *specs.LinuxResources) { r.Memory.Swap = ptr(int64(96 << 20)) }, 0},
		{"unified is merged", &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}, func(r *specs.LinuxResources) { r.Unified["memory.high"] = "max" }, 0},
		{"hugepages", &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}}}, func(r *specs.LinuxResources) {
			r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}, {Pagesize: "1GB"}}
		}, 0},
	} {
		t.Run(r.name, func(t *testing.T) {
			want := clone(current)
			r.want(want)
			before := clone(current)
			got, notes, err := MergeResources(aHost(), current, r.in)
			if err != nil || !reflect.DeepEqual(got, want) || len(notes) != r.notes {
				t.Errorf("got %+v, %v, %v\nwant %+v", got, notes, err, want)
			}
			if !reflect.DeepEqual(before, current) {
				t.Error("the input has changed")
			}
		})
	}
	_, _, err := MergeResources(aHost(), current, &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 32 << 20})
	wantInvalid(t, err, "memory_swap_limit_in_bytes")
}

// TestResourcesBySystemd: what systemd would replace by its own defaults is said in words that it
// keeps, and taken back when it no longer holds.
func TestResourcesBySystemd(t *testing.T) {
	h := aHost()
	h.SystemdCgroup = true
	limit := func(memory, swap int64, unified map[string]string) *runtimeapi.LinuxContainerResources {
		return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: memory, MemorySwapLimitInBytes: swap, Unified: unified}
	}
	none := map[string]string{"memory.swap.max": "0"}
	for name, row := range map[string]struct {
		first, then *runtimeapi.LinuxContainerResources
		want        map[string]string
	}{
		"no memory":        {limit(0, 0, nil), nil, nil},
		"no swap":          {limit(64<<20, 0, nil), nil, none},
		"swap":             {limit(64<<20, 96<<20, nil), nil, nil},
		"unlimited":        {limit(-1, 0, nil), nil, nil},
		"asked for":        {limit(64<<20, 0, map[string]string{"memory.swap.max": "1M"}), nil, map[string]string{"memory.swap.max": "1048576"}},
		"updated":          {limit(64<<20, 0, nil), limit(128<<20, 0, nil), none},
		"swap given later": {limit(64<<20, 0, nil), limit(0, 96<<20, nil), map[string]string{}},
		"unlimited later":  {limit(64<<20, 0, nil), limit(-1, 0, nil), map[string]string{}},
		"swap taken later": {limit(64<<20, 96<<20, nil), limit(64<<20, 64<<20, nil), none},
		"numbers as kernel": {limit(0, 0, map[string]string{"memory.high": " 0x10 ", "pids.max": "010", "cpu.max": "max 5000"}), nil,
			map[string]string{"memory.high": "16", "pids.max": "8", "cpu.max": "max 5000"}},
	} {
		got, _, err := MergeResources(h, nil, row.first)
		if err == nil && row.then != nil {
			got, _, err = MergeResources(h, got, row.then)
		}
		if err != nil || !reflect.DeepEqual(got.Unified, row.want) {
			t.Errorf("%s: %v, %v, want %v", name, got.Unified, err, row.want)
		}
	}
	for _, row := range []struct {
		systemd bool
		limit   int64
		want    *specs.LinuxPids
	}{{false, 0, nil}, {true, 0, &specs.LinuxPids{Limit: ptr(int64(-1))}}, {true, 7, &specs.LinuxPids{Limit: ptr(int64(7))}}} {
		h := aHost()
		h.SystemdCgroup, h.PidsLimit = row.systemd, row.limit
		p := aPod()
		p.Config.Linux.CgroupParent = ""
		if got := mustContainer(t, h, p, aContainer()).Linux.Resources.Pids; !reflect.DeepEqual(got, row.want) {
			t.Errorf("%+v: %+v", row, got)
		}
	}
}

func TestUnifiedValues(t *testing.T) {
	for key, row := range map[string]struct{ good, bad []string }{
		"memory.high":      {[]string{"max", "0", "100M", "15E", " 5\t", "0x10"}, []string{"", "lots", "-1", "1_0", "0b1", "1.5G", "M", "99999999999999999999", "16E", "5 5"}},
		"memory.swap.max":  {[]string{"max", "1k"}, []string{"no"}},
		"pids.max":         {[]string{"max", "100"}, []string{"1K", "many", "-1"}},
		"cpu.weight":       {[]string{"100"}, []string{"max", "heavy"}},
		"cpu.max":          {[]string{"max", "max 100000", "5000", "5000 10000"}, []string{"", "max max", "1 2 3", "x"}},
		"memory.oom.group": {[]string{"0", "1"}, []string{"2", "yes", ""}},
		"cpuset.cpus":      {[]string{"", "0-3,8"}, []string{"all", "3-1"}},
		"io.max":           {[]string{"anything"}, nil},
	} {
		for want, list := range map[bool][]string{true: row.good, false: row.bad} {
			for _, value := range list {
				if isUnifiedValue(key, value) != want {
					t.Errorf("%s = %q: want %t", key, value, want)
				}
			}
		}
	}
}

// TestMissingControllers: what kubelet always sends does not fail, and is told.
func TestMissingControllers(t *testing.T) {
	h := aHost()
	h.HugePageSizes, h.MemorySwapAccounting = nil, false
	in := &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}},
		Unified:        map[string]string{"memory.swap.max": "0", "memory.high": "1"},
	}
	got, notes, err := MergeResources(h, nil, in)
	if err != nil || len(notes) != 2 || got.Memory.Swap != nil || got.HugepageLimits != nil || len(got.Unified) != 1 {
		t.Errorf("%+v, %v, %v", got, notes, err)
	}
	got, notes, err = MergeResources(aHost(), nil, &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 64 << 20})
	if err != nil || len(notes) != 1 || got.Memory.Swap != nil {
		t.Errorf("swap without a memory limit: %+v, %v, %v", got, notes, err)
	}
}

func TestCgroupsPath(t *testing.T) {
	for _, r := range []struct {
		systemd      bool
		parent, want string
	}{
		{false, "/kubepods/podx", "/kubepods/podx/ctr1"},
		{false, "kubepods/podx/", "/kubepods/podx/ctr1"},
		{false, "", "/cribox/ctr1"},
		{false, "/", "/ctr1"},
		{true, "kubepods-podx.slice", "kubepods-podx.slice:cribox:ctr1"},
		{true, "/kubepods.slice/kubepods-podx.slice", "kubepods-podx.slice:cribox:ctr1"},
		{true, "", "system.slice:cribox:ctr1"},
		{true, "-.slice", "-.slice:cribox:ctr1"},
	} {
		h, p := aHost(), aPod()
		h.SystemdCgroup, p.Config.Linux.CgroupParent = r.systemd, r.parent
		if err := ValidatePod(p.Config, h); err != nil {
			t.Error(err)
		}
		if got := mustContainer(t, h, p, aContainer()).Linux.CgroupsPath; got != r.want {
			t.Errorf("%+v became %s", r, got)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, r := range []struct {
		cri   runtimeapi.Signal
		image string
		want  syscall.Signal
	}{
		{0, "", syscall.SIGTERM}, {0, "SIGQUIT", syscall.SIGQUIT}, {0, "quit", syscall.SIGQUIT}, {0, "9", syscall.SIGKILL}, {0, "SIGRTMIN+3", 37},
		{0, "RTMAX-1", 63}, {0, "SIGRTMIN", 34}, {0, "SIGPOLL", syscall.SIGIO}, {23, "SIGQUIT", syscall.SIGTERM}, {29, "", syscall.SIGUSR1}, {5, "", syscall.SIGCHLD},
		{12, "", syscall.SIGABRT}, {34, "", syscall.SIGXFSZ}, {35, "", 34}, {50, "", 49}, {51, "", 50}, {65, "", 64}, {20, "", syscall.SIGSTKFLT},
	} {
		if got, err := signals.Stop(&runtimeapi.ContainerConfig{StopSignal: r.cri}, r.image); err != nil || got != r.want {
			t.Errorf("%d, %q: %d, %v, want %d", r.cri, r.image, got, err, r.want)
		}
	}
	for _, bad := range []string{"SIGNONSENSE", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMAX+1", "SIGRTMIN-1", "SIGRTMIN3", "SIGRTMIN+", "SIGRTMIN+x", "1.5"} {
		if got, err := signals.Stop(nil, bad); err != nil || got != syscall.SIGTERM {
			t.Errorf("%q of an image: %d, %v", bad, got, err)
		}
		c := aContainer()
		c.Image.Config.StopSignal = bad
		if _, notes, err := ForContainer(aHost(), aPod(), c); err != nil || len(notes) != 1 || notes[0].Field != "stop_signal" {
			t.Errorf("%q of an image: %v, %v", bad, notes, err)
		}
	}
	// The API renames its signals; the numbers, and what they mean, stay.
	for n := range runtimeapi.Signal_name {
		sig, err := signals.Stop(&runtimeapi.ContainerConfig{StopSignal: runtimeapi.Signal(n)}, "")
		if err != nil {
			t.Errorf("signal %d of the API: %v", n, err)
			continue
		}
		again, err := signals.Stop(&runtimeapi.ContainerConfig{StopSignal: signals.CRI(sig)}, "")
		if err != nil || again != sig {
			t.Errorf("%d is %d, back as %d is %d", n, sig, signals.CRI(sig), again)
		}
	}
}

func TestImageVolumes(t *testing.T) {
	c := aContainer()
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/taken/"}}
	// SEC-09
	c.Image.Config.Volumes = map[string]struct{}{
		"/data": {}, "relative": {}, "/../../../../etc": {}, "/a/../../etc": {}, "/taken": {}, "/": {}, "": {}, "/proc": {}, "/proc/x": {}, "/sys/y": {}, "/dev/shm": {}, "/x\x00": {}, "/data/": {},
	}
	got := ImageVolumes(c.Image, c.Config)
	if want := []string{"/data", "/etc", "/relative"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := ImageVolumes(ocispec.Image{}, nil); got != nil {
		t.Errorf("%q out of nothing", got)
	}
}

func TestMountsOfTheRequestWin(t *testing.T) {
	c := aContainer()
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/dev", HostPath: "/dev"}, {ContainerPath: "/etc/hosts", HostPath: "/h"}, {ContainerPath: "/sys/", HostPath: "/sys"}}
	c.Mounts = []Mount{{Source: "/dev"}, {Source: "/h"}, {Source: "/sys"}}
	seen := map[string]string{}
	last := 0
	for _, m := range mustContainer(t, aHost(), aPod(), c).Mounts {
		if _, twice := seen[m.Destination]; twice {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		seen[m.Destination] = m.Source
		if depth(m.Destination) < last {
			t.Errorf("%s comes after something deeper", m.Destination)
		}
		last = depth(m.Destination)
	}
	want := map[string]string{
		"/proc": "proc", "/dev": "/dev", "/sys": "/sys", "/sys/fs/cgroup": "cgroup", "/etc/hosts": "/h", "/dev/shm": aPod().ShmPath,
		"/etc/hostname": aPod().HostnamePath, "/etc/resolv.conf": aPod().ResolvConfPath,
	}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("got %v\nwant %v", seen, want)
	}
}

func TestDeviceRules(t *testing.T) {
	c := aContainer()
	c.Devices = []Device{
		{ContainerPath: "/dev/fifo", Type: "p", Permissions: "rw"},
		{ContainerPath: "/dev/b", Type: "b", Major: 7, Minor: 1, Mode: 0o640, UID: 1, GID: 6, Permissions: "rm"},
	}
	s := mustContainer(t, aHost(), aPod(), c)
	want := []specs.LinuxDeviceCgroup{denyAll(), {Allow: true, Type: "b", Major: ptr(int64(7)), Minor: ptr(int64(1)), Access: "rm"}}
	if !reflect.DeepEqual(s.Linux.Resources.Devices, want) || len(s.Linux.Devices) != 2 {
		t.Errorf("%+v, %+v", s.Linux.Resources.Devices, s.Linux.Devices)
	}
	for field, dev := range map[string]Device{
		"permissions": {ContainerPath: "/dev/x", Type: "c", Permissions: "xyz"}, "container_path": {ContainerPath: "x", Type: "c", Permissions: "r"},
	} {
		c.Devices = []Device{dev}
		_, _, err := ForContainer(aHost(), aPod(), c)
		wantInvalid(t, err, field)
	}
	c.Devices = []Device{{ContainerPath: "/dev/x", Type: "a", Permissions: "rwm"}}
	if _, _, err := ForContainer(aHost(), aPod(), c); err == nil {
		t.Error("a device of every type at once")
	}
}

func TestNetworkNamespaceMustFit(t *testing.T) {
	p := aPod()
	p.NetNS = ""
	if _, _, err := ForPod(aHost(), p); err == nil {
		t.Error("a pod with its own network and no namespace would run in the host's")
	}
	if _, _, err := ForContainer(aHost(), p, aContainer()); err == nil {
		t.Error("so would its containers")
	}
	p = aPod()
	p.PauseNS = ""
	if _, _, err := ForContainer(aHost(), p, aContainer()); err == nil {
		t.Error("a container without a pod")
	}
	c := aContainer()
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b"}}
	if _, _, err := ForContainer(aHost(), aPod(), c); err == nil {
		t.Error("a mount that nobody resolved")
	}
	c = aContainer()
	c.security().NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "x"}
	if _, _, err := ForContainer(aHost(), aPod(), c); err == nil {
		t.Error("a target without a process")
	}
}
