package server

import (
	"context"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// The metrics are cAdvisor's by name, unit and type, so that what is built on the kubelet's /metrics/cadvisor goes on. CRI has whole numbers
// only: seconds are told without their parts. What is unknown is not sent; a metric gathered live carries no timestamp.

// baseLabels are the labels of every metric. The id is that of the container, or of the pod for what is counted of pods, which have neither
// container nor image: sums by container or image leave them out. Every further label is sent with each of some fifty metrics of each
// container, and the list of a big node has to fit into one message.
var baseLabels = []string{"id", "image", "namespace", "pod", "container"}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// metric is one name with what it stands for: of a container, or of an interface of a pod.
type metric struct {
	name   string
	kind   runtimeapi.MetricType
	help   string
	labels []string // after the base ones

	one       func(*containerMetrics) *uint64 // its only value
	many      func(*containerMetrics, report) // several, each with labels
	byNetwork func(*sandbox.Interface) uint64
}

// report takes one value, nil for none, and its labels.
type report func(n *uint64, labels ...string)

// containerMetrics is what the metrics of one container are made from.
type containerMetrics struct {
	*sandbox.Metrics
	spec *runtimeapi.LinuxContainerResources
}

var metrics = slices.Concat(lifeMetrics, cpuMetrics, memoryMetrics, diskMetrics, processMetrics, specMetrics, pressureMetrics, networkMetrics)

var lifeMetrics = []metric{
	{name: "container_last_seen", kind: gauge, help: "Last time a container was seen by the exporter",
		one: func(*containerMetrics) *uint64 { return new(uint64(time.Now().Unix())) }},
	{name: "container_start_time_seconds", kind: gauge, help: "Start time of the container since unix epoch in seconds.",
		one: func(c *containerMetrics) *uint64 { return positive(c.Started / int64(time.Second)) }},
}

var cpuMetrics = []metric{
	{name: "container_cpu_user_seconds_total", help: "Cumulative user cpu time consumed in seconds.",
		one: func(c *containerMetrics) *uint64 { return inSeconds(c.User) }},
	{name: "container_cpu_system_seconds_total", help: "Cumulative system cpu time consumed in seconds.",
		one: func(c *containerMetrics) *uint64 { return inSeconds(c.System) }},
	{name: "container_cpu_usage_seconds_total", help: "Cumulative cpu time consumed in seconds.", labels: []string{"cpu"},
		many: func(c *containerMetrics, r report) { r(inSeconds(c.CPU), "total") }},
	{name: "container_cpu_cfs_periods_total", help: "Number of elapsed enforcement period intervals.",
		one: withQuota(func(c *containerMetrics) *uint64 { return c.Periods })},
	{name: "container_cpu_cfs_throttled_periods_total", help: "Number of throttled period intervals.",
		one: withQuota(func(c *containerMetrics) *uint64 { return c.Throttled })},
	{name: "container_cpu_cfs_throttled_seconds_total", help: "Total time duration the container has been throttled.",
		one: withQuota(func(c *containerMetrics) *uint64 { return inSeconds(c.ThrottledTime) })},
}

var memoryMetrics = []metric{
	{name: "container_memory_usage_bytes", kind: gauge, help: "Current memory usage in bytes, including all memory regardless of when it was accessed",
		one: func(c *containerMetrics) *uint64 { return c.Memory.Usage }},
	{name: "container_memory_working_set_bytes", kind: gauge, help: "Current working set in bytes.",
		one: func(c *containerMetrics) *uint64 { return c.Memory.WorkingSet }},
	{name: "container_memory_rss", kind: gauge, help: "Size of RSS in bytes.",
		one: func(c *containerMetrics) *uint64 { return c.Memory.RSS }},
	{name: "container_memory_cache", kind: gauge, help: "Number of bytes of page cache memory.",
		one: func(c *containerMetrics) *uint64 { return c.Memory.Cache }},
	{name: "container_memory_mapped_file", kind: gauge, help: "Size of memory mapped files in bytes.",
		one: func(c *containerMetrics) *uint64 { return c.Memory.Mapped }},
	{name: "container_memory_kernel_usage", kind: gauge, help: "Size of kernel memory allocated in bytes.",
		one: func(c *containerMetrics) *uint64 { return c.Memory.Kernel }},
	{name: "container_memory_total_active_file_bytes", kind: gauge, help: "Current total active file in bytes.",
		one: func(c *containerMetrics) *uint64 { return c.Memory.ActiveFile }},
	{name: "container_memory_total_inactive_file_bytes", kind: gauge, help: "Current total inactive file in bytes.",
		one: func(c *containerMetrics) *uint64 { return c.Memory.InactiveFile }},
	{name: "container_memory_swap", kind: gauge, help: "Container swap usage in bytes.",
		one: func(c *containerMetrics) *uint64 { return c.Swap.Usage }},
	{name: "container_memory_max_usage_bytes", kind: gauge, help: "Maximum memory usage recorded in bytes",
		one: func(c *containerMetrics) *uint64 { return c.PeakMemory }},
	{name: "container_memory_failcnt", help: "Number of memory usage hits limits",
		one: func(c *containerMetrics) *uint64 { return c.LimitHits }},
	{name: "container_memory_events_max_total", help: "Cumulative count of memory.max limit hit events for the container",
		one: func(c *containerMetrics) *uint64 { return c.LimitHits }},
	{name: "container_memory_events_high_total", help: "Cumulative count of memory.high throttle events for the container",
		one: func(c *containerMetrics) *uint64 { return c.Slowdowns }},
	{name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.", labels: []string{"failure_type", "scope"},
		many: func(c *containerMetrics, r report) {
			r(c.OwnFaults, "pgfault", "container")
			r(c.OwnMajorFaults, "pgmajfault", "container")
			r(c.Memory.Faults, "pgfault", "hierarchy")
			r(c.Memory.MajorFaults, "pgmajfault", "hierarchy")
		}},
	{name: "container_oom_events_total", help: "Count of out of memory events observed for the container",
		one: func(c *containerMetrics) *uint64 { return c.OOMKills }},
	{name: "container_hugetlb_usage_bytes", kind: gauge, help: "Current hugepage usage in bytes", labels: []string{"pagesize"},
		many: func(c *containerMetrics, r report) {
			for _, h := range c.HugePages {
				r(h.Usage, h.Size)
			}
		}},
	{name: "container_hugetlb_max_usage_bytes", kind: gauge, help: "Maximum hugepage usage recorded in bytes", labels: []string{"pagesize"},
		many: func(c *containerMetrics, r report) {
			for _, h := range c.HugePages {
				r(h.Max, h.Size)
			}
		}},
}

var deviceLabel = []string{"device"}

// The first four are measured seldom, and carry the time of that.
var diskMetrics = []metric{
	{name: fsUsage, kind: gauge, help: "Number of bytes that are consumed by the container on this filesystem.", labels: deviceLabel,
		many: func(c *containerMetrics, r report) { r(c.Layer.Bytes, c.Device) }},
	{name: fsLimit, kind: gauge, help: "Number of bytes that can be consumed by the container on this filesystem.", labels: deviceLabel,
		many: func(c *containerMetrics, r report) { r(c.Layer.Capacity, c.Device) }},
	{name: fsInodes, kind: gauge, help: "Number of Inodes", labels: deviceLabel,
		many: func(c *containerMetrics, r report) { r(c.Layer.InodesTotal, c.Device) }},
	{name: fsInodesFree, kind: gauge, help: "Number of available Inodes", labels: deviceLabel,
		many: func(c *containerMetrics, r report) { r(c.Layer.InodesFree, c.Device) }},
	{name: "container_fs_reads_bytes_total", help: "Cumulative count of bytes read", labels: deviceLabel,
		many: byDevice(func(c *containerMetrics, i int) *uint64 { return &c.Devices[i].ReadBytes })},
	{name: "container_fs_reads_total", help: "Cumulative count of reads completed", labels: deviceLabel,
		many: byDevice(func(c *containerMetrics, i int) *uint64 { return &c.Devices[i].Reads })},
	{name: "container_fs_writes_bytes_total", help: "Cumulative count of bytes written", labels: deviceLabel,
		many: byDevice(func(c *containerMetrics, i int) *uint64 { return &c.Devices[i].WriteBytes })},
	{name: "container_fs_writes_total", help: "Cumulative count of writes completed", labels: deviceLabel,
		many: byDevice(func(c *containerMetrics, i int) *uint64 { return &c.Devices[i].Writes })},
	{name: "container_blkio_device_usage_total", help: "Blkio Device bytes usage", labels: []string{"device", "major", "minor", "operation"},
		many: func(c *containerMetrics, r report) {
			for i := range c.Devices {
				d := &c.Devices[i]
				major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
				r(&d.ReadBytes, c.Names[i], major, minor, "Read")
				r(&d.WriteBytes, c.Names[i], major, minor, "Write")
			}
		}},
}

const (
	fsUsage      = "container_fs_usage_bytes"
	fsLimit      = "container_fs_limit_bytes"
	fsInodes     = "container_fs_inodes_total"
	fsInodesFree = "container_fs_inodes_free"
)

var processMetrics = []metric{
	{name: "container_processes", kind: gauge, help: "Number of processes running inside the container.",
		one: func(c *containerMetrics) *uint64 { return c.Processes }},
	{name: "container_threads", kind: gauge, help: "Number of threads running inside the container",
		one: func(c *containerMetrics) *uint64 { return c.Threads }},
	{name: "container_threads_max", kind: gauge, help: "Maximum number of threads allowed inside the container, infinity if value is zero",
		one: func(c *containerMetrics) *uint64 { return c.MaxThreads }},
	{name: "container_file_descriptors", kind: gauge, help: "Number of open file descriptors for the container.",
		one: func(c *containerMetrics) *uint64 { return c.Descriptors }},
	{name: "container_sockets", kind: gauge, help: "Number of open sockets for the container.",
		one: func(c *containerMetrics) *uint64 { return c.Sockets }},
	{name: "container_ulimits_soft", kind: gauge, help: "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
		labels: []string{"ulimit"}, many: func(c *containerMetrics, r report) { r(c.MaxFiles, "max_open_files") }},
}

// kernelPeriod is what a CPU quota is divided by when nobody says otherwise, in microseconds.
const kernelPeriod = 100_000

// Of a limit, 0 is none.
var specMetrics = []metric{
	{name: "container_spec_cpu_period", kind: gauge, help: "CPU period of the container.",
		one: func(c *containerMetrics) *uint64 {
			if c.spec.GetCpuPeriod() == 0 && c.spec.GetCpuQuota() > 0 {
				return positive(kernelPeriod)
			}
			return positive(c.spec.GetCpuPeriod())
		}},
	{name: "container_spec_cpu_quota", kind: gauge, help: "CPU quota of the container.",
		one: func(c *containerMetrics) *uint64 { return positive(c.spec.GetCpuQuota()) }},
	{name: "container_spec_cpu_shares", kind: gauge, help: "CPU share of the container.",
		one: func(c *containerMetrics) *uint64 { return positive(c.spec.GetCpuShares()) }},
	{name: "container_spec_memory_limit_bytes", kind: gauge, help: "Memory limit for the container.",
		one: func(c *containerMetrics) *uint64 { return limit(c.spec.GetMemoryLimitInBytes()) }},
	{name: "container_spec_memory_swap_limit_bytes", kind: gauge, help: "Memory swap limit for the container.",
		one: func(c *containerMetrics) *uint64 { return limit(c.spec.GetMemorySwapLimitInBytes()) }},
	{name: "container_spec_memory_reservation_limit_bytes", kind: gauge, help: "Memory reservation limit for the container.",
		one: func(c *containerMetrics) *uint64 {
			n, err := strconv.ParseInt(c.spec.GetUnified()["memory.low"], 10, 64)
			if err != nil {
				return limit(0)
			}
			return limit(n)
		}},
}

// pressureMetrics exist with version 2 of cgroups: waiting are some tasks, stalled are all.
var pressureMetrics = []metric{
	{name: "container_pressure_cpu_waiting_seconds_total", help: "Total time duration tasks in the container have waited due to CPU congestion.",
		one: func(c *containerMetrics) *uint64 { return someWaited(c.CPUPressure) }},
	{name: "container_pressure_cpu_stalled_seconds_total", help: "Total time duration no tasks in the container could make progress due to CPU congestion.",
		one: func(c *containerMetrics) *uint64 { return allWaited(c.CPUPressure) }},
	{name: "container_pressure_memory_waiting_seconds_total", help: "Total time duration tasks in the container have waited due to memory congestion.",
		one: func(c *containerMetrics) *uint64 { return someWaited(c.MemoryPressure) }},
	{name: "container_pressure_memory_stalled_seconds_total",
		help: "Total time duration no tasks in the container could make progress due to memory congestion.",
		one:  func(c *containerMetrics) *uint64 { return allWaited(c.MemoryPressure) }},
	{name: "container_pressure_io_waiting_seconds_total", help: "Total time duration tasks in the container have waited due to IO congestion.",
		one: func(c *containerMetrics) *uint64 { return someWaited(c.IOPressure) }},
	{name: "container_pressure_io_stalled_seconds_total", help: "Total time duration no tasks in the container could make progress due to IO congestion.",
		one: func(c *containerMetrics) *uint64 { return allWaited(c.IOPressure) }},
}

var interfaceLabel = []string{"interface"}

// networkMetrics are of the pod: its containers share the network.
var networkMetrics = []metric{
	{name: "container_network_receive_bytes_total", help: "Cumulative count of bytes received", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Bytes }},
	{name: "container_network_receive_packets_total", help: "Cumulative count of packets received", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Packets }},
	{name: "container_network_receive_packets_dropped_total", help: "Cumulative count of packets dropped while receiving", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Dropped }},
	{name: "container_network_receive_errors_total", help: "Cumulative count of errors encountered while receiving", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Errors }},
	{name: "container_network_transmit_bytes_total", help: "Cumulative count of bytes transmitted", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Bytes }},
	{name: "container_network_transmit_packets_total", help: "Cumulative count of packets transmitted", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Packets }},
	{name: "container_network_transmit_packets_dropped_total", help: "Cumulative count of packets dropped while transmitting", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Dropped }},
	{name: "container_network_transmit_errors_total", help: "Cumulative count of errors encountered while transmitting", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Errors }},
}

