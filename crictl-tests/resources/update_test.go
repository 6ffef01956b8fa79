package resources

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func update(c *harness.Container, r *cri.LinuxContainerResources) {
	c.Helper()
	c.Must(c.TryUpdate(r))
}

// askingFor is a container that asks for these resources.
func askingFor(r *cri.LinuxContainerResources) harness.ContainerOption {
	return harness.With(func(c *cri.ContainerConfig) { c.Linux.Resources = proto.CloneOf(r) })
}

// files reads the files of the container's cgroup that rows of v1 or v2 name.
func wantFiles(c *harness.Container, rows []cgroupRow) {
	c.Helper()
	for _, row := range rows {
		if row.v2 != harness.OnUnified() {
			continue
		}
		if got := c.CgroupFile(row.controller, row.file); got != row.want {
			c.Errorf("%s is %s, want %s", row.file, got, row.want)
		}
	}
}

type cgroupRow struct {
	v2                     bool
	controller, file, want string
}

func cpuRows(quota, period int, cpus string) []cgroupRow {
	return []cgroupRow{
		{false, "cpu", "cpu.cfs_quota_us", fmt.Sprint(quota)}, {false, "cpu", "cpu.cfs_period_us", fmt.Sprint(period)},
		{false, "cpuset", "cpuset.cpus", cpus}, {true, "", "cpu.max", fmt.Sprintf("%d %d", quota, period)}, {true, "", "cpuset.cpus", cpus},
	}
}

// swapRows has the figures of the CRI, memory and both together.
func swapRows(memory, both int) []cgroupRow {
	rows := []cgroupRow{{false, "memory", "memory.limit_in_bytes", fmt.Sprint(memory)}, {true, "", "memory.max", fmt.Sprint(memory)},
		{true, "", "memory.swap.max", fmt.Sprint(both - memory)}}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err == nil {
		rows = append(rows, cgroupRow{false, "memory", "memory.memsw.limit_in_bytes", fmt.Sprint(both)})
	}
	return rows
}

// TestUpdateResources: what is asked for holds in the kernel's own files, inside, in the status and for what is executed later, and goes on
// holding after a restart. What is not asked for stays.
func TestUpdateResources(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Shell("sleep 1d & sleep 1d & wait"), askingFor(&cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 25000, CpuPeriod: 50000, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, OomScoreAdj: 100,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}, // as a kubelet sends them, wherever they exist
	}))
	harness.Eventually(t, "its processes", func() error { return harness.Unless(len(d.ProcessesOf(c.ID)) == 3, "not all are there") })
	update(c, &cri.LinuxContainerResources{CpuShares: 1024})
	wantFiles(c, append(cpuRows(25000, 50000, hostCPUs(t)), swapRows(64<<20, 64<<20)...))
	if want := (harness.Enforced{Shares: 1024, Memory: 64 << 20, OOM: 100}); c.Enforced() != want {
		t.Errorf("with other shares: %+v, want %+v", c.Enforced(), want)
	}
	update(c, &cri.LinuxContainerResources{CpuQuota: 40000, CpusetCpus: "0", MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20, OomScoreAdj: 300,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}}})
	check := func(when string) {
		t.Helper()
		wantFiles(c, append(cpuRows(40000, 50000, "0"), swapRows(96<<20, 96<<20)...))
		want := harness.Enforced{Shares: 1024, Memory: 96 << 20, OOM: 300}
		if c.Enforced() != want || c.Limits() != want || c.SpecLimits() != want {
			t.Errorf("%s: cgroup %+v, status %+v, spec %+v, want %+v", when, c.Enforced(), c.Limits(), c.SpecLimits(), want)
		}
		if r := c.Resources(); r.CpuQuota != 40000 || r.CpuPeriod != 50000 || r.CpusetCpus != "0" || r.MemorySwapLimitInBytes != 96<<20 || len(r.HugepageLimits) != 2 {
			t.Errorf("%s the status says %v", when, r)
		}
		for _, p := range d.ProcessesOf(c.ID) {
			if got := strings.TrimSpace(harness.HostFile(t, fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid))); got != "300" {
				t.Errorf("%s process %d has oom_score_adj %s", when, p.Pid, got)
			}
		}
		if got := strings.Fields(c.Exec("sh", "-c", "nproc; cat /proc/self/oom_score_adj")); strings.Join(got, " ") != "1 300" {
			t.Errorf("%s what is executed has processors and oom_score_adj %q", when, got)
		}
	}
	check("updated")
	d.Restart()
	check("after a restart")
	update(c, nil)
	update(c, &cri.LinuxContainerResources{})
	check("asked for nothing")
	inside := "/sys/fs/cgroup/memory/memory.limit_in_bytes"
	if harness.OnUnified() {
		inside = "/sys/fs/cgroup/memory.max"
	}
	if got := strings.TrimSpace(c.Exec("cat", inside)); got != fmt.Sprint(96<<20) {
		t.Errorf("inside it sees a limit of %s", got)
	}
}

