package metrics

import (
	"cmp"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/cribox/cribox/sandbox"
)

// Families returns the metrics of pods and their containers for Prometheus, sorted by name. The
// function image returns the name of a container's image.
func Families(pods []sandbox.PodMetrics, image func(sandbox.Container) string) []*dto.MetricFamily {
	f := families{}
	for _, p := range pods {
		eachInterface(p, func(i *sandbox.Interface, base []string) {
			labels := pairs(baseLabels, base)
			for j := range networkMetrics {
				m := &networkMetrics[j]
				f.add(m, m.byNetwork(i), labels, []string{i.Name})
			}
		})
		for i := range p.Containers {
			c := &p.Containers[i]
			labels := pairs(baseLabels, labelsOf(c, p.Pod, image(c.Container)))
			each(c, func(m *metric, n uint64, own []string) { f.add(m, n, labels, own) })
		}
	}
	all := make([]*dto.MetricFamily, 0, len(f))
	for _, one := range f {
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return all
}

type families map[string]*dto.MetricFamily

// add adds a value. labels may be shared by many metrics: they are never written to.
func (f families) add(m *metric, n uint64, labels []*dto.LabelPair, own []string) {
	family := f[m.name]
	if family == nil {
		family = &dto.MetricFamily{Name: &m.name, Help: &m.help, Type: dto.MetricType_COUNTER.Enum()}
		if m.kind == gauge {
			family.Type = dto.MetricType_GAUGE.Enum()
		}
		f[m.name] = family
	}
	if len(own) > 0 {
		labels = slices.Concat(labels, pairs(m.labels, own))
	}
	value := float64(n)
	if m.nanoseconds {
		value /= float64(time.Second)
	}
	one := &dto.Metric{Label: labels}
	if m.kind == gauge {
		one.Gauge = &dto.Gauge{Value: &value}
	} else {
		one.Counter = &dto.Counter{Value: &value}
	}
	family.Metric = append(family.Metric, one)
}

func pairs(names, values []string) []*dto.LabelPair {
	all := make([]*dto.LabelPair, len(names))
	for i := range names {
		all[i] = &dto.LabelPair{Name: &names[i], Value: &values[i]}
	}
	return all
}
