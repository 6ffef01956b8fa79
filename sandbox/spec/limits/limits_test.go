package limits

import (
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type figures = runtimeapi.LinuxContainerResources

// all is a machine that has everything.
var all = Controllers{CgroupV2: true, HugePageSizes: []string{"2MB", "1GB"}, MemorySwapAccounting: true, CPUs: "0-7\n", Mems: "0"}

func wantInvalid(t *testing.T, err error, field string) {
	t.Helper()
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), field) {
		t.Errorf("got %v, want an invalid %s", err, field)
	}
}

func TestMergeResources(t *testing.T) {
	current := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		CPU:     &specs.LinuxCPU{Shares: new(uint64(512)), Cpus: "0"},
		Memory:  &specs.LinuxMemory{Limit: new(int64(64 << 20)), Swap: new(int64(64 << 20))},
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
			r.CPU.Quota, r.CPU.Period = new(int64(-1)), new(uint64(50000))
		}, 0},
		{"shares at the bounds", &runtimeapi.LinuxContainerResources{CpuShares: 1 << 40}, func(r *specs.LinuxResources) { r.CPU.Shares = new(uint64(262144)) }, 1},
		{"memory takes swap along", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, func(r *specs.LinuxResources) {
			r.Memory.Limit, r.Memory.Swap = new(int64(128<<20)), new(int64(128<<20))
		}, 0},
		{"swap alone", &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 96 << 20}, func(r *specs.LinuxResources) { r.Memory.Swap = new(int64(96 << 20)) }, 0},
		{"unified is merged", &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}, func(r *specs.LinuxResources) { r.Unified["memory.high"] = "max" }, 0},
		{"hugepages", &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}}}, func(r *specs.LinuxResources) {
			r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}, {Pagesize: "1GB"}}
		}, 0},
	} {
		t.Run(r.name, func(t *testing.T) {
			want := copyOf(current)
			r.want(want)
			before := copyOf(current)
			got, notes, err := Merge(all, current, r.in)
			if err != nil || !reflect.DeepEqual(got, want) || len(notes) != r.notes {
				t.Errorf("got %+v, %v, %v\nwant %+v", got, notes, err, want)
			}
			if !reflect.DeepEqual(before, current) {
				t.Error("the input has changed")
			}
		})
	}
	_, _, err := Merge(all, current, &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 32 << 20})
	wantInvalid(t, err, "memory_swap_limit_in_bytes")
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
	h := all
	h.HugePageSizes, h.MemorySwapAccounting = nil, false
	in := &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1 << 30}},
		Unified:        map[string]string{"memory.swap.max": "0", "memory.high": "1"},
	}
	got, notes, err := Merge(h, nil, in)
	if err != nil || len(notes) != 2 || got.Memory.Swap != nil || got.HugepageLimits != nil || len(got.Unified) != 1 {
		t.Errorf("%+v, %v, %v", got, notes, err)
	}
	got, notes, err = Merge(all, nil, &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 64 << 20})
	if err != nil || len(notes) != 1 || got.Memory.Swap != nil {
		t.Errorf("swap without a memory limit: %+v, %v, %v", got, notes, err)
	}
}

// TestSwapBeside: what a memory limit by itself does to both together.
func TestSwapBeside(t *testing.T) {
	for _, r := range []struct{ limit, swap, in, want int64 }{ // 0: none
		{0, 0, 64, 64}, {64, 64, 128, 128}, {64, 64, 32, 32}, {64, 128, 96, 128}, {64, 128, 256, 256}, {64, 128, 32, 128},
		{64, -1, 128, -1}, {64, 128, -1, -1}, {64, 64, -1, -1}, {-1, -1, 64, 64},
	} {
		var was *specs.LinuxResources
		if r.limit != 0 {
			was = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(scaled(r.limit)), Swap: new(scaled(r.swap))}}
		}
		got, _, err := Merge(all, was, &figures{MemoryLimitInBytes: scaled(r.in)})
		if err != nil || *got.Memory.Swap != scaled(r.want) {
			t.Errorf("%+v: %+v, %v", r, got.Memory, err)
		}
	}
}

func scaled(mib int64) int64 {
	if mib < 0 {
		return mib
	}
	return mib << 20
}

