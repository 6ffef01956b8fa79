package resources

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// measured returns the stats once the writable layer is in them: it is measured beside the answer, which does not wait for a slow disk.
func measured(c *harness.Container) (s *cri.ContainerStats) {
	c.Helper()
	harness.Eventually(c, "the writable layer's size", func() error {
		s = c.Stats()
		return harness.Unless(s.WritableLayer.GetUsedBytes() != nil, "it is not there yet: %v", s)
	})
	return s
}

func stats(p *harness.Pod) *cri.PodSandboxStats {
	p.Helper()
	r, err := p.Runtime.PodSandboxStats(context.Background(), &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
	p.Must(err)
	return r.Stats
}

func listStats(d *harness.Daemon, f *cri.ContainerStatsFilter) []*cri.ContainerStats {
	d.Helper()
	r, err := d.Runtime.ListContainerStats(context.Background(), &cri.ListContainerStatsRequest{Filter: f})
	d.Must(err)
	return r.Stats
}

func listPodStats(d *harness.Daemon, f *cri.PodSandboxStatsFilter) []*cri.PodSandboxStats {
	d.Helper()
	r, err := d.Runtime.ListPodSandboxStats(context.Background(), &cri.ListPodSandboxStatsRequest{Filter: f})
	d.Must(err)
	return r.Stats
}

// statsStream is what StreamContainerStats sends, as one list.
func statsStream(d *harness.Daemon, f *cri.ContainerStatsFilter) []*cri.ContainerStats {
	d.Helper()
	stream, err := d.Runtime.StreamContainerStats(context.Background(), &cri.StreamContainerStatsRequest{Filter: f})
	d.Must(err)
	var all []*cri.ContainerStats
	d.EachPiece(stream, func() error {
		piece, err := stream.Recv()
		all = append(all, piece.GetContainerStats()...)
		return harness.HasItems(err, len(piece.GetContainerStats()))
	})
	return all
}

// podStatsStream is what StreamPodSandboxStats sends, as one list.
func podStatsStream(d *harness.Daemon, f *cri.PodSandboxStatsFilter) []*cri.PodSandboxStats {
	d.Helper()
	stream, err := d.Runtime.StreamPodSandboxStats(context.Background(), &cri.StreamPodSandboxStatsRequest{Filter: f})
	d.Must(err)
	var all []*cri.PodSandboxStats
	d.EachPiece(stream, func() error {
		piece, err := stream.Recv()
		all = append(all, piece.GetPodSandboxStats()...)
		return harness.HasItems(err, len(piece.GetPodSandboxStats()))
	})
	return all
}

// burner burns a processor, holds 20 MB, and has written 3 MiB before it says ready.
func burner() harness.ContainerOption {
	return harness.Shell("dd if=/dev/zero of=/written bs=1M count=3 2>/dev/null; x=$(head -c 20000000 /dev/zero | tr '\\0' a); echo ready; while :; do :; done")
}

func limitedTo(memory int64) harness.ContainerOption {
	return harness.With(func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = memory })
}

// cpuTime is what the kernel counts for the container, in nanoseconds.
func cpuTime(c *harness.Container) uint64 {
	c.Helper()
	return kernelFigure(c, "cpuacct", "cpuacct.usage", "cpu.stat", "usage_usec", 1000)
}

// kernelFigure reads a number from the container's cgroup: the line of the file that begins with the name, or the whole file, which has
// the number only.
func kernelFigure(c *harness.Container, controller, v1, v2, name string, unit uint64) uint64 {
	c.Helper()
	file := v2
	if !harness.OnUnified() {
		file, unit = v1, 1
	}
	content := c.CgroupFile(controller, file)
	for line := range strings.Lines(content) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == name {
			content = value
		}
	}
	n, err := strconv.ParseUint(content, 10, 64)
	c.Must(err)
	return n * unit
}

// pageFaults is how often the kernel has given the container memory, a huge page at once where it has them.
func pageFaults(c *harness.Container) uint64 {
	c.Helper()
	return kernelFigure(c, "memory", "memory.stat", "memory.stat", "pgfault", 1)
}

