package resources

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
	"github.com/cribox/cribox/crictl-tests/ledger"
)

// Benchmarks are for people: go test -run '^$' -bench . Nothing is asserted.

// kubeletLike is a pod as the baseline of other runtimes was measured with: cgroup parent, seccomp, memory limit.
func kubeletLike(d *harness.Daemon) (harness.PodOption, harness.ContainerOption) {
	parent := d.MakeCgroup()
	return func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent },
		harness.With(func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 128 << 20 })
}

func BenchmarkPod(b *testing.B) {
	d := harness.NewDaemon(b)
	podLike, containerLike := kubeletLike(d)
	d.Pulled(harness.Busybox)
	took := map[string][]time.Duration{}
	measure := func(name string, f func()) {
		began := time.Now()
		f()
		took[name] = append(took[name], time.Since(began))
	}
	for b.Loop() {
		var p *harness.Pod
		var c *harness.Container
		measure("run-pod", func() { p = d.RunPod(podLike) })
		measure("create", func() { c = p.Create(harness.Idle(), containerLike) })
		measure("start", func() { c.Start() })
		measure("exec", func() { c.Exec("true") })
		measure("stop", func() { c.Stop(0) })
		measure("stop-pod", p.Stop)
		measure("remove", c.Remove)
		measure("remove-pod", p.Remove)
	}
	report := func(name string, parts ...string) {
		var sum time.Duration
		for _, p := range parts {
			sum += median(took[p])
		}
		b.ReportMetric(float64(sum.Microseconds())/1000, name+"-ms")
	}
	for name := range took {
		report(name, name)
	}
	report("pod-start", "run-pod", "create", "start")
	report("pod-teardown", "stop", "stop-pod", "remove", "remove-pod")
}

// BenchmarkCrowd starts 40 pods with a container each, ten at a time, and takes them away the same way.
func BenchmarkCrowd(b *testing.B) {
	const pods, atOnce = 40, 10
	d := harness.NewDaemon(b)
	podLike, containerLike := kubeletLike(d)
	d.Pulled(harness.Busybox)
	var up, down time.Duration
	rounds := 0
	for b.Loop() {
		rounds++
		all := make([]*harness.Pod, pods)
		up += timed(func() {
			crowd(pods, atOnce, func(i int) {
				all[i] = d.RunPod(podLike)
				all[i].Run(harness.Idle(), containerLike)
			})
		})
		down += timed(func() { crowd(pods, atOnce, func(i int) { all[i].Remove() }) })
	}
	b.ReportMetric(float64(pods*rounds)/up.Seconds(), "starts/s")
	b.ReportMetric(float64(pods*rounds)/down.Seconds(), "teardowns/s")
}

// BenchmarkRestart kills the daemon under 100 quiet pods and waits until a new one answers.
func BenchmarkRestart(b *testing.B) {
	const pods, atOnce = 100, 10
	d := harness.NewDaemon(b)
	d.Pulled(harness.Busybox)
	crowd(pods, atOnce, func(int) { d.RunPod() })
	for b.Loop() {
		d.Restart()
	}
}

// BenchmarkLists asks what a kubelet asks all the time, of 250 pods with a container each. What is reported is the median, and the processor
// time that the daemon takes for one answer.
func BenchmarkLists(b *testing.B) {
	const pods, atOnce = 250, 10
	d := harness.NewDaemon(b)
	d.Pulled(harness.Busybox)
	_, containerLike := kubeletLike(d)
	all := make([]*harness.Container, pods)
	parents := make([]harness.PodOption, pods)
	for i := range parents {
		parents[i] = inOwnCgroup(d, i)
	}
	crowd(pods, atOnce, func(i int) { all[i] = d.RunPod(parents[i]).Run(harness.Idle(), containerLike) })
	ctx := context.Background()
	for _, call := range []struct {
		name string
		ask  func(*harness.Container) (proto.Message, error)
	}{
		{"ListPodSandbox", func(*harness.Container) (proto.Message, error) {
			return d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		}},
		{"ListContainers", func(*harness.Container) (proto.Message, error) {
			return d.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
		}},
		{"PodSandboxStatus", func(c *harness.Container) (proto.Message, error) {
			return d.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: c.Pod.ID})
		}},
		{"ContainerStatus", func(c *harness.Container) (proto.Message, error) {
			return d.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
		}},
		{"ListContainerStats", func(*harness.Container) (proto.Message, error) {
			return d.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
		}},
		{"ListPodSandboxStats", func(*harness.Container) (proto.Message, error) {
			return d.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
		}},
		{"ListPodSandboxMetrics", func(*harness.Container) (proto.Message, error) {
			return d.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
		}},
	} {
		b.Run(call.name, func(b *testing.B) {
			var took []time.Duration
			size, before := 0, processorTime(d)
			for b.Loop() {
				began := time.Now()
				reply, err := call.ask(all[len(took)%pods])
				took = append(took, time.Since(began))
				d.Must(err)
				size = proto.Size(reply)
			}
			b.ReportMetric(float64(median(took).Microseconds())/1000, "median-ms")
			b.ReportMetric(float64((processorTime(d)-before).Microseconds())/1000/float64(len(took)), "daemon-cpu-ms")
			b.ReportMetric(float64(size), "reply-bytes")
		})
	}
	crowd(pods, atOnce, func(i int) {
		all[i].Pod.Stop()
		all[i].Pod.Remove()
	})
}

