package resources

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// cadvisorNames are what critest and the kubelet's own suite expect of a runtime: what a kubelet tells of containers without the
// runtime's help.
var cadvisorNames = strings.Fields(`
	container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
	container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
	container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes
	container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes container_fs_writes_bytes_total container_fs_writes_total
	container_hugetlb_max_usage_bytes container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_events_high_total
	container_memory_events_max_total container_memory_failcnt
	container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes
	container_memory_rss container_memory_swap container_memory_usage_bytes container_memory_working_set_bytes
	container_network_receive_bytes_total container_network_receive_errors_total container_network_receive_packets_dropped_total
	container_network_receive_packets_total container_network_transmit_bytes_total container_network_transmit_errors_total
	container_network_transmit_packets_dropped_total container_network_transmit_packets_total container_oom_events_total
	container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total container_pressure_io_stalled_seconds_total
	container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total
	container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares
	container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
	container_start_time_seconds container_threads container_threads_max container_ulimits_soft`)

// optional are the names that a container without huge pages, without a disk of its own and on an older kernel does not have.
func optional(name string) bool {
	return strings.HasPrefix(name, "container_hugetlb_") || strings.HasPrefix(name, "container_blkio_") || strings.HasPrefix(name, "container_fs_reads_") ||
		strings.HasPrefix(name, "container_fs_writes_") || strings.HasPrefix(name, "container_pressure_") && !harness.OnUnified()
}

func descriptors(d *harness.Daemon) map[string]*cri.MetricDescriptor {
	d.Helper()
	r, err := d.Runtime.ListMetricDescriptors(context.Background(), &cri.ListMetricDescriptorsRequest{})
	d.Must(err)
	all := map[string]*cri.MetricDescriptor{}
	for _, m := range r.Descriptors {
		if all[m.Name] != nil || m.Help == "" || len(m.LabelKeys) == 0 {
			d.Errorf("descriptor %v, and before it %v", m, all[m.Name])
		}
		all[m.Name] = m
	}
	return all
}

func metrics(d *harness.Daemon) []*cri.PodSandboxMetrics {
	d.Helper()
	r, err := d.Runtime.ListPodSandboxMetrics(context.Background(), &cri.ListPodSandboxMetricsRequest{})
	d.Must(err)
	return r.PodMetrics
}

// metricsStream is what StreamPodSandboxMetrics sends, as one list.
func metricsStream(d *harness.Daemon) []*cri.PodSandboxMetrics {
	d.Helper()
	stream, err := d.Runtime.StreamPodSandboxMetrics(context.Background(), &cri.StreamPodSandboxMetricsRequest{})
	d.Must(err)
	var all []*cri.PodSandboxMetrics
	d.EachPiece(stream, func() error {
		piece, err := stream.Recv()
		all = append(all, piece.GetPodSandboxMetrics()...)
		return harness.HasItems(err, len(piece.GetPodSandboxMetrics()))
	})
	return all
}

// series are the values of metrics by name and labels, as Prometheus writes them.
func series(d *harness.Daemon, descriptors map[string]*cri.MetricDescriptor, metrics []*cri.Metric) map[string]uint64 {
	d.Helper()
	all := map[string]uint64{}
	for _, m := range metrics {
		desc := descriptors[m.Name]
		if desc == nil || len(desc.LabelKeys) != len(m.LabelValues) || m.Value == nil {
			d.Errorf("no descriptor %v fits the metric %v", desc, m)
			continue
		}
		if strings.HasSuffix(m.Name, "_total") != (m.MetricType == cri.MetricType_COUNTER) && m.Name != "container_memory_failcnt" && m.Name != "container_fs_inodes_total" {
			d.Errorf("%s is a %s", m.Name, m.MetricType)
		}
		var labels []string
		for i, key := range desc.LabelKeys {
			labels = append(labels, fmt.Sprintf("%s=%q", key, m.LabelValues[i]))
		}
		key := m.Name + "{" + strings.Join(labels, ",") + "}"
		if _, twice := all[key]; twice {
			d.Errorf("told twice: %s", key)
		}
		all[key] = m.Value.Value
	}
	return all
}