// TestContainerStats holds every figure against the kernel's own.
func TestContainerStats(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	const limit = 128 << 20
	c := d.RunPod().Run(burner(), limitedTo(limit))
	c.WaitLog("ready")
	began, before, faults := time.Now().UnixNano(), cpuTime(c), pageFaults(c)
	s := c.Stats()
	after, ended := cpuTime(c), time.Now().UnixNano()

	a := s.Attributes
	if a.GetId() != c.ID || a.GetMetadata().GetName() != c.Config.Metadata.Name || a.Labels["container"] != c.Config.Metadata.Name || len(a.Annotations) != 1 {
		t.Errorf("attributes %v", a)
	}
	if used := s.Cpu.GetUsageCoreNanoSeconds().GetValue(); used < before || used > after || used == 0 {
		t.Errorf("it has used %d ns, while the kernel's counter went from %d to %d", used, before, after)
	}
	if s.Cpu.UsageNanoCores != nil {
		t.Errorf("a rate at the first question: %v", s.Cpu)
	}
	m := s.Memory
	if rss := m.GetRssBytes().GetValue(); rss < 20000000 || rss > limit {
		t.Errorf("it holds 20 MB, and the resident set has %d bytes", rss)
	}
	usage, set := m.GetUsageBytes().GetValue(), m.GetWorkingSetBytes().GetValue()
	if peak := kernelFigure(c, "memory", "memory.max_usage_in_bytes", "memory.peak", "", 1); set < 20000000 || usage < set || usage > peak {
		t.Errorf("usage %d, working set %d, peak %d", usage, set, peak)
	}
	if m.GetAvailableBytes().GetValue() != limit-set {
		t.Errorf("of %d bytes the working set has %d, and available are %v", limit, set, m.AvailableBytes)
	}
	if got := m.GetPageFaults().GetValue(); got < faults || got == 0 || m.MajorPageFaults == nil {
		t.Errorf("page faults %d, at least %d were there before; major ones %v", got, faults, m.MajorPageFaults)
	}
	for what, at := range map[string]int64{"cpu": s.Cpu.Timestamp, "memory": m.Timestamp, "writable layer": s.WritableLayer.GetTimestamp()} {
		if at < began || at > ended {
			t.Errorf("%s was measured %d ns after the question", what, at-began)
		}
	}
	fs, err := d.Images.ImageFsInfo(context.Background(), &cri.ImageFsInfoRequest{})
	d.Must(err)
	l := s.WritableLayer
	if l.GetUsedBytes().GetValue() < 3<<20 || l.GetUsedBytes().GetValue() > 4<<20 || l.GetInodesUsed().GetValue() == 0 {
		t.Errorf("it wrote 3 MiB, but the writable layer says %v", l)
	}
	if l.GetFsId().GetMountpoint() != fs.ContainerFilesystems[0].FsId.Mountpoint {
		t.Errorf("the writable layer lies on %v, and ImageFsInfo tells %v", l.GetFsId(), fs.ContainerFilesystems)
	}
	if harness.OnUnified() && (s.Cpu.Psi.GetSome() == nil || m.Psi.GetFull() == nil || s.Io.GetPsi().GetSome() == nil) {
		t.Errorf("no pressure: %v", s)
	}
	if !harness.OnUnified() && (s.Cpu.Psi != nil || m.Psi != nil || s.Io != nil) {
		t.Errorf("pressure that this kernel does not measure: %v", s)
	}

	var later *cri.ContainerStats
	harness.Eventually(t, "a rate", func() error {
		later = c.Stats()
		return harness.Unless(later.Cpu.UsageNanoCores.GetValue() > 0, "there is none: %v", later.Cpu)
	})
	if later.Cpu.UsageCoreNanoSeconds.Value <= s.Cpu.UsageCoreNanoSeconds.Value {
		t.Errorf("it burns a processor, and its time stands still: %v, then %v", s.Cpu, later.Cpu)
	}
	if rate := later.Cpu.UsageNanoCores.Value; rate > 2000000000 { // a machine that is busy reads the clock long before the counter
		t.Errorf("one process uses %d nanocores", rate)
	}
	if free := d.RunPod().Run(harness.Idle()).Stats(); free.Memory.AvailableBytes != nil || free.Memory.GetUsageBytes().GetValue() == 0 {
		t.Errorf("memory of a container without a limit: %v", free.Memory)
	}
}

