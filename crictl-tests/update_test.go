package crictltests

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) tryUpdate(r *cri.LinuxContainerResources) error {
	_, err := c.runtime.UpdateContainerResources(context.Background(), &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
	return err
}

func (c *container) update(r *cri.LinuxContainerResources) {
	c.Helper()
	c.must(c.tryUpdate(r))
}

// askingFor is a container that asks for these resources.
func askingFor(r *cri.LinuxContainerResources) containerOption {
	return with(func(c *cri.ContainerConfig) { c.Linux.Resources = proto.CloneOf(r) })
}

// enforced is what can be compared between the status, the spec, and the kernel's own files.
type enforced struct {
	shares, memory, oom int64
}

func (c *container) resources() *cri.LinuxContainerResources {
	c.Helper()
	return c.status().GetResources().GetLinux()
}

func (c *container) limits() enforced {
	c.Helper()
	r := c.resources()
	return enforced{r.GetCpuShares(), r.GetMemoryLimitInBytes(), r.GetOomScoreAdj()}
}

func (c *container) specLimits() enforced {
	c.Helper()
	var info struct {
		RuntimeSpec struct {
			Process struct{ OOMScoreAdj int64 }
			Linux   struct {
				Resources struct {
					CPU    struct{ Shares int64 }
					Memory struct{ Limit int64 }
				}
			}
		}
	}
	r, err := c.runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	c.must(err)
	c.must(json.Unmarshal([]byte(r.Info["info"]), &info))
	return enforced{info.RuntimeSpec.Linux.Resources.CPU.Shares, info.RuntimeSpec.Linux.Resources.Memory.Limit, info.RuntimeSpec.Process.OOMScoreAdj}
}

// enforced asks the kernel.
func (c *container) enforced() enforced {
	c.Helper()
	number := func(s string) int64 {
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		c.must(err)
		return n
	}
	e := enforced{oom: number(hostFile(c, fmt.Sprintf("/proc/%d/oom_score_adj", c.pid())))}
	if onUnified() {
		e.memory = number(c.cgroupFile("", "memory.max"))
		for _, shares := range []int64{512, 1024, 2048} { // a weight does not tell the shares; these are what the tests use
			if weight := number(c.cgroupFile("", "cpu.weight")); weight == weightOf[shares] {
				e.shares = shares
			}
		}
		return e
	}
	e.shares, e.memory = number(c.cgroupFile("cpu", "cpu.shares")), number(c.cgroupFile("memory", "memory.limit_in_bytes"))
	return e
}

// weightOf is how runc turns shares into a weight.
var weightOf = map[int64]int64{512: 59, 1024: 100, 2048: 174}

// files reads the files of the container's cgroup that rows of v1 or v2 name.
func (c *container) wantFiles(rows []cgroupRow) {
	c.Helper()
	for _, row := range rows {
		if row.v2 != onUnified() {
			continue
		}
		if got := c.cgroupFile(row.controller, row.file); got != row.want {
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
	d := newDaemon(t)
	c := d.runPod().run(shell("sleep 1d & sleep 1d & wait"), askingFor(&cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 25000, CpuPeriod: 50000, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, OomScoreAdj: 100,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}, // as a kubelet sends them, wherever they exist
	}))
	eventually(t, "its processes", func() error { return unless(len(d.processesOf(c.id)) == 3, "not all are there") })
	c.update(&cri.LinuxContainerResources{CpuShares: 1024})
	c.wantFiles(append(cpuRows(25000, 50000, hostCPUs(t)), swapRows(64<<20, 64<<20)...))
	if want := (enforced{1024, 64 << 20, 100}); c.enforced() != want {
		t.Errorf("with other shares: %+v, want %+v", c.enforced(), want)
	}
	c.update(&cri.LinuxContainerResources{CpuQuota: 40000, CpusetCpus: "0", MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20, OomScoreAdj: 300,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}}})
	check := func(when string) {
		t.Helper()
		c.wantFiles(append(cpuRows(40000, 50000, "0"), swapRows(96<<20, 96<<20)...))
		want := enforced{1024, 96 << 20, 300}
		if c.enforced() != want || c.limits() != want || c.specLimits() != want {
			t.Errorf("%s: cgroup %+v, status %+v, spec %+v, want %+v", when, c.enforced(), c.limits(), c.specLimits(), want)
		}
		if r := c.resources(); r.CpuQuota != 40000 || r.CpuPeriod != 50000 || r.CpusetCpus != "0" || r.MemorySwapLimitInBytes != 96<<20 || len(r.HugepageLimits) != 2 {
			t.Errorf("%s the status says %v", when, r)
		}
		for _, p := range d.processesOf(c.id) {
			if got := strings.TrimSpace(hostFile(t, fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid))); got != "300" {
				t.Errorf("%s process %d has oom_score_adj %s", when, p.Pid, got)
			}
		}
		if got := strings.Fields(c.exec("sh", "-c", "nproc; cat /proc/self/oom_score_adj")); strings.Join(got, " ") != "1 300" {
			t.Errorf("%s what is executed has processors and oom_score_adj %q", when, got)
		}
	}
	check("updated")
	d.restart()
	check("after a restart")
	c.update(nil)
	c.update(&cri.LinuxContainerResources{})
	check("asked for nothing")
	inside := "/sys/fs/cgroup/memory/memory.limit_in_bytes"
	if onUnified() {
		inside = "/sys/fs/cgroup/memory.max"
	}
	if got := strings.TrimSpace(c.exec("cat", inside)); got != fmt.Sprint(96<<20) {
		t.Errorf("inside it sees a limit of %s", got)
	}
}