// TestMetrics: every metric has a descriptor with as many labels, cAdvisor's names are all there, and the figures are the container's.
func TestMetrics(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	descriptors := descriptors(d)
	for _, name := range cadvisorNames {
		if descriptors[name] == nil {
			t.Errorf("there is no metric %s", name)
		}
	}
	p := d.RunPod()
	c := p.Run(burner(), limitedTo(64<<20), harness.With(func(c *cri.ContainerConfig) {
		r := c.Linux.Resources
		r.CpuPeriod, r.CpuQuota, r.CpuShares, r.MemorySwapLimitInBytes = 100000, 50000, 512, 64<<20
	}))
	c.WaitLog("ready")
	if _, err := net.DialTimeout("tcp", p.IP()+":9", harness.Patience); !errors.Is(err, syscall.ECONNREFUSED) { // so a packet came, and one went
		t.Errorf("a port where nobody listens: %v", err)
	}
	p.Create(harness.Idle()) // which has no metrics
	faults := pageFaults(c)
	all := metrics(d)
	if len(all) != 1 || all[0].PodSandboxId != p.ID || len(all[0].ContainerMetrics) != 1 || all[0].ContainerMetrics[0].ContainerId != c.ID {
		t.Fatalf("metrics of %v", all)
	}
	ofPod, ofContainer := series(d, descriptors, all[0].Metrics), series(d, descriptors, all[0].ContainerMetrics[0].Metrics)

	for name := range descriptors {
		sent := slices.ContainsFunc(all[0].Metrics, func(m *cri.Metric) bool { return m.Name == name }) ||
			slices.ContainsFunc(all[0].ContainerMetrics[0].Metrics, func(m *cri.Metric) bool { return m.Name == name })
		if !sent && !optional(name) {
			t.Errorf("%s is described and not sent", name)
		}
	}
	image := c.Status().Image.Image
	of := func(name string, extra ...string) string {
		labels := slices.Concat([]string{fmt.Sprintf("id=%q,image=%q,namespace=%q,pod=%q,container=%q",
			c.ID, image, p.Config.Metadata.Namespace, p.Config.Metadata.Name, c.Config.Metadata.Name)}, extra)
		return name + "{" + strings.Join(labels, ",") + "}"
	}
	for key, want := range map[string]uint64{
		of("container_start_time_seconds"):       uint64(c.Status().StartedAt / int64(time.Second)),
		of("container_spec_cpu_period"):          100000,
		of("container_spec_cpu_quota"):           50000,
		of("container_spec_cpu_shares"):          512,
		of("container_spec_memory_limit_bytes"):  64 << 20,
		of("container_processes"):                1,
		of("container_threads"):                  1,
		of("container_oom_events_total"):         0,
		of("container_memory_events_high_total"): 0,
		of("container_sockets"):                  0,
		of("container_memory_max_usage_bytes"):   kernelFigure(c, "memory", "memory.max_usage_in_bytes", "memory.peak", "", 1),
		of("container_file_descriptors"):         uint64(len(openFiles(d, c.PID()))),
		of("container_memory_failures_total", `failure_type="pgmajfault"`, `scope="hierarchy"`): ofContainer[of(
			"container_memory_failures_total", `failure_type="pgmajfault"`, `scope="container"`)],
	} {
		if got, ok := ofContainer[key]; !ok || got != want {
			t.Errorf("%s is %d (there: %t), want %d", key, got, ok, want)
		}
	}
	for key, least := range map[string]uint64{
		of("container_memory_rss"):               20000000,
		of("container_memory_working_set_bytes"): 20000000,
		of("container_memory_failures_total", `failure_type="pgfault"`, `scope="container"`): faults,
		of("container_cpu_cfs_periods_total"):                                                1,
		of("container_ulimits_soft", `ulimit="max_open_files"`):                              1,
		of("container_last_seen"):                                                            uint64(time.Now().Add(-time.Minute).Unix()),
	} {
		if got := ofContainer[key]; got < least {
			t.Errorf("%s is %d, want %d at least", key, got, least)
		}
	}
	for _, m := range all[0].ContainerMetrics[0].Metrics {
		cached := strings.HasPrefix(m.Name, "container_fs_usage_") || strings.HasPrefix(m.Name, "container_fs_limit_") || strings.HasPrefix(m.Name, "container_fs_inodes_")
		if cached != (m.Timestamp != 0) {
			t.Errorf("%s has the timestamp %d", m.Name, m.Timestamp)
		}
		if m.Name == "container_fs_usage_bytes" && m.Value.Value < 3<<20 {
			t.Errorf("it wrote 3 MiB: %v", m)
		}
	}
	rx, tx := interfaceCounters(d, c.PID(), "eth0")
	network := func(name string) uint64 {
		return ofPod[fmt.Sprintf("%s{id=%q,image=\"\",namespace=%q,pod=%q,container=\"\",interface=\"eth0\"}", name, p.ID,
			p.Config.Metadata.Namespace, p.Config.Metadata.Name)]
	}
	for key := range ofPod {
		if strings.Contains(key, `interface="lo"`) {
			t.Errorf("%s: the loopback has figures", key)
		}
	}
	if r, s := network("container_network_receive_bytes_total"), network("container_network_transmit_bytes_total"); r == 0 || s == 0 || r > rx || s > tx {
		t.Errorf("received %d and sent %d bytes, ip says %d and %d\n%v", r, s, rx, tx, ofPod)
	}
	harness.Eventually(t, "a second of processor time", func() error {
		now := series(d, descriptors, metrics(d)[0].ContainerMetrics[0].Metrics)
		total := now[of("container_cpu_usage_seconds_total", `cpu="total"`)]
		return harness.Unless(total >= 1 && total <= cpuTime(c)/uint64(time.Second), "it is %d", total)
	})
}