// hostCPUs is what a new cpuset has.
func hostCPUs(t *testing.T) string {
	if harness.OnUnified() {
		return ""
	}
	return strings.TrimSpace(harness.HostFile(t, "/sys/fs/cgroup/cpuset/cpuset.cpus"))
}

// TestUpdateMemoryAndSwap: one figure holds the other, so which is written first depends on where both go.
func TestUpdateMemoryAndSwap(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	const m = 1 << 20
	c := d.RunPod().Run(harness.Idle(), askingFor(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 * m}))
	for _, row := range []struct{ memory, swap, wantMemory, wantBoth int64 }{
		{128, 0, 128, 128}, // no swap, as before
		{128, 256, 128, 256},
		{64, 0, 64, 256},
		{300, 0, 300, 300}, // more than both were
		{300, 600, 300, 600},
		{700, 800, 700, 800}, // above what both were
		{40, 50, 40, 50},     // and below
		{0, 60, 40, 60},
		{-1, 0, -1, -1},
		{80, 90, 80, 90},
		{90, -1, 90, -1},
		{95, 0, 95, -1},
	} {
		scaled := func(n int64) int64 {
			if n < 0 {
				return n
			}
			return n * m
		}
		if err := c.TryUpdate(&cri.LinuxContainerResources{MemoryLimitInBytes: scaled(row.memory), MemorySwapLimitInBytes: scaled(row.swap)}); err != nil {
			t.Fatalf("%+v: %v", row, err)
		}
		if row.wantMemory > 0 && row.wantBoth > 0 {
			wantFiles(c, swapRows(int(row.wantMemory*m), int(row.wantBoth*m)))
		}
		if got := c.Limits().Memory; got != scaled(row.wantMemory) {
			t.Errorf("%+v: the status says %d", row, got)
		}
	}
}

// TestUpdateCreated: a container that does not run yet is started with what it was updated to.
func TestUpdateCreated(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Create(harness.Idle(), askingFor(&cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}))
	update(c, &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, OomScoreAdj: 200})
	d.Restart()
	want := harness.Enforced{Shares: 512, Memory: 96 << 20, OOM: 200}
	if c.Limits() != want || c.SpecLimits() != want {
		t.Errorf("created: status %+v, spec %+v, want %+v", c.Limits(), c.SpecLimits(), want)
	}
	c.Start()
	if c.Enforced() != want || c.Limits() != want {
		t.Errorf("started: cgroup %+v, status %+v, want %+v", c.Enforced(), c.Limits(), want)
	}
}