// hostCPUs is what a new cpuset has.
func hostCPUs(t *testing.T) string {
	if onUnified() {
		return ""
	}
	return strings.TrimSpace(hostFile(t, "/sys/fs/cgroup/cpuset/cpuset.cpus"))
}

// TestUpdateMemoryAndSwap: one figure holds the other, so which is written first depends on where both go.
func TestUpdateMemoryAndSwap(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	const m = 1 << 20
	c := d.runPod().run(idle(), askingFor(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 * m}))
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
		if err := c.tryUpdate(&cri.LinuxContainerResources{MemoryLimitInBytes: scaled(row.memory), MemorySwapLimitInBytes: scaled(row.swap)}); err != nil {
			t.Fatalf("%+v: %v", row, err)
		}
		if row.wantMemory > 0 && row.wantBoth > 0 {
			c.wantFiles(swapRows(int(row.wantMemory*m), int(row.wantBoth*m)))
		}
		if got := c.limits().memory; got != scaled(row.wantMemory) {
			t.Errorf("%+v: the status says %d", row, got)
		}
	}
}

// TestUpdateCreated: a container that does not run yet is started with what it was updated to.
func TestUpdateCreated(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().create(idle(), askingFor(&cri.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}))
	c.update(&cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, OomScoreAdj: 200})
	d.restart()
	want := enforced{512, 96 << 20, 200}
	if c.limits() != want || c.specLimits() != want {
		t.Errorf("created: status %+v, spec %+v, want %+v", c.limits(), c.specLimits(), want)
	}
	c.start()
	if c.enforced() != want || c.limits() != want {
		t.Errorf("started: cgroup %+v, status %+v, want %+v", c.enforced(), c.limits(), want)
	}
}

