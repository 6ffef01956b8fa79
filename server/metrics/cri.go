package metrics

import (
	"slices"
	"time"

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
	var all []*runtimeapi.Metric
	eachInterface(p, func(i *sandbox.Interface, base []string) {
		labels := slices.Concat(base, []string{i.Name})
		for _, m := range networkMetrics {
			all = append(all, &runtimeapi.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels,
				Value: &runtimeapi.UInt64Value{Value: m.byNetwork(i)}})
		}
	})
	return all
}

// eachInterface calls add with every interface whose traffic is reported, and with the values of
// baseLabels for its pod.
func eachInterface(p sandbox.PodMetrics, add func(i *sandbox.Interface, base []string)) {
	d := p.Config.GetMetadata()
	base := []string{p.ID, "", d.GetNamespace(), d.GetName(), ""}
	for i := range p.Interfaces {
		if !p.Interfaces[i].Loopback() { // the kubelet's metrics omit it, and sums over a pod would count it
			add(&p.Interfaces[i], base)
		}
	}
}

func ofContainer(c *sandbox.Metrics, p sandbox.Pod, image string) []*runtimeapi.Metric {
	base := labelsOf(c, p, image)
	all := make([]*runtimeapi.Metric, 0, len(table))
	var free measurements
	each(c, func(m *metric, n uint64, labels []string) {
		one := free.next()
		one.value.Value = n
		if m.nanoseconds {
			one.value.Value = n / uint64(time.Second)
		}
		one.metric.Name, one.metric.MetricType, one.metric.Timestamp = m.name, m.kind, measuredAt(m, c)
		one.metric.LabelValues, one.metric.Value = base, &one.value
		if len(labels) > 0 {
			one.metric.LabelValues = slices.Concat(base, labels)
		}
		all = append(all, &one.metric)
	})
	return all
}

// labelsOf returns the values of baseLabels for a container.
func labelsOf(c *sandbox.Metrics, p sandbox.Pod, image string) []string {
	d := p.Config.GetMetadata()
	return []string{c.ID, image, d.GetNamespace(), d.GetName(), c.Config.GetMetadata().GetName()}
}

// each calls add with every value of a container, and with the values of its metric's own labels.
func each(c *sandbox.Metrics, add func(m *metric, n uint64, labels []string)) {
	from := &containerMetrics{c, c.Container.Resources()}
	for i := range table {
		m := &table[i]
		switch {
		case m.one != nil:
			if n := m.one(from); n != nil {
				add(m, *n, nil)
			}
		case m.many != nil:
			m.many(from, func(n *uint64, labels ...string) {
				if n != nil {
					add(m, *n, labels)
				}
			})
		}
	}
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
