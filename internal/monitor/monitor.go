// Package monitor counts what the other packages report, serves the numbers to Prometheus, and sends
// traces to a collector. It knows none of these packages.
package monitor

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/cribox/cribox/internal/telemetry"
)

// Monitor counts. It is a telemetry.Sink.
type Monitor struct {
	registry *prometheus.Registry
	counters [telemetry.Counters]*prometheus.CounterVec
	requests *prometheus.CounterVec
	times    *prometheus.HistogramVec // of requests
	parts    *prometheus.HistogramVec

	provider *sdktrace.TracerProvider // nil without Trace
	tracer   trace.Tracer             // nil without Trace
}

// counters are name, label and help text of each telemetry.Counter. The counters of its values
// begin at 0; without that, increase() in Prometheus does not see the first event.
var counters = [telemetry.Counters]struct {
	name, label, help string
	values            []string
}{
	telemetry.Exits: {"container_exits_total", "reason", "Containers that ended, by the reason that the kubelet is told.",
		[]string{"Completed", "Error", "OOMKilled", "Unknown"}},
	telemetry.Signals: {"container_signals_total", "signal", "Signals sent to containers to stop them.",
		[]string{"SIGTERM", "SIGKILL"}},
	telemetry.Pulls: {"pulls_total", "result", "Pulls of images that ended: ok, or why they failed.",
		[]string{"ok", "registry_unavailable", "no_space", "wrong_content", "not_found", "unauthenticated", "denied",
			"other"}},
	telemetry.PulledBytes: {"pull_bytes_total", "source", "Bytes of images received, by where from.",
		[]string{"registry", "mirror", "archive"}},
	telemetry.Starts: {"helper_starts_total", "process", "Starts of the shim and the logger by this daemon.",
		[]string{"shim", "logger"}},
	telemetry.SetAside: {"records_set_aside_total", "kind", "Damaged records that were renamed to *.torn.",
		[]string{"pod", "image"}},
}

// buckets are in seconds. One set for all keeps the number of series small.
var buckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

const namespace = "cribox"

// New returns a Monitor. version is the version of the daemon.
func New(version string) *Monitor {
	m := &Monitor{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "requests_total", Help: "CRI requests answered, by method and gRPC code.",
		}, []string{"method", "code"}),
		times: histogram("request_duration_seconds", "method", "Time from a CRI request to its answer; streams excluded."),
		parts: histogram("step_duration_seconds", "step", "Time of the steps of requests, such as the network of a pod."),
	}
	m.registry.MustRegister(m.requests, m.times, m.parts)
	for i, c := range counters {
		opts := prometheus.CounterOpts{Namespace: namespace, Name: c.name, Help: c.help}
		m.counters[i] = prometheus.NewCounterVec(opts, []string{c.label})
		for _, value := range c.values {
			m.counters[i].WithLabelValues(value)
		}
		m.registry.MustRegister(m.counters[i])
	}
	m.Gauge("build_info", "Version of the daemon; always 1.", "version", func(context.Context) map[string]float64 {
		return map[string]float64{version: 1}
	})
	return m
}

func histogram(name, label, help string) *prometheus.HistogramVec {
	opts := prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}
	return prometheus.NewHistogramVec(opts, []string{label})
}

// Add implements telemetry.Sink.
func (m *Monitor) Add(c telemetry.Counter, label string, n float64) {
	m.counters[c].WithLabelValues(label).Add(n)
}

// Begin implements telemetry.Sink.
func (m *Monitor) Begin(ctx context.Context, part string) (context.Context, func(error)) {
	start := time.Now()
	ctx, span := m.span(ctx, part, start)
	return ctx, func(err error) {
		now := time.Now()
		m.parts.WithLabelValues(part).Observe(now.Sub(start).Seconds())
		endSpan(span, now, err)
	}
}

// Took implements telemetry.Sink.
func (m *Monitor) Took(ctx context.Context, part string, began time.Time, took time.Duration) {
	m.parts.WithLabelValues(part).Observe(took.Seconds())
	_, span := m.span(ctx, part, began)
	endSpan(span, began.Add(took), nil)
}

// Request counts a request that was answered. Streams have no duration: they last as long as their
// client wants.
func (m *Monitor) Request(method, code string, took time.Duration, stream bool) {
	m.requests.WithLabelValues(method, code).Inc()
	if !stream {
		m.times.WithLabelValues(method).Observe(took.Seconds())
	}
}

// scrapeLimit is how long the gauges of one scrape may take together with what they ask.
const scrapeLimit = 2 * time.Second

// Gauge adds a number that is read at each scrape, by the values of its label. With label "" there
// is one number, whose key is not used.
func (m *Monitor) Gauge(name, help, label string, read func(context.Context) map[string]float64) {
	var labels []string
	if label != "" {
		labels = []string{label}
	}
	desc := prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	m.registry.MustRegister(&gauge{desc, len(labels), read})
}

type gauge struct {
	desc   *prometheus.Desc
	labels int
	read   func(context.Context) map[string]float64
}

func (g *gauge) Describe(to chan<- *prometheus.Desc) { to <- g.desc }

func (g *gauge) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	for value, n := range g.read(ctx) {
		to <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, n, []string{value}[:g.labels]...)
	}
}
