package metrics

import (
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// Descriptors returns the descriptors of all metrics that may be sent.
func Descriptors() []*runtimeapi.MetricDescriptor {
	all := make([]*runtimeapi.MetricDescriptor, 0, len(table))
	for _, m := range table {
		all = append(all, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help,
			LabelKeys: slices.Concat(baseLabels, m.labels)})
	}
	return all
}

// OfPod returns the metrics of a pod and its containers. The function image returns the name of a
// container's image.
func OfPod(p sandbox.PodMetrics, image func(sandbox.Container) string) *runtimeapi.PodSandboxMetrics {
	all := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID, Metrics: ofNetwork(p)}
	for i := range p.Containers {
		c := &p.Containers[i]
		all.ContainerMetrics = append(all.ContainerMetrics, &runtimeapi.ContainerMetrics{
			ContainerId: c.ID, Metrics: ofContainer(c, p.Pod, image(c.Container)),
		})
	}
	return all
}

func ofNetwork(p sandbox.PodMetrics) []*runtimeapi.Metric {
	d := p.Config.GetMetadata()
	base := []string{p.ID, "", d.GetNamespace(), d.GetName(), ""}
	var all []*runtimeapi.Metric
	for i := range p.Interfaces {
		if p.Interfaces[i].Loopback() { // the kubelet's metrics omit it, and sums over a pod would count it
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
	all := make([]*runtimeapi.Metric, 0, len(table))
	var free measurements
	add := func(m *metric, n *uint64, labels []string) {
		if n == nil {
			return
		}
		one := free.next()
		one.value.Value = *n
		one.metric.Name, one.metric.MetricType, one.metric.Timestamp = m.name, m.kind, measuredAt(m, c)
		one.metric.LabelValues, one.metric.Value = labels, &one.value
		all = append(all, &one.metric)
	}
	for i := range table {
		m := &table[i]
		switch {
		case m.one != nil:
			add(m, m.one(from), base)
		case m.many != nil:
			m.many(from, func(n *uint64, labels ...string) { add(m, n, slices.Concat(base, labels)) })
		}
	}
	return all
}

// measurements allocates measurements in batches, because a list has more than ten thousand of
// them.
type measurements []measurement

type measurement struct {
	metric runtimeapi.Metric
	value  runtimeapi.UInt64Value
}

func (m *measurements) next() *measurement {
	if len(*m) == 0 {
		*m = make(measurements, 32)
	}
	one := &(*m)[0]
	*m = (*m)[1:]
	return one
}

// measuredAt returns the timestamp of a metric in nanoseconds, or 0 for a value that was read for
// this response.
func measuredAt(m *metric, c *sandbox.Metrics) int64 {
	switch m.name {
	case fsUsage, fsLimit, fsInodes, fsInodesFree:
		return c.Layer.At.UnixNano()
	}
	return 0
}