// ListMetricDescriptors tells every metric that may be sent, and no other.
func (s *runtimeService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	r := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range metrics {
		r.Descriptors = append(r.Descriptors, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels)})
	}
	return r, nil
}

// ListPodSandboxMetrics tells the metrics of every pod in which something runs.
func (s *runtimeService) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	items, err := s.metricsItems()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: items}, nil
}

func (s *runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest,
	to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	all, err := s.metricsItems()
	if err != nil {
		return err
	}
	return sendPieces(s.Server, to, all, func(items []*runtimeapi.PodSandboxMetrics) *runtimeapi.StreamPodSandboxMetricsResponse {
		return &runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: items}
	})
}

func (s *runtimeService) metricsItems() ([]*runtimeapi.PodSandboxMetrics, error) {
	all, err := s.pods().Metrics()
	if err != nil {
		return nil, err
	}
	var items []*runtimeapi.PodSandboxMetrics
	for _, p := range all {
		item := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID, Metrics: ofPod(p)}
		for i := range p.Containers {
			c := &p.Containers[i]
			item.ContainerMetrics = append(item.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.ID,
				Metrics: ofContainer(c, p.Pod, s.imageOf(c.Container).GetImage())})
		}
		items = append(items, item)
	}
	return items, nil
}

func ofPod(p sandbox.PodMetrics) []*runtimeapi.Metric {
	d := p.Config.GetMetadata()
	base := []string{p.ID, "", d.GetNamespace(), d.GetName(), ""}
	var all []*runtimeapi.Metric
	for i := range p.Interfaces {
		if p.Interfaces[i].Loopback() { // the kubelet's own pages have none, and sums over a pod would count it
			continue
		}
		labels := slices.Concat(base, []string{p.Interfaces[i].Name})
		for _, m := range networkMetrics {
			all = append(all, &runtimeapi.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels,
				Value: &runtimeapi.UInt64Value{Value: m.byNetwork(&p.Interfaces[i])}})
		}
	}
	return all
}