// TestUpdateRefused: what the kernel does not take in this place is told as that, and everything stays as it was, also what the kernel had
// taken before it came to that.
func TestUpdateRefused(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	parent := d.makeCgroup()
	p := d.runPod(func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	c := p.run(d.tool("eat", "32"), askingFor(&cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 20000, CpuPeriod: 100000, CpusetCpus: "0", MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 128 << 20, OomScoreAdj: 100,
	}))
	c.waitLog("ate 32 MiB")
	for _, path := range d.cgroups {
		switch {
		case onUnified():
			d.must(os.WriteFile(filepath.Join(path, "cpu.max"), []byte("50000 100000"), 0))
		case filepath.Base(filepath.Dir(path)) == "cpu":
			d.must(os.WriteFile(filepath.Join(path, "cpu.cfs_quota_us"), []byte("50000"), 0))
		}
	}
	before, status := c.enforced(), c.resources()
	type limits = *cri.LinuxContainerResources
	for _, row := range []struct {
		name, field string
		v1          bool // version 2 takes it, and gives what the parent has
		r           limits
	}{
		{"memory below use", "memory limit", false, &cri.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 16 << 20, OomScoreAdj: 500}},
		{"quota above the parent's", "quota", true, &cri.LinuxContainerResources{CpuShares: 2048, MemoryLimitInBytes: 256 << 20, CpuQuota: 90000}},
		{"quota above the parent's by period", "cfs", true, &cri.LinuxContainerResources{CpuShares: 2048, CpuPeriod: 10000}},
		{"unified without version 2", "unified", true, &cri.LinuxContainerResources{CpuShares: 2048, Unified: map[string]string{"memory.high": "max"}}},
	} {
		if row.v1 && onUnified() {
			continue
		}
		err := c.tryUpdate(row.r)
		wantCode(t, err, codes.FailedPrecondition, row.field)
		if c.enforced() != before || c.specLimits() != before || !proto.Equal(c.resources(), status) {
			t.Errorf("%s: cgroup %+v, spec %+v, status %v, before %+v", row.name, c.enforced(), c.specLimits(), c.resources(), before)
		}
		c.wantFiles(append(cpuRows(20000, 100000, "0"), swapRows(128<<20, 128<<20)...))
	}
	c.update(&cri.LinuxContainerResources{CpuQuota: 40000})
	c.wantFiles(cpuRows(40000, 100000, "0"))
	d.restart()
	if got := c.resources(); got.CpuQuota != 40000 || got.CpuShares != 512 {
		t.Errorf("after a restart the status says %v", got)
	}
}

func TestBadUpdates(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
	c := p.run(idle())
	type request = *cri.UpdateContainerResourcesRequest
	field := func(change func(*cri.LinuxContainerResources)) func(request) {
		return func(r request) { change(r.Linux) }
	}
	rows := []bad[request]{
		{name: "Windows", change: func(r request) { r.Windows = &cri.WindowsContainerResources{CpuShares: 1} }, field: "windows"},
		{name: "shares", change: field(func(l *cri.LinuxContainerResources) { l.CpuShares = -1 }), field: "cpu_shares"},
		{name: "quota", change: field(func(l *cri.LinuxContainerResources) { l.CpuQuota = 10 }), field: "cpu_quota"},
		{name: "period", change: field(func(l *cri.LinuxContainerResources) { l.CpuPeriod = 1 << 40 }), field: "cpu_period"},
		{name: "memory", change: field(func(l *cri.LinuxContainerResources) { l.MemoryLimitInBytes = 1 }), field: "memory_limit_in_bytes"},
		{name: "swap below memory", change: field(func(l *cri.LinuxContainerResources) {
			l.MemoryLimitInBytes, l.MemorySwapLimitInBytes = 64<<20, 32<<20
		}), field: "memory_swap_limit_in_bytes"},
		{name: "processors", change: field(func(l *cri.LinuxContainerResources) { l.CpusetCpus = "4000" }), field: "cpuset_cpus"},
		{name: "nodes", change: field(func(l *cri.LinuxContainerResources) { l.CpusetMems = "x" }), field: "cpuset_mems"},
		{name: "page size", change: field(func(l *cri.LinuxContainerResources) {
			l.HugepageLimits = []*cri.HugepageLimit{{PageSize: "3MB", Limit: 1}}
		}), field: "hugepage_limits"},
		{name: "path", change: field(func(l *cri.LinuxContainerResources) { l.Unified = map[string]string{"../../memory.max": "1"} }), field: "unified"},
		{name: "hierarchy", change: field(func(l *cri.LinuxContainerResources) { l.Unified = map[string]string{"cgroup.kill": "1"} }), field: "unified"},
		{name: "oom score", change: field(func(l *cri.LinuxContainerResources) { l.OomScoreAdj = 1001 }), field: "oom_score_adj"},
	}
	wantRefused(t, rows, func() request {
		return &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &cri.LinuxContainerResources{CpuShares: 512}}
	}, func(r request) (*cri.UpdateContainerResourcesResponse, error) {
		return d.runtime.UpdateContainerResources(context.Background(), r)
	}, func(*cri.UpdateContainerResourcesResponse) {})
	if got := c.resources(); proto.Size(got) > 0 {
		t.Errorf("after refusals the status says %v", got)
	}
	done := p.run(shell("exit 0"))
	done.waitExit()
	wantCode(t, done.tryUpdate(&cri.LinuxContainerResources{CpuShares: 512}), codes.FailedPrecondition, done.id)
	wantCode(t, done.tryUpdate(nil), codes.FailedPrecondition, done.id)
	// Of what this host cannot give, a container gets what it can, as at its creation.
	c.update(&cri.LinuxContainerResources{OomScoreAdj: -998})
}