// TestStatsOfStoppedContainers: such containers are in no list, and by themselves have no figure but their writable layer's.
func TestStatsOfStoppedContainers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	made, ended := p.Create(harness.Idle()), p.Run(harness.Shell("dd if=/dev/zero of=/written bs=1M count=1; exit 0"))
	ended.WaitExit()
	runs := p.Run(harness.Idle())
	for _, c := range []*harness.Container{made, ended} {
		s := measured(c)
		if s.Attributes.GetId() != c.ID || s.Cpu != nil || s.Memory != nil || s.Swap != nil || s.Io != nil || s.WritableLayer.GetUsedBytes() == nil {
			t.Errorf("of a container that does not run: %v", s)
		}
	}
	if used := ended.Stats().WritableLayer.GetUsedBytes().GetValue(); used < 1<<20 {
		t.Errorf("it has written 1 MiB, and its layer has %d bytes", used)
	}
	if got := statsIDs(listStats(d, nil)); !slices.Equal(got, []string{runs.ID}) {
		t.Errorf("listed are %v, want the one that runs", got)
	}
	if got := statsIDs(stats(p).Linux.Containers); !slices.Equal(got, []string{runs.ID}) {
		t.Errorf("the pod has %v, want the one that runs", got)
	}
	p.Stop()
	if s := stats(p); s.Attributes.GetId() != p.ID || s.Linux.Cpu != nil || s.Linux.Memory != nil || s.Linux.Network != nil ||
		s.Linux.Process != nil || len(s.Linux.Containers) != 0 {
		t.Errorf("of a pod that was stopped: %v", s)
	}
	if list := listPodStats(d, nil); len(list) != 0 {
		t.Errorf("a pod that was stopped is listed: %v", list)
	}
	_, err := d.Runtime.ContainerStats(context.Background(), &cri.ContainerStatsRequest{ContainerId: "feedfeedfeed"})
	harness.WantCode(t, err, codes.NotFound, "feedfeedfeed")
}

func statsIDs(all []*cri.ContainerStats) []string {
	var ids []string
	for _, s := range all {
		ids = append(ids, s.Attributes.GetId())
	}
	return ids
}

func podStatsIDs(all []*cri.PodSandboxStats) []string {
	var ids []string
	for _, s := range all {
		ids = append(ids, s.Attributes.GetId())
	}
	return ids
}