func ofContainer(c *sandbox.Metrics, p sandbox.Pod, image string) []*runtimeapi.Metric {
	d := p.Config.GetMetadata()
	base := []string{c.ID, image, d.GetNamespace(), d.GetName(), c.Config.GetMetadata().GetName()}
	from := &containerMetrics{c, c.Container.Resources()}
	all := make([]*runtimeapi.Metric, 0, len(metrics))
	var room measurements
	add := func(m *metric, n *uint64, labels []string) {
		if n == nil {
			return
		}
		one := room.next()
		one.value.Value = *n
		one.metric.Name, one.metric.MetricType, one.metric.Timestamp = m.name, m.kind, measuredAt(m, c)
		one.metric.LabelValues, one.metric.Value = labels, &one.value
		all = append(all, &one.metric)
	}
	for i := range metrics {
		m := &metrics[i]
		switch {
		case m.one != nil:
			add(m, m.one(from), base)
		case m.many != nil:
			m.many(from, func(n *uint64, labels ...string) { add(m, n, slices.Concat(base, labels)) })
		}
	}
	return all
}

// measurements makes measurements many at a time: in a list there are more than ten thousand.
type measurements []measurement

type measurement struct {
	metric runtimeapi.Metric
	value  runtimeapi.UInt64Value
}