// TestUpdateRefused: what the kernel does not take in this place is told as that, and everything stays as it was, also what the kernel had
// taken before it came to that.
func TestUpdateRefused(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	parent := d.MakeCgroup()
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	c := p.Run(d.Tool("eat", "32"), askingFor(&cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 20000, CpuPeriod: 100000, CpusetCpus: "0", MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 128 << 20, OomScoreAdj: 100,
	}))
	c.WaitLog("ate 32 MiB")
	for _, path := range d.Cgroups {
		switch {
		case harness.OnUnified():
			d.Must(os.WriteFile(filepath.Join(path, "cpu.max"), []byte("50000 100000"), 0))
		case filepath.Base(filepath.Dir(path)) == "cpu":
			d.Must(os.WriteFile(filepath.Join(path, "cpu.cfs_quota_us"), []byte("50000"), 0))
		}
	}
	before, status := c.Enforced(), c.Resources()
	type limits = *cri.LinuxContainerResources
	for _, row := range []struct {
		name, field string
		v1          bool // version 2 takes it, and gives what the parent has
		r           limits
	}{
		{"memory below use", "memory", false, &cri.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 16 << 20, OomScoreAdj: 500}},
		{"quota above the parent's", "quota", true, &cri.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 256 << 20, CpuQuota: 90000}},
		{"quota above the parent's by period", "cfs", true, &cri.LinuxContainerResources{CpuShares: 2048, CpuPeriod: 10000}},
		{"unified without version 2", "unified", true, &cri.LinuxContainerResources{CpuShares: 2048, Unified: map[string]string{"memory.high": "max"}}},
	} {
		if row.v1 && harness.OnUnified() {
			continue
		}
		err := c.TryUpdate(row.r)
		harness.WantCode(t, err, codes.FailedPrecondition, row.field)
		if c.Enforced() != before || c.SpecLimits() != before || !proto.Equal(c.Resources(), status) {
			t.Errorf("%s: cgroup %+v, spec %+v, status %v, before %+v", row.name, c.Enforced(), c.SpecLimits(), c.Resources(), before)
		}
		wantFiles(c, append(cpuRows(20000, 100000, "0"), swapRows(128<<20, 128<<20)...))
	}
	update(c, &cri.LinuxContainerResources{CpuQuota: 40000})
	wantFiles(c, cpuRows(40000, 100000, "0"))
	d.Restart()
	if got := c.Resources(); got.CpuQuota != 40000 || got.CpuShares != 512 {
		t.Errorf("after a restart the status says %v", got)
	}
}

func TestBadUpdates(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	c := p.Run(harness.Idle())
	type request = *cri.UpdateContainerResourcesRequest
	field := func(change func(*cri.LinuxContainerResources)) func(request) {
		return func(r request) { change(r.Linux) }
	}
	rows := []harness.BadRequest[request]{
		{Name: "Windows", Change: func(r request) { r.Windows = &cri.WindowsContainerResources{CpuShares: 1} }, Field: "windows"},
		{Name: "shares", Change: field(func(l *cri.LinuxContainerResources) { l.CpuShares = -1 }), Field: "cpu_shares"},
		{Name: "quota", Change: field(func(l *cri.LinuxContainerResources) { l.CpuQuota = 10 }), Field: "cpu_quota"},
		{Name: "period", Change: field(func(l *cri.LinuxContainerResources) { l.CpuPeriod = 1 << 40 }), Field: "cpu_period"},
		{Name: "memory", Change: field(func(l *cri.LinuxContainerResources) { l.MemoryLimitInBytes = 1 }), Field: "memory_limit_in_bytes"},
		{Name: "swap below memory", Change: field(func(l *cri.LinuxContainerResources) {
			l.MemoryLimitInBytes, l.MemorySwapLimitInBytes = 64<<20, 32<<20
		}), Field: "memory_swap_limit_in_bytes"},
		{Name: "processors", Change: field(func(l *cri.LinuxContainerResources) { l.CpusetCpus = "4000" }), Field: "cpuset_cpus"},
		{Name: "nodes", Change: field(func(l *cri.LinuxContainerResources) { l.CpusetMems = "x" }), Field: "cpuset_mems"},
		{Name: "page size", Change: field(func(l *cri.LinuxContainerResources) {
			l.HugepageLimits = []*cri.HugepageLimit{{PageSize: "3MB", Limit: 1}}
		}), Field: "hugepage_limits"},
		{Name: "path", Change: field(func(l *cri.LinuxContainerResources) { l.Unified = map[string]string{"../../memory.max": "1"} }), Field: "unified"},
		{Name: "hierarchy", Change: field(func(l *cri.LinuxContainerResources) { l.Unified = map[string]string{"cgroup.kill": "1"} }), Field: "unified"},
		{Name: "oom score", Change: field(func(l *cri.LinuxContainerResources) { l.OomScoreAdj = 1001 }), Field: "oom_score_adj"},
	}
	harness.WantRefused(t, rows, func() request {
		return &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &cri.LinuxContainerResources{CpuShares: 512}}
	}, func(r request) (*cri.UpdateContainerResourcesResponse, error) {
		return d.Runtime.UpdateContainerResources(context.Background(), r)
	}, func(*cri.UpdateContainerResourcesResponse) {})
	if got := c.Resources(); proto.Size(got) > 0 {
		t.Errorf("after refusals the status says %v", got)
	}
	done := p.Run(harness.Shell("exit 0"))
	done.WaitExit()
	harness.WantCode(t, done.TryUpdate(&cri.LinuxContainerResources{CpuShares: 512}), codes.FailedPrecondition, done.ID)
	harness.WantCode(t, done.TryUpdate(nil), codes.FailedPrecondition, done.ID)
	// Of what this host cannot give, a container gets what it can, as at its creation.
	update(c, &cri.LinuxContainerResources{OomScoreAdj: -998})
}