// TestUpdatesByCrictl is a person who gives a container more.
func TestUpdatesByCrictl(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod(onHostNetwork).run(idle(), askingFor(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}))
	d.crictl("update", "--memory", fmt.Sprint(80<<20), "--cpu-share", "2048", "--cpuset-cpus", "0", "--oom-score-adj", "250", c.id)
	if want := (enforced{2048, 80 << 20, 250}); c.enforced() != want || c.limits() != want {
		t.Errorf("cgroup %+v, status %+v, want %+v", c.enforced(), c.limits(), want)
	}
}

// TestManyUpdates: at the same time, and beside a stop; the last one to get its turn holds everywhere.
func TestManyUpdates(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod(onHostNetwork).run(idle(), askingFor(&cri.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 64 << 20}))
	results := make(chan error)
	for i := range 8 {
		go func() {
			results <- c.tryUpdate(&cri.LinuxContainerResources{CpuShares: []int64{512, 2048}[i%2], MemoryLimitInBytes: int64(65+i) << 20})
		}()
	}
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if c.enforced() != c.limits() || c.specLimits() != c.limits() {
		t.Errorf("cgroup %+v, status %+v, spec %+v", c.enforced(), c.limits(), c.specLimits())
	}
	for range 4 {
		go func() { results <- c.tryUpdate(&cri.LinuxContainerResources{CpuShares: 512}) }()
	}
	c.stop(0)
	for range 4 {
		if err := <-results; err != nil {
			wantCode(t, err, codes.FailedPrecondition)
		}
	}
}

// podInfo is what the verbose status tells of a pod's own figures.
func (p *pod) figures() (overhead, resources string) {
	p.Helper()
	r, err := p.runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	p.must(err)
	var info struct{ Overhead, Resources map[string]any }
	p.must(json.Unmarshal([]byte(r.Info["info"]), &info))
	return fmt.Sprint(info.Overhead), fmt.Sprint(info.Resources)
}

// TestPodResources: the pod's cgroup is the kubelet's. What it tells of it is remembered, and nothing else is done.
func TestPodResources(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	parent := d.makeCgroup()
	p := d.runPod(func(c *cri.PodSandboxConfig) {
		c.Linux.CgroupParent = parent
		c.Linux.Overhead = &cri.LinuxContainerResources{CpuShares: 10, MemoryLimitInBytes: 1 << 20}
		c.Linux.Resources = &cri.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20}
	})
	want := func(overhead, resources string) {
		t.Helper()
		if o, r := p.figures(); o != overhead || r != resources {
			t.Errorf("the status tells of %s and %s, want %s and %s", o, r, overhead, resources)
		}
	}
	const first = "map[cpuShares:10 memoryLimitInBytes:1048576]"
	want(first, "map[cpuShares:100 memoryLimitInBytes:67108864]")
	update := func(overhead, resources *cri.LinuxContainerResources) error {
		_, err := d.runtime.UpdatePodSandboxResources(context.Background(),
			&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Overhead: overhead, Resources: resources})
		return err
	}
	d.must(update(nil, &cri.LinuxContainerResources{CpuShares: 200}))
	want(first, "map[cpuShares:200]")
	d.restart()
	want(first, "map[cpuShares:200]")
	wantCode(t, update(&cri.LinuxContainerResources{CpuShares: -1}, nil), codes.InvalidArgument, "overhead")
	wantCode(t, update(nil, &cri.LinuxContainerResources{MemoryLimitInBytes: -2}), codes.InvalidArgument, "resources")
	d.must(update(&cri.LinuxContainerResources{}, nil))
	d.restart()
	want("map[]", "map[cpuShares:200]")
	again, err := d.tryPod(p.config) // the same request is still the same pod
	d.must(err)
	if again.id != p.id {
		t.Errorf("an updated pod was made again: %s and %s", p.id, again.id)
	}
	p.stop()
	d.must(update(nil, &cri.LinuxContainerResources{CpuShares: 300}))
	want("map[]", "map[cpuShares:300]")
}