// inOwnCgroup makes a cgroup for a pod below what kubeletLike made.
func inOwnCgroup(d *harness.Daemon, n int) harness.PodOption {
	d.Helper()
	name := filepath.Join("/cribox-tests-"+filepath.Base(d.Dir), fmt.Sprintf("pod%d", n))
	for _, folder := range harness.Hierarchies(d) {
		path := filepath.Join(folder, name)
		d.Must(os.Mkdir(path, 0o755))
		d.Cgroups = append([]string{path}, d.Cgroups...) // removed before its parent
		harness.CopyParentCgroup(d, path, "cpuset.cpus")
		harness.CopyParentCgroup(d, path, "cpuset.mems")
	}
	return func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = name }
}

// processorTime is what the daemon has used.
func processorTime(d *harness.Daemon) time.Duration { return timeOf(d, d.Process.PID()) }

// timeOf is the processor time that a process has used, without its children.
func timeOf(d *harness.Daemon, pid int) time.Duration {
	d.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	d.Must(err)
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err := strconv.Atoi(f[11])
	d.Must(err)
	system, err := strconv.Atoi(f[12])
	d.Must(err)
	return time.Duration(user+system) * time.Second / 100
}

func timed(act func()) time.Duration {
	began := time.Now()
	act()
	return time.Since(began)
}

// crowd calls act with 0..n-1, atOnce of them at a time, and returns when all have returned.
func crowd(n, atOnce int, act func(int)) {
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			act(i)
		})
	}
	all.Wait()
}

func median(d []time.Duration) time.Duration {
	sorted := append([]time.Duration(nil), d...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

func BenchmarkExecSync(b *testing.B) {
	d := harness.NewDaemon(b)
	c := d.RunPod().Run(harness.Idle())
	daemon, shim := d.Process.PID(), d.Role("shim")
	beforeDaemon, beforeShim, n := timeOf(d, daemon), timeOf(d, shim), 0
	for b.Loop() {
		c.Exec("true")
		n++
	}
	b.ReportMetric((timeOf(d, daemon)-beforeDaemon).Seconds()*1000/float64(n), "daemon-cpu-ms")
	b.ReportMetric((timeOf(d, shim)-beforeShim).Seconds()*1000/float64(n), "shim-cpu-ms")
}

// BenchmarkMemory tells the proportional memory of everything but the workload, per pod.
func BenchmarkMemory(b *testing.B) {
	for _, pods := range []int{1, 10, 40} {
		b.Run(fmt.Sprint(pods), func(b *testing.B) {
			d := harness.NewDaemon(b)
			d.Pulled(harness.Busybox)
			began := memory(d)
			for range pods {
				d.RunPod().Run(harness.Idle())
			}
			now := memory(d)
			for b.Loop() { // the figures are all that counts, and the first round of it drops those reported before
			}
			for role, kib := range now {
				b.ReportMetric(float64(kib-began[role])/float64(pods), role+"-KiB/pod")
				b.ReportMetric(float64(kib), role+"-KiB")
			}
		})
	}
}

// memory is the PSS in KiB of daemon, shim, logger and all pause processes.
func memory(d *harness.Daemon) map[string]int {
	d.Helper()
	ours, err := ledger.Belonging(d.Scope())
	d.Must(err)
	sum := map[string]int{}
	for _, p := range ours {
		role := ledger.Role(p)
		if role == "" {
			role = "pause"
			if len(p.Args) == 0 || !strings.HasSuffix(p.Args[0], "pause") {
				continue
			}
		}
		sum[role] += pss(p.Pid)
		sum["all"] += pss(p.Pid)
	}
	return sum
}

func pss(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}
