package crictltests

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

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// Benchmarks are for people: go test -run '^$' -bench . Nothing is asserted.

// kubeletLike is a pod as the baseline of other runtimes was measured with: cgroup parent, seccomp, memory limit.
func (d *daemon) kubeletLike() (podOption, containerOption) {
	parent := d.makeCgroup()
	return func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent },
		with(func(c *cri.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 128 << 20 })
}

func BenchmarkPod(b *testing.B) {
	d := newDaemon(b)
	podLike, containerLike := d.kubeletLike()
	d.pulled(busybox)
	took := map[string][]time.Duration{}
	measure := func(name string, f func()) {
		began := time.Now()
		f()
		took[name] = append(took[name], time.Since(began))
	}
	for b.Loop() {
		var p *pod
		var c *container
		measure("run-pod", func() { p = d.runPod(podLike) })
		measure("create", func() { c = p.create(idle(), containerLike) })
		measure("start", func() { c.start() })
		measure("exec", func() { c.exec("true") })
		measure("stop", func() { c.stop(0) })
		measure("stop-pod", p.stop)
		measure("remove", c.remove)
		measure("remove-pod", p.remove)
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
	d := newDaemon(b)
	podLike, containerLike := d.kubeletLike()
	d.pulled(busybox)
	var up, down time.Duration
	rounds := 0
	for b.Loop() {
		rounds++
		all := make([]*pod, pods)
		up += timed(func() {
			crowd(pods, atOnce, func(i int) {
				all[i] = d.runPod(podLike)
				all[i].run(idle(), containerLike)
			})
		})
		down += timed(func() { crowd(pods, atOnce, func(i int) { all[i].remove() }) })
	}
	b.ReportMetric(float64(pods*rounds)/up.Seconds(), "starts/s")
	b.ReportMetric(float64(pods*rounds)/down.Seconds(), "teardowns/s")
}

// BenchmarkRestart kills the daemon under 100 quiet pods and waits until a new one answers.
func BenchmarkRestart(b *testing.B) {
	const pods, atOnce = 100, 10
	d := newDaemon(b)
	d.pulled(busybox)
	crowd(pods, atOnce, func(int) { d.runPod() })
	for b.Loop() {
		d.restart()
	}
}

// BenchmarkLists asks what a kubelet asks all the time, of 250 pods with a container each. What is reported is the median, and the processor
// time that the daemon takes for one answer.
func BenchmarkLists(b *testing.B) {
	const pods, atOnce = 250, 10
	d := newDaemon(b)
	d.pulled(busybox)
	_, containerLike := d.kubeletLike()
	all := make([]*container, pods)
	parents := make([]podOption, pods)
	for i := range parents {
		parents[i] = d.inOwnCgroup(i)
	}
	crowd(pods, atOnce, func(i int) { all[i] = d.runPod(parents[i]).run(idle(), containerLike) })
	ctx := context.Background()
	for _, call := range []struct {
		name string
		ask  func(*container) (proto.Message, error)
	}{
		{"ListPodSandbox", func(*container) (proto.Message, error) {
			return d.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		}},
		{"ListContainers", func(*container) (proto.Message, error) {
			return d.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
		}},
		{"PodSandboxStatus", func(c *container) (proto.Message, error) {
			return d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: c.pod.id})
		}},
		{"ContainerStatus", func(c *container) (proto.Message, error) {
			return d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		}},
		{"ListContainerStats", func(*container) (proto.Message, error) {
			return d.runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
		}},
		{"ListPodSandboxStats", func(*container) (proto.Message, error) {
			return d.runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
		}},
		{"ListPodSandboxMetrics", func(*container) (proto.Message, error) {
			return d.runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
		}},
	} {
		b.Run(call.name, func(b *testing.B) {
			var took []time.Duration
			size, before := 0, d.processorTime()
			for b.Loop() {
				began := time.Now()
				reply, err := call.ask(all[len(took)%pods])
				took = append(took, time.Since(began))
				d.must(err)
				size = proto.Size(reply)
			}
			b.ReportMetric(float64(median(took).Microseconds())/1000, "median-ms")
			b.ReportMetric(float64((d.processorTime()-before).Microseconds())/1000/float64(len(took)), "daemon-cpu-ms")
			b.ReportMetric(float64(size), "reply-bytes")
		})
	}
	crowd(pods, atOnce, func(i int) {
		all[i].pod.stop()
		all[i].pod.remove()
	})
}

// inOwnCgroup makes a cgroup for a pod below what kubeletLike made.
func (d *daemon) inOwnCgroup(n int) podOption {
	d.Helper()
	name := filepath.Join("/cribox-tests-"+filepath.Base(d.dir), fmt.Sprintf("pod%d", n))
	for _, folder := range hierarchies(d) {
		path := filepath.Join(folder, name)
		d.must(os.Mkdir(path, 0o755))
		d.cgroups = append([]string{path}, d.cgroups...) // removed before its parent
		copyParent(d, path, "cpuset.cpus")
		copyParent(d, path, "cpuset.mems")
	}
	return func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = name }
}

// processorTime is what the daemon has used.
func (d *daemon) processorTime() time.Duration {
	d.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.process.pid()))
	d.must(err)
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err := strconv.Atoi(f[11])
	d.must(err)
	system, err := strconv.Atoi(f[12])
	d.must(err)
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
	d := newDaemon(b)
	c := d.runPod().run(idle())
	for b.Loop() {
		c.exec("true")
	}
}

// BenchmarkMemory tells the proportional memory of everything but the workload, per pod.
func BenchmarkMemory(b *testing.B) {
	for _, pods := range []int{1, 10, 40} {
		b.Run(fmt.Sprint(pods), func(b *testing.B) {
			d := newDaemon(b)
			d.pulled(busybox)
			began := d.memory()
			for range pods {
				d.runPod().run(idle())
			}
			now := d.memory()
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
func (d *daemon) memory() map[string]int {
	d.Helper()
	ours, err := ledger.Belonging(d.scope())
	d.must(err)
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