func TestStatsFilters(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p, q := d.RunPod(), d.RunPod()
	a, b, c := p.Run(harness.Idle()), p.Run(harness.Idle()), q.Run(harness.Idle())
	label := func(c *harness.Container) map[string]string {
		return map[string]string{"container": c.Config.Metadata.Name}
	}
	for name, row := range map[string]struct {
		filter *cri.ContainerStatsFilter
		want   []*harness.Container
	}{
		"none":           {nil, []*harness.Container{a, b, c}},
		"empty":          {&cri.ContainerStatsFilter{}, []*harness.Container{a, b, c}},
		"id":             {&cri.ContainerStatsFilter{Id: a.ID}, []*harness.Container{a}},
		"short id":       {&cri.ContainerStatsFilter{Id: a.ID[:20]}, []*harness.Container{a}},
		"pod":            {&cri.ContainerStatsFilter{PodSandboxId: p.ID}, []*harness.Container{a, b}},
		"short pod id":   {&cri.ContainerStatsFilter{PodSandboxId: q.ID[:20]}, []*harness.Container{c}},
		"label":          {&cri.ContainerStatsFilter{LabelSelector: label(b)}, []*harness.Container{b}},
		"pod and label":  {&cri.ContainerStatsFilter{PodSandboxId: q.ID, LabelSelector: label(b)}, nil},
		"id of another":  {&cri.ContainerStatsFilter{Id: c.ID, PodSandboxId: p.ID}, nil},
		"unknown":        {&cri.ContainerStatsFilter{Id: "feed" + strings.Repeat("0", 60)}, nil},
		"another's name": {&cri.ContainerStatsFilter{LabelSelector: map[string]string{"app": p.Config.Metadata.Name}}, nil},
	} {
		var want []string
		for _, c := range row.want {
			want = append(want, c.ID)
		}
		slices.Sort(want)
		for how, all := range map[string][]*cri.ContainerStats{"list": listStats(d, row.filter), "stream": statsStream(d, row.filter)} {
			if got := slices.Sorted(slices.Values(statsIDs(all))); !slices.Equal(got, want) {
				t.Errorf("%s, %s: got %v, want %v", name, how, got, want)
			}
			for _, s := range all {
				if s.Cpu == nil || s.Memory == nil || s.WritableLayer == nil || s.Attributes.Metadata == nil {
					t.Errorf("%s, %s: %v", name, how, s)
				}
			}
		}
	}
	for name, row := range map[string]struct {
		filter *cri.PodSandboxStatsFilter
		want   []string
	}{
		"none":     {nil, []string{p.ID, q.ID}},
		"id":       {&cri.PodSandboxStatsFilter{Id: p.ID}, []string{p.ID}},
		"short id": {&cri.PodSandboxStatsFilter{Id: q.ID[:20]}, []string{q.ID}},
		"label":    {&cri.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": q.Config.Metadata.Name}}, []string{q.ID}},
		"both":     {&cri.PodSandboxStatsFilter{Id: p.ID, LabelSelector: map[string]string{"app": q.Config.Metadata.Name}}, nil},
	} {
		slices.Sort(row.want)
		for how, all := range map[string][]*cri.PodSandboxStats{"list": listPodStats(d, row.filter), "stream": podStatsStream(d, row.filter)} {
			if got := slices.Sorted(slices.Values(podStatsIDs(all))); !slices.Equal(got, row.want) {
				t.Errorf("pods, %s, %s: got %v, want %v", name, how, got, row.want)
			}
			for _, s := range all {
				if l := s.Linux; l.GetCpu() == nil || l.Memory == nil || l.Network == nil || l.Process == nil || len(l.Containers) == 0 {
					t.Errorf("pods, %s, %s: %v", name, how, s)
				}
			}
		}
	}
	if r, err := d.Runtime.PodSandboxStats(context.Background(), &cri.PodSandboxStatsRequest{PodSandboxId: p.ID[:20]}); err != nil || r.Stats.Attributes.Id != p.ID {
		t.Errorf("by a short id: %v, %v", r, err)
	}
}

// TestPodStats: a pod with a cgroup of its own has that one's figures.
func TestPodStats(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	parent := d.MakeCgroup()
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	a, b := p.Run(burner()), p.Run(harness.Idle())
	a.WaitLog("ready")
	figure := func(controller, v1, v2, name string, unit uint64) uint64 {
		return parentFigure(p, parent, controller, v1, v2, name, unit)
	}
	harness.Eventually(t, "pause and two processes", func() error { // b's is runc's init for a moment, which has threads
		n := figure("pids", "pids.current", "pids.current", "", 1)
		return harness.Unless(n == 3, "the kernel counts %d", n)
	})
	harness.Eventually(t, "the resident set", func() error { // the kernel adds up a cgroup's memory every two seconds
		rss := stats(p).Linux.Memory.GetRssBytes().GetValue()
		return harness.Unless(rss >= 20000000, "it has %d bytes", rss)
	})
	before := figure("cpuacct", "cpuacct.usage", "cpu.stat", "usage_usec", 1000)
	s := stats(p)
	after := figure("cpuacct", "cpuacct.usage", "cpu.stat", "usage_usec", 1000)
	at := s.Attributes
	if at.GetId() != p.ID || at.GetMetadata().GetUid() != p.Config.Metadata.Uid || at.Labels["app"] != p.Config.Metadata.Name || len(at.Annotations) != 1 {
		t.Errorf("attributes %v", at)
	}
	l := s.Linux
	if used := l.Cpu.GetUsageCoreNanoSeconds().GetValue(); used < before || used > after || used == 0 {
		t.Errorf("the pod has used %d ns, while the kernel's counter went from %d to %d", used, before, after)
	}
	got := statsIDs(l.Containers)
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values([]string{a.ID, b.ID}))) {
		t.Errorf("its containers are %v, want %s and %s", got, a.ID, b.ID)
	}
	var sum uint64
	for _, c := range l.Containers {
		sum += c.Memory.GetRssBytes().GetValue()
		if c.Cpu == nil || c.WritableLayer == nil {
			t.Errorf("a container in it: %v", c)
		}
	}
	if rss := l.Memory.GetRssBytes().GetValue(); rss < 20000000 || rss < sum/2 {
		t.Errorf("the resident set has %d bytes, and those of the containers %d", rss, sum)
	}
	if want := figure("pids", "pids.current", "pids.current", "", 1); l.Process.GetProcessCount().GetValue() != want || want != 3 {
		t.Errorf("%v processes, the kernel counts %d, and there should be pause and two", l.Process, want)
	}
	harness.Eventually(t, "a rate", func() error {
		s = stats(p)
		return harness.Unless(s.Linux.Cpu.UsageNanoCores.GetValue() > 0, "there is none: %v", s.Linux.Cpu)
	})
	other := d.RunPod()
	harness.Eventually(t, "figures of a pod without a cgroup of its own", func() error { // its process is runc's init for a moment, which has threads
		l := stats(other).Linux
		return harness.Unless(l.Cpu.GetUsageCoreNanoSeconds().GetValue() > 0 && l.Process.GetProcessCount().GetValue() == 1, "they are %v", l)
	})
}