// TestUpdatesByCrictl is a person who gives a container more.
func TestUpdatesByCrictl(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle(), askingFor(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}))
	d.Crictl("update", "--memory", fmt.Sprint(80<<20), "--cpu-share", "2048", "--cpuset-cpus", "0", "--oom-score-adj", "250", c.ID)
	if want := (harness.Enforced{Shares: 2048, Memory: 80 << 20, OOM: 250}); c.Enforced() != want || c.Limits() != want {
		t.Errorf("cgroup %+v, status %+v, want %+v", c.Enforced(), c.Limits(), want)
	}
}

// TestManyUpdates: at the same time, and beside a stop; the last one to get its turn holds everywhere.
func TestManyUpdates(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle(), askingFor(&cri.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 64 << 20}))
	results := make(chan error)
	for i := range 8 {
		go func() {
			results <- c.TryUpdate(&cri.LinuxContainerResources{CpuShares: []int64{512, 2048}[i%2], MemoryLimitInBytes: int64(65+i) << 20})
		}()
	}
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if c.Enforced() != c.Limits() || c.SpecLimits() != c.Limits() {
		t.Errorf("cgroup %+v, status %+v, spec %+v", c.Enforced(), c.Limits(), c.SpecLimits())
	}
	for range 4 {
		go func() { results <- c.TryUpdate(&cri.LinuxContainerResources{CpuShares: 512}) }()
	}
	c.Stop(0)
	for range 4 {
		if err := <-results; err != nil {
			harness.WantCode(t, err, codes.FailedPrecondition)
		}
	}
}

// podInfo is what the verbose status tells of a pod's own figures.
func figures(p *harness.Pod) (overhead, resources string) {
	p.Helper()
	r, err := p.Runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	p.Must(err)
	var info struct{ Overhead, Resources map[string]any }
	p.Must(json.Unmarshal([]byte(r.Info["info"]), &info))
	return fmt.Sprint(info.Overhead), fmt.Sprint(info.Resources)
}

// TestPodResources: the pod's cgroup is the kubelet's. What it tells of it is remembered, and nothing else is done.
func TestPodResources(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	parent := d.MakeCgroup()
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = parent
		c.Linux.Overhead = &cri.LinuxContainerResources{CpuShares: 10, MemoryLimitInBytes: 1 << 20}
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20}
	})
	want := func(overhead, resources string) {
		t.Helper()
		if o, r := figures(p); o != overhead || r != resources {
			t.Errorf("the status tells of %s and %s, want %s and %s", o, r, overhead, resources)
		}
	}
	const first = "map[cpuShares:10 memoryLimitInBytes:1048576]"
	want(first, "map[cpuShares:100 memoryLimitInBytes:67108864]")
	update := func(overhead, resources *cri.LinuxContainerResources) error {
		_, err := d.Runtime.UpdatePodSandboxResources(context.Background(),
			&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID, Overhead: overhead, Resources: resources})
		return err
	}
	d.Must(update(nil, &cri.LinuxContainerResources{CpuShares: 200}))
	want(first, "map[cpuShares:200]")
	d.Restart()
	want(first, "map[cpuShares:200]")
	harness.WantCode(t, update(&cri.LinuxContainerResources{CpuShares: -1}, nil), codes.InvalidArgument, "overhead")
	harness.WantCode(t, update(nil, &cri.LinuxContainerResources{MemoryLimitInBytes: -2}), codes.InvalidArgument, "resources")
	d.Must(update(&cri.LinuxContainerResources{}, nil))
	d.Restart()
	want("map[]", "map[cpuShares:200]")
	again, err := d.TryPod(p.Config) // the same request is still the same pod
	d.Must(err)
	if again.ID != p.ID {
		t.Errorf("an updated pod was made again: %s and %s", p.ID, again.ID)
	}
	p.Stop()
	d.Must(update(nil, &cri.LinuxContainerResources{CpuShares: 300}))
	want("map[]", "map[cpuShares:300]")
}
