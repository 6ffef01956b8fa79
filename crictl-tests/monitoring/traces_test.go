package monitoring

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// spans is a collector of traces.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	all []*tracepb.Span
}

// newCollector serves the protocol of a collector, and returns its address.
func newCollector(t testing.TB) (*spans, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, server := &spans{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(server, s)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-ended })
	return s, l.Addr().String()
}

func (s *spans) Export(_ context.Context,
	req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, scope := range r.ScopeSpans {
			s.all = append(s.all, scope.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// of returns the spans of a trace by name.
func (s *spans) of(trace string) map[string]*tracepb.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]*tracepb.Span{}
	for _, span := range s.all {
		if hex.EncodeToString(span.TraceId) == trace {
			found[span.Name] = span
		}
	}
	return found
}

// traced is the context of a request that belongs to a span of its client, as a kubelet sends it.
func traced(trace, span string, sampled bool) context.Context {
	flags := "00"
	if sampled {
		flags = "01"
	}
	return metadata.AppendToOutgoingContext(context.Background(), "traceparent",
		fmt.Sprintf("00-%s-%s-%s", trace, span, flags))
}

// TestTraces: the spans of a request belong to the trace of its client, if that wants it traced.
func TestTraces(t *testing.T) {
	t.Parallel()
	const (
		wanted, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
		unwanted       = "0af7651916cd43dd8448eb211c80319c"
	)
	s, address := newCollector(t)
	d := harness.NewDaemon(t, harness.WithConfig(fmt.Sprintf("\n[tracing]\nendpoint = %q\n", address)))
	run := func(ctx context.Context) {
		_, err := d.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: d.PodConfig()})
		d.Must(err)
	}
	run(traced(unwanted, parent, false))
	run(traced(wanted, parent, true))

	const request = "runtime.v1.RuntimeService/RunPodSandbox"
	names := []string{request, "pod.namespaces", "cni.setup", "shim.start", "runtime.run"}
	harness.Eventually(t, "the spans of a pod", func() error {
		found := s.of(wanted)
		for _, name := range names {
			if found[name] == nil {
				return fmt.Errorf("no span %s among %d", name, len(found))
			}
		}
		return nil
	})
	found := s.of(wanted)
	if got := hex.EncodeToString(found[request].ParentSpanId); got != parent {
		t.Errorf("the request belongs to span %s, want the client's %s", got, parent)
	}
	for _, name := range names[1:] {
		span, of := found[name], found[request]
		if hex.EncodeToString(span.ParentSpanId) != hex.EncodeToString(of.SpanId) {
			t.Errorf("span %s does not belong to the request", name)
		}
		if span.StartTimeUnixNano < of.StartTimeUnixNano || span.EndTimeUnixNano > of.EndTimeUnixNano {
			t.Errorf("span %s is not within the request", name)
		}
	}
	if found := s.of(unwanted); len(found) > 0 {
		t.Errorf("%d spans of a request that was not to be traced", len(found))
	}
}

// TestTracesWithoutCollector: a collector that is away costs spans, and nothing else.
func TestTracesWithoutCollector(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it accepts connections and never answers
	config := fmt.Sprintf("\n[tracing]\nendpoint = %q\nsampling_ratio = 1.0\n", l.Addr())
	d := harness.NewDaemon(t, harness.WithConfig(config))
	p := d.RunPod()
	p.Run(harness.Idle()).Stop(0)
	d.Restart()
	p.Stop()
	d.Stop()
	d.Start()
}