// parentFigure is kernelFigure of a pod's cgroup.
func parentFigure(p *harness.Pod, parent, controller, v1, v2, name string, unit uint64) uint64 {
	p.Helper()
	file := filepath.Join("/sys/fs/cgroup", controller, parent, v1)
	if harness.OnUnified() {
		file = filepath.Join("/sys/fs/cgroup", parent, v2)
	} else {
		name, unit = "", 1
	}
	content := strings.TrimSpace(harness.HostFile(p, file))
	if name != "" {
		for line := range strings.Lines(content) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == name {
				content = value
			}
		}
	}
	n, err := strconv.ParseUint(content, 10, 64)
	p.Must(err)
	return n * unit
}

// interfaceCounters are ip's, from within the network of a process.
func interfaceCounters(d *harness.Daemon, pid int, name string) (rx, tx uint64) {
	d.Helper()
	out, err := exec.Command("nsenter", "-t", fmt.Sprint(pid), "-n", "ip", "-s", "-j", "link", "show", name).Output()
	d.Must(err)
	var links []struct {
		Stats64 struct{ Rx, Tx struct{ Bytes uint64 } }
	}
	d.Must(json.Unmarshal(out, &links))
	return links[0].Stats64.Rx.Bytes, links[0].Stats64.Tx.Bytes
}

