package spec

import (
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type figures = runtimeapi.LinuxContainerResources

func TestUpdateSpec(t *testing.T) {
	c := aContainer()
	c.Config.Linux.Resources = &figures{CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 100}
	s := mustContainer(t, aHost(), aPod(), c)
	before := clone(s)
	now, notes, err := Update(aHost(), s, &figures{MemoryLimitInBytes: 96 << 20})
	if err != nil || len(notes) > 0 || *now.Linux.Resources.Memory.Limit != 96<<20 || *now.Process.OOMScoreAdj != 100 {
		t.Errorf("%+v, %v, %v", now.Linux.Resources, notes, err)
	}
	if !reflect.DeepEqual(s, before) {
		t.Error("the spec that was given has changed")
	}
	h := aHost()
	h.OOMScoreAdjMin = -5
	if now, notes, err = Update(h, s, &figures{OomScoreAdj: -900}); err != nil || len(notes) != 1 || *now.Process.OOMScoreAdj != -5 {
		t.Errorf("%v, %v, %v", now, notes, err)
	}
	_, _, err = Update(h, s, &figures{OomScoreAdj: 1001})
	wantInvalid(t, err, "oom_score_adj")
	h.CgroupV2 = false
	if _, _, err = Update(h, s, &figures{Unified: map[string]string{"memory.high": "max"}}); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	for _, none := range []*specs.Spec{nil, {}, {Process: &specs.Process{}}} {
		if _, _, err = Update(h, none, nil); err == nil {
			t.Errorf("%v can be updated", none)
		}
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
			was = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(scaled(r.limit)), Swap: ptr(scaled(r.swap))}}
		}
		got, _, err := MergeResources(aHost(), was, &figures{MemoryLimitInBytes: scaled(r.in)})
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
		before := clone(&r.in)
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
		if err := ValidateResources(key(good), aHost()); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"cgroup.procs", "cgroup.kill", "pids.current", "pids.max.x", "miscmax", "memory", "memory.", ".memory", "memory..high", "memory.high/", "memory.\x00",
		"../memory.max", "memory.max/../cgroup.kill", "memory/max", "Memory.max", "xmemory.max", "memory.max\n", " memory.max", "devices.allow", "irq.pressure", "freezer.state"} {
		wantInvalid(t, ValidateResources(key(bad), aHost()), "unified")
	}
}

func TestPodFigures(t *testing.T) {
	for _, bad := range []*figures{{CpuShares: -1}, {CpuPeriod: -1}, {CpuQuota: -2}, {MemoryLimitInBytes: -2}, {MemorySwapLimitInBytes: -2}} {
		wantInvalid(t, ValidatePodResources(bad, nil), "overhead")
		wantInvalid(t, ValidatePodResources(nil, bad), "resources")
	}
	// What only a machine could refuse is the kubelet's to know: it has made the cgroup.
	if err := ValidatePodResources(nil, &figures{CpuQuota: -1, MemoryLimitInBytes: 1, CpusetCpus: "4000"}); err != nil {
		t.Error(err)
	}
}