func (room *measurements) next() *measurement {
	if len(*room) == 0 {
		*room = make(measurements, 32)
	}
	one := &(*room)[0]
	*room = (*room)[1:]
	return one
}

// measuredAt is 0 for what was read for this answer.
func measuredAt(m *metric, c *sandbox.Metrics) int64 {
	switch m.name {
	case fsUsage, fsLimit, fsInodes, fsInodesFree:
		return c.Layer.At.UnixNano()
	}
	return 0
}

func byDevice(of func(*containerMetrics, int) *uint64) func(*containerMetrics, report) {
	return func(c *containerMetrics, r report) {
		for i := range c.Devices {
			r(of(c, i), c.Names[i])
		}
	}
}

// withQuota leaves the metric out for a container without a CPU quota.
func withQuota(of func(*containerMetrics) *uint64) func(*containerMetrics) *uint64 {
	return func(c *containerMetrics) *uint64 {
		if c.spec.GetCpuQuota() <= 0 {
			return nil
		}
		return of(c)
	}
}

func inSeconds(nanoseconds *uint64) *uint64 {
	if nanoseconds == nil {
		return nil
	}
	return new(*nanoseconds / uint64(time.Second))
}

// positive leaves out what was not asked for.
func positive(n int64) *uint64 {
	if n <= 0 {
		return nil
	}
	return new(uint64(n))
}

func limit(n int64) *uint64 { return new(uint64(max(n, 0))) }

func someWaited(p *sandbox.Pressure) *uint64 {
	if p == nil || p.Some == nil {
		return nil
	}
	return inSeconds(&p.Some.Total)
}

func allWaited(p *sandbox.Pressure) *uint64 {
	if p == nil || p.Full == nil {
		return nil
	}
	return inSeconds(&p.Full.Total)
}