// TestNetworkStats: what is sent to a pod and comes back is counted on its interface, from the pod's side, and also when pause has died.
func TestNetworkStats(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(d.Tool("listen", "0.0.0.0:8080", "cat"))
	const size = 1 << 20
	harness.Eventually(t, "the pod to answer", func() error {
		conn, err := net.DialTimeout("tcp", p.IP()+":8080", time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		d.Must(conn.SetDeadline(time.Now().Add(harness.Patience)))
		go func() {
			_, _ = conn.Write(make([]byte, size))
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		n, err := io.Copy(io.Discard, conn)
		return harness.Unless(err == nil && n == size, "%d bytes came back: %v", n, err)
	})
	check := func(when string) {
		t.Helper()
		rx, tx := interfaceCounters(d, c.PID(), "eth0")
		s := stats(p).Linux.Network
		rxAfter, txAfter := interfaceCounters(d, c.PID(), "eth0")
		i := s.GetDefaultInterface()
		if i.GetName() != "eth0" || len(s.GetInterfaces()) != 1 || s.Interfaces[0].Name != "lo" || s.GetTimestamp() == 0 || i.RxErrors == nil || i.TxErrors == nil {
			t.Errorf("%s: network %v", when, s)
		}
		if got := i.GetRxBytes().GetValue(); got < rx || got > rxAfter || got < size {
			t.Errorf("%s: received %d bytes, ip says %d to %d", when, got, rx, rxAfter)
		}
		if got := i.GetTxBytes().GetValue(); got < tx || got > txAfter || got < size {
			t.Errorf("%s: sent %d bytes, ip says %d to %d", when, got, tx, txAfter)
		}
	}
	check("while pause lives")
	d.Must(syscall.Kill(p.PausePID(), syscall.SIGKILL))
	harness.Eventually(t, "the pod not to be ready", func() error {
		return harness.Unless(p.Status().State == cri.PodSandboxState_SANDBOX_NOTREADY, "it is")
	})
	check("after pause died")
	if list := listPodStats(d, nil); len(list) != 1 || list[0].Linux.Cpu == nil || len(list[0].Linux.Containers) != 1 {
		t.Errorf("a pod without pause in which a container runs is listed as %v", list)
	}
	if s := stats(d.RunPod(harness.OnHostNetwork)); s.Linux.Network != nil || s.Linux.Cpu == nil {
		t.Errorf("the host's network is told as a pod's: %v", s.Linux)
	}
}

// TestOtherInterfaces: every interface is told, none twice, and never the loopback; one with a name that no message can say is told by what it
// looks like in quotes, and keeps nobody from the figures of others.
func TestOtherInterfaces(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	out, err := exec.Command("nsenter", "-t", fmt.Sprint(p.PausePID()), "-n", "ip", "link", "add", "aux0", "type", "veth", "peer", "name", "au\xffx").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := stats(p).Linux.Network
	var others []string
	for _, i := range n.GetInterfaces() {
		others = append(others, i.Name)
	}
	if slices.Sort(others); n.GetDefaultInterface().GetName() != "eth0" || !slices.Equal(others, []string{`"au\xffx"`, "aux0", "lo"}) || n.Interfaces[0].TxBytes == nil {
		t.Errorf("network: %v", n)
	}
	listPodStats(d, nil)
	_, err = d.Runtime.ListPodSandboxMetrics(context.Background(), &cri.ListPodSandboxMetricsRequest{})
	d.Must(err)
}

// TestStatsWhileContainersEnd: what vanishes between two looks costs nobody else.
func TestStatsWhileContainersEnd(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	stays := p.Run(harness.Idle())
	d.Pulled(harness.Busybox)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 8 {
			c := p.Create(harness.Shell("exit 0"))
			if c.TryStart() == nil {
				_, _ = d.Runtime.RemoveContainer(context.Background(), &cri.RemoveContainerRequest{ContainerId: c.ID})
			}
		}
	}()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		list := listStats(d, nil)
		if !slices.Contains(statsIDs(list), stays.ID) {
			t.Fatalf("the one that stays is not among %v", statsIDs(list))
		}
		for _, s := range list {
			if s.Memory.GetUsageBytes() == nil && s.Cpu == nil {
				t.Errorf("listed without any figure: %v", s)
			}
		}
		if pods := listPodStats(d, nil); len(pods) != 1 || !slices.Contains(statsIDs(pods[0].Linux.Containers), stays.ID) {
			t.Fatalf("pods: %v", pods)
		}
		if _, err := d.Runtime.ListPodSandboxMetrics(context.Background(), &cri.ListPodSandboxMetricsRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}