// TestMetricsStream gives what the list gives.
func TestMetricsStream(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	if all := metricsStream(d); len(all) != 0 {
		t.Errorf("metrics of no pod: %v", all)
	}
	for range 2 {
		d.RunPod().Run(harness.Idle())
	}
	descriptors := descriptors(d)
	names := func(all []*cri.PodSandboxMetrics) (names []string) {
		for _, p := range all {
			names = append(names, slices.Collect(maps.Keys(series(d, descriptors, p.Metrics)))...)
			for _, c := range p.ContainerMetrics {
				names = append(names, slices.Collect(maps.Keys(series(d, descriptors, c.Metrics)))...)
			}
		}
		slices.Sort(names)
		return names
	}
	list, stream := names(metrics(d)), names(metricsStream(d))
	if len(list) < 80 || !slices.Equal(list, stream) {
		t.Errorf("the list has\n%s\n\nand the stream\n%s", strings.Join(list, "\n"), strings.Join(stream, "\n"))
	}
}

// openFiles are the descriptors of a process.
func openFiles(d *harness.Daemon, pid int) []os.DirEntry {
	d.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	d.Must(err)
	return files
}

// TestMissingMetricsAreOmitted: without a quota there is nothing to throttle, and no zero says otherwise; without a pod there is nothing.
func TestMissingMetricsAreOmitted(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	if all := metrics(d); len(all) != 0 {
		t.Errorf("metrics of no pod: %v", all)
	}
	p := d.RunPod(harness.OnHostNetwork)
	p.Run(harness.Idle())
	all := metrics(d)
	if len(all) != 1 || len(all[0].Metrics) != 0 || len(all[0].ContainerMetrics) != 1 {
		t.Fatalf("of a pod in the host's network: %v", all)
	}
	for _, m := range all[0].ContainerMetrics[0].Metrics {
		if strings.HasPrefix(m.Name, "container_cpu_cfs_") || m.Name == "container_spec_cpu_quota" {
			t.Errorf("of a container without a quota: %v", m)
		}
		if strings.HasPrefix(m.Name, "container_spec_memory_") && m.Value.Value != 0 {
			t.Errorf("of a container without a limit: %v", m)
		}
	}
	p.Stop()
	if all := metrics(d); len(all) != 0 {
		t.Errorf("metrics of a pod that was stopped: %v", all)
	}
}

// TestCrictlStats: crictl prints all of it.
func TestCrictlStats(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(harness.Idle())
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"stats"}, c.ID[:13]},
		{[]string{"stats", c.ID[:13]}, c.Config.Metadata.Name},
		{[]string{"statsp"}, p.ID[:13]},
		{[]string{"statsp", p.ID[:13]}, p.Config.Metadata.Name},
		{[]string{"statsp", "-o", "json"}, `"defaultInterface"`},
		{[]string{"metricsp"}, "container_memory_working_set_bytes"},
		{[]string{"metricdescs"}, "container_memory_working_set_bytes"},
	} {
		if out := d.Crictl(row.args...); !strings.Contains(out, row.want) {
			t.Errorf("crictl %s does not print %q:\n%s", strings.Join(row.args, " "), row.want, out)
		}
	}
}
