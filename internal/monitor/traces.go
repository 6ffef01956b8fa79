package monitor

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/log"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Trace makes the Monitor send spans to a collector (OTLP over gRPC). url is http or https. A
// request is traced if its client says so, and else with the probability ratio. Spans are dropped
// while the collector does not take them; no request waits for it.
func (m *Monitor) Trace(ctx context.Context, url string, ratio float64, version string) error {
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(url))
	if err != nil {
		return fmt.Errorf("traces to %s: %w", url, err)
	}
	otel.SetErrorHandler(&complaints{ctx: ctx})
	host, _ := os.Hostname() // "" if the kernel does not know it
	m.provider = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", namespace),
			attribute.String("service.version", version), attribute.String("host.name", host))))
	m.tracer = m.provider.Tracer("github.com/cribox/cribox")
	return nil
}

// Tracing returns the provider of spans, nil without Trace.
func (m *Monitor) Tracing() trace.TracerProvider {
	if m.provider == nil {
		return nil
	}
	return m.provider
}

// Close sends the spans that are left, until ctx ends.
func (m *Monitor) Close(ctx context.Context) error {
	if m.provider == nil {
		return nil
	}
	return m.provider.Shutdown(ctx)
}

// span begins a span below that of ctx. It returns nil if the request is not traced.
func (m *Monitor) span(ctx context.Context, name string, began time.Time) (context.Context, trace.Span) {
	if m.tracer == nil || !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, nil
	}
	return m.tracer.Start(ctx, name, trace.WithTimestamp(began))
}

// endSpan ends a span, which may be nil. The text of an error is not sent: it may name what a
// collector should not know.
func endSpan(s trace.Span, at time.Time, err error) {
	if s == nil {
		return
	}
	if err != nil {
		s.SetStatus(codes.Error, "")
	}
	s.End(trace.WithTimestamp(at))
}

// complaints logs the errors of the library, each text once in a row: a collector that is away is
// tried every few seconds.
type complaints struct {
	ctx  context.Context
	mu   sync.Mutex
	last string
}

// Handle implements otel.ErrorHandler.
func (c *complaints) Handle(err error) {
	c.mu.Lock()
	again := err.Error() == c.last
	c.last = err.Error()
	c.mu.Unlock()
	if !again {
		log.G(c.ctx).WithError(err).Warn("traces are lost")
	}
}