func TestMergeRequests(t *testing.T) {
	current := &figures{CpuShares: 512, CpuQuota: 1000, CpusetCpus: "0", MemoryLimitInBytes: 64, MemorySwapLimitInBytes: 128, OomScoreAdj: 7,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4}, {PageSize: "1GB", Limit: 8}}, Unified: map[string]string{"memory.high": "1", "memory.low": "2"}}
	for name, r := range map[string]struct{ in, want *figures }{
		"nothing":            {nil, &figures{}},
		"empty":              {&figures{Unified: map[string]string{}}, &figures{}},
		"cpu":                {&figures{CpuShares: 2, CpuQuota: -1, CpusetCpus: "1-2"}, &figures{CpuShares: 2, CpuQuota: -1, CpusetCpus: "1-2"}},
		"memory":             {&figures{MemoryLimitInBytes: 100}, &figures{MemoryLimitInBytes: 100}},
		"memory beyond both": {&figures{MemoryLimitInBytes: 200}, &figures{MemoryLimitInBytes: 200, MemorySwapLimitInBytes: 200}},
		"memory without end": {&figures{MemoryLimitInBytes: -1}, &figures{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		"swap without end":   {&figures{MemorySwapLimitInBytes: -1}, &figures{MemorySwapLimitInBytes: -1}},
		"unified":            {&figures{Unified: map[string]string{"memory.high": "3", "cpu.idle": "1"}}, &figures{Unified: map[string]string{"memory.high": "3", "cpu.idle": "1"}}},
	} {
		want := proto.CloneOf(current)
		proto.Merge(want, r.want)
		before := proto.CloneOf(current)
		if got := MergeRequests(current, r.in); !proto.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if !proto.Equal(before, current) {
			t.Errorf("%s: the input has changed", name)
		}
	}
	pages := func(l ...*runtimeapi.HugepageLimit) *figures { return &figures{HugepageLimits: l} }
	got := MergeRequests(current, pages(&runtimeapi.HugepageLimit{PageSize: "1GB"}, &runtimeapi.HugepageLimit{PageSize: "64KB", Limit: 1}))
	want := pages(&runtimeapi.HugepageLimit{PageSize: "2MB", Limit: 4}, &runtimeapi.HugepageLimit{PageSize: "1GB"}, &runtimeapi.HugepageLimit{PageSize: "64KB", Limit: 1})
	if !proto.Equal(pages(got.HugepageLimits...), want) {
		t.Errorf("pages are %v", got.HugepageLimits)
	}
}

// TestLift: what was not limited before is said to be so, or a runtime that goes back leaves the
// limit.
func TestLift(t *testing.T) {
	cpu := func(shares, period uint64, quota int64) *specs.LinuxCPU {
		return &specs.LinuxCPU{Shares: &shares, Period: &period, Quota: &quota}
	}
	memory := func(limit, both int64, check bool) *specs.LinuxMemory {
		m := &specs.LinuxMemory{Limit: &limit, Swap: &both}
		if check {
			m.CheckBeforeUpdate = &check
		}
		return m
	}
	for name, r := range map[string]struct{ in, other, want specs.LinuxResources }{
		"nothing":        {},
		"cpu":            {specs.LinuxResources{}, specs.LinuxResources{CPU: cpu(2, 2000, 1000)}, specs.LinuxResources{CPU: cpu(1024, 100000, -1)}},
		"cpu stays":      {specs.LinuxResources{CPU: cpu(2, 2000, 1000)}, specs.LinuxResources{CPU: cpu(3, 3000, 3000)}, specs.LinuxResources{CPU: cpu(2, 2000, 1000)}},
		"memory":         {specs.LinuxResources{}, specs.LinuxResources{Memory: memory(1, 2, false)}, specs.LinuxResources{Memory: memory(-1, -1, false)}},
		"more memory":    {specs.LinuxResources{Memory: memory(2, 2, false)}, specs.LinuxResources{Memory: memory(1, 1, false)}, specs.LinuxResources{Memory: memory(2, 2, false)}},
		"less memory":    {specs.LinuxResources{Memory: memory(1, 1, false)}, specs.LinuxResources{Memory: memory(2, 2, false)}, specs.LinuxResources{Memory: memory(1, 1, true)}},
		"first limit":    {specs.LinuxResources{Memory: memory(1, 1, false)}, specs.LinuxResources{}, specs.LinuxResources{Memory: memory(1, 1, true)}},
		"no limit again": {specs.LinuxResources{Memory: memory(-1, -1, false)}, specs.LinuxResources{Memory: memory(2, 2, false)}, specs.LinuxResources{Memory: memory(-1, -1, false)}},
	} {
		before := copyOf(&r.in)
		if got := Lift(&r.in, &r.other); !reflect.DeepEqual(got, &r.want) {
			t.Errorf("%s: %+v, %+v, want %+v, %+v", name, got.CPU, got.Memory, r.want.CPU, r.want.Memory)
		}
		if !reflect.DeepEqual(before, &r.in) {
			t.Errorf("%s: the input has changed", name)
		}
	}
}

func TestUnifiedKeys(t *testing.T) {
	key := func(k string) *figures { return &figures{Unified: map[string]string{k: "1"}} }
	for _, good := range []string{"memory.high", "memory.oom.group", "memory.swap.max", "cpu.weight.nice", "cpu.idle", "cpuset.cpus.partition", "io.max", "io.bfq.weight",
		"pids.max", "misc.max", "rdma.max", "hugetlb.2MB.max", "hugetlb.1GB.rsvd.max"} {
		if err := Check(key(good), all); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"cgroup.procs", "cgroup.kill", "pids.current", "pids.max.x", "miscmax", "memory", "memory.", ".memory", "memory..high", "memory.high/", "memory.\x00",
		"../memory.max", "memory.max/../cgroup.kill", "memory/max", "Memory.max", "xmemory.max", "memory.max\n", " memory.max", "devices.allow", "irq.pressure", "freezer.state"} {
		wantInvalid(t, Check(key(bad), all), "unified")
	}
}

// TestResourcesBySystemd: what systemd would replace by its own defaults is said in words that it
// keeps, and taken back when it no longer holds.
func TestResourcesBySystemd(t *testing.T) {
	h := all
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
		got, _, err := Merge(h, nil, row.first)
		if err == nil && row.then != nil {
			got, _, err = Merge(h, got, row.then)
		}
		if err != nil || !reflect.DeepEqual(got.Unified, row.want) {
			t.Errorf("%s: %v, %v, want %v", name, got.Unified, err, row.want)
		}
	}
}
