// Package metrics translates resource usage of containers into cAdvisor's metrics: CRI messages, and
// what Prometheus reads.
//
// A table has every metric with its name, type, help text and the function that returns its value.
// The package reads no files and keeps no state. Names, units and types are those of cAdvisor, so
// that dashboards and alerts for the kubelet's /metrics/cadvisor keep working. The CRI has only
// whole numbers, so its durations are truncated to whole seconds. A missing value is not sent. In
// the CRI, a value that was read for this response has no timestamp.
package metrics

import (
	"slices"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// baseLabels are the labels of every metric. id is the ID of the container, or of the pod for
// metrics of pods; those have an empty container and image, so that sums by container or image omit
// them. Do not add labels without need: each is sent about fifty times per container, and the list
// of a large node must fit into one message.
var baseLabels = []string{"id", "image", "namespace", "pod", "container"}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// metric is one metric, of a container or of a network interface of a pod. Exactly one of its three
// functions is set.
type metric struct {
	name   string
	kind   runtimeapi.MetricType
	help   string
	labels []string // in addition to baseLabels

	nanoseconds bool // what the functions return; the metric is in seconds

	one       func(*containerMetrics) *uint64 // returns a single value
	many      func(*containerMetrics, report) // reports several values with labels
	byNetwork func(*sandbox.Interface) uint64
}

// report is called with a value and its labels. A nil value is not sent.
type report func(n *uint64, labels ...string)

// containerMetrics is the data that the metrics of one container are computed from.
type containerMetrics struct {
	*sandbox.Metrics
	spec *runtimeapi.LinuxContainerResources
}

var table = slices.Concat(lifeMetrics, cpuMetrics, memoryMetrics, diskMetrics, processMetrics, specMetrics,
	pressureMetrics, networkMetrics)

var lifeMetrics = []metric{
	{name: "container_last_seen", kind: gauge, help: "Last time a container was seen by the exporter",
		one: func(*containerMetrics) *uint64 { return new(uint64(time.Now().Unix())) }},
	{name: "container_start_time_seconds", kind: gauge, help: "Start time of the container since unix epoch in seconds.",
		one: func(c *containerMetrics) *uint64 { return positive(c.Started / int64(time.Second)) }},
}

var cpuMetrics = []metric{
	{name: "container_cpu_user_seconds_total", nanoseconds: true, help: "Cumulative user cpu time consumed in seconds.",
		one: func(c *containerMetrics) *uint64 { return c.User }},
	{name: "container_cpu_system_seconds_total", nanoseconds: true,
		help: "Cumulative system cpu time consumed in seconds.",
		one:  func(c *containerMetrics) *uint64 { return c.System }},
	{name: "container_cpu_usage_seconds_total", nanoseconds: true, help: "Cumulative cpu time consumed in seconds.",
		labels: []string{"cpu"},
		many:   func(c *containerMetrics, r report) { r(c.CPU, "total") }},
	{name: "container_cpu_cfs_periods_total", help: "Number of elapsed enforcement period intervals.",
		one: withQuota(func(c *containerMetrics) *uint64 { return c.Periods })},
	{name: "container_cpu_cfs_throttled_periods_total", help: "Number of throttled period intervals.",
		one: withQuota(func(c *containerMetrics) *uint64 { return c.Throttled })},
	{name: "container_cpu_cfs_throttled_seconds_total", nanoseconds: true,
		help: "Total time duration the container has been throttled.",
		one:  withQuota(func(c *containerMetrics) *uint64 { return c.ThrottledTime })},
}

var memoryMetrics = []metric{
	{name: "container_memory_usage_bytes", kind: gauge,
		help: "Current memory usage in bytes, including all memory regardless of when it was accessed",
		one:  func(c *containerMetrics) *uint64 { return c.Memory.Usage }},
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
	{name: "container_memory_failures_total",
		help: "Cumulative count of memory allocation failures.", labels: []string{"failure_type", "scope"},
		many: func(c *containerMetrics, r report) {
			r(c.OwnFaults, "pgfault", "container")
			r(c.OwnMajorFaults, "pgmajfault", "container")
			r(c.Memory.Faults, "pgfault", "hierarchy")
			r(c.Memory.MajorFaults, "pgmajfault", "hierarchy")
		}},
	{name: "container_oom_events_total", help: "Count of out of memory events observed for the container",
		one: func(c *containerMetrics) *uint64 { return c.OOMKills }},
	{name: "container_hugetlb_usage_bytes", kind: gauge, help: "Current hugepage usage in bytes",
		labels: []string{"pagesize"},
		many: func(c *containerMetrics, r report) {
			for _, h := range c.HugePages {
				r(h.Usage, h.Size)
			}
		}},
	{name: "container_hugetlb_max_usage_bytes", kind: gauge, help: "Maximum hugepage usage recorded in bytes",
		labels: []string{"pagesize"},
		many: func(c *containerMetrics, r report) {
			for _, h := range c.HugePages {
				r(h.Max, h.Size)
			}
		}},
}

var deviceLabel = []string{"device"}

// The values of the first four are cached, and carry the time at which they were measured.
var diskMetrics = []metric{
	{name: fsUsage, kind: gauge, help: "Number of bytes that are consumed by the container on this filesystem.",
		labels: deviceLabel,
		many:   func(c *containerMetrics, r report) { r(c.Layer.Bytes, c.Device) }},
	{name: fsLimit, kind: gauge, help: "Number of bytes that can be consumed by the container on this filesystem.",
		labels: deviceLabel,
		many:   func(c *containerMetrics, r report) { r(c.Layer.Capacity, c.Device) }},
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
	{name: "container_blkio_device_usage_total", help: "Blkio Device bytes usage",
		labels: []string{"device", "major", "minor", "operation"},
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
	{name: "container_threads_max", kind: gauge,
		help: "Maximum number of threads allowed inside the container, infinity if value is zero",
		one:  func(c *containerMetrics) *uint64 { return c.MaxThreads }},
	{name: "container_file_descriptors", kind: gauge, help: "Number of open file descriptors for the container.",
		one: func(c *containerMetrics) *uint64 { return c.Descriptors }},
	{name: "container_sockets", kind: gauge, help: "Number of open sockets for the container.",
		one: func(c *containerMetrics) *uint64 { return c.Sockets }},
	{name: "container_ulimits_soft", kind: gauge,
		help:   "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
		labels: []string{"ulimit"}, many: func(c *containerMetrics, r report) { r(c.MaxFiles, "max_open_files") }},
}

// kernelPeriod is the default period of a CPU quota, in microseconds.
const kernelPeriod = 100_000

// A limit of 0 means no limit.
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
	{name: "container_spec_memory_reservation_limit_bytes", kind: gauge,
		help: "Memory reservation limit for the container.",
		one: func(c *containerMetrics) *uint64 {
			n, err := strconv.ParseInt(c.spec.GetUnified()["memory.low"], 10, 64)
			if err != nil {
				return limit(0)
			}
			return limit(n)
		}},
}

// pressureMetrics need cgroup v2. "waiting" is the time in which some tasks waited, "stalled" the
// time in which all did.
var pressureMetrics = []metric{
	{name: "container_pressure_cpu_waiting_seconds_total", nanoseconds: true,
		help: "Total time duration tasks in the container have waited due to CPU congestion.",
		one:  func(c *containerMetrics) *uint64 { return someWaited(c.CPUPressure) }},
	{name: "container_pressure_cpu_stalled_seconds_total", nanoseconds: true,
		help: "Total time duration no tasks in the container could make progress due to CPU congestion.",
		one:  func(c *containerMetrics) *uint64 { return allWaited(c.CPUPressure) }},
	{name: "container_pressure_memory_waiting_seconds_total", nanoseconds: true,
		help: "Total time duration tasks in the container have waited due to memory congestion.",
		one:  func(c *containerMetrics) *uint64 { return someWaited(c.MemoryPressure) }},
	{name: "container_pressure_memory_stalled_seconds_total", nanoseconds: true,
		help: "Total time duration no tasks in the container could make progress due to memory congestion.",
		one:  func(c *containerMetrics) *uint64 { return allWaited(c.MemoryPressure) }},
	{name: "container_pressure_io_waiting_seconds_total", nanoseconds: true,
		help: "Total time duration tasks in the container have waited due to IO congestion.",
		one:  func(c *containerMetrics) *uint64 { return someWaited(c.IOPressure) }},
	{name: "container_pressure_io_stalled_seconds_total", nanoseconds: true,
		help: "Total time duration no tasks in the container could make progress due to IO congestion.",
		one:  func(c *containerMetrics) *uint64 { return allWaited(c.IOPressure) }},
}

var interfaceLabel = []string{"interface"}

// networkMetrics are metrics of the pod, because its containers share one network.
var networkMetrics = []metric{
	{name: "container_network_receive_bytes_total", help: "Cumulative count of bytes received", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Bytes }},
	{name: "container_network_receive_packets_total", help: "Cumulative count of packets received", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Packets }},
	{name: "container_network_receive_packets_dropped_total",
		help: "Cumulative count of packets dropped while receiving", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Dropped }},
	{name: "container_network_receive_errors_total", help: "Cumulative count of errors encountered while receiving",
		labels:    interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Rx.Errors }},
	{name: "container_network_transmit_bytes_total", help: "Cumulative count of bytes transmitted", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Bytes }},
	{name: "container_network_transmit_packets_total", help: "Cumulative count of packets transmitted",
		labels:    interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Packets }},
	{name: "container_network_transmit_packets_dropped_total",
		help: "Cumulative count of packets dropped while transmitting", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Dropped }},
	{name: "container_network_transmit_errors_total",
		help: "Cumulative count of errors encountered while transmitting", labels: interfaceLabel,
		byNetwork: func(i *sandbox.Interface) uint64 { return i.Tx.Errors }},
}
