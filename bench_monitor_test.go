package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/config"
)

// BenchmarkMonitoring measures what metrics and traces cost at 250 pods. Three daemons take
// turns at what a kubelet asks in a minute: one as it is by default, one with metrics that are
// scraped every 15 seconds, and one that also traces every request. Each has a column with its
// processor time for that minute, and the last two the ratio to the first. The collector of the
// traces is in this process, and is counted as theirs.
func BenchmarkMonitoring(b *testing.B) {
	var scrape, scrapeTraced string
	plain := newNode(b)
	metrics := newNode(b, func(c *config.Config) { scrape = withMetrics(c) })
	traces := newNode(b, func(c *config.Config) {
		scrapeTraced = withMetrics(c)
		c.Tracing = config.Tracing{Endpoint: sinkOfTraces(b), SamplingRatio: 1}
	})
	turns := []struct {
		name   string
		node   *node
		socket string
		pods   []string
		each   []string
		spent  time.Duration
	}{{name: "plain", node: plain}, {name: "metrics", node: metrics, socket: scrape},
		{name: "traces", node: traces, socket: scrapeTraced}}
	for i := range turns {
		turns[i].pods, turns[i].each = turns[i].node.fill(benchPods)
	}
	const rounds = 4 // the first is not counted
	minutes := 0
	for b.Loop() {
		for round := range rounds {
			for i := range turns {
				t := &turns[(i+round)%len(turns)]
				runtime.GC() // so that no turn pays for the garbage of another
				before := ownCPU()
				t.node.minute(b, t.pods, t.each, t.socket)
				if round > 0 {
					t.spent += ownCPU() - before
				}
			}
		}
		minutes += rounds - 1
	}
	b.ReportMetric(0, "ns/op") // of the three together: says nothing
	for _, t := range turns {
		b.ReportMetric(t.spent.Seconds()*1000/float64(minutes), t.name+"-cpu-ms/min")
		if t.node != plain {
			b.ReportMetric(t.spent.Seconds()/turns[0].spent.Seconds(), t.name+"-ratio")
		}
	}
}

// minute asks what a kubelet asks in a minute: lists each second, stats every ten, and once the
// status of everything. Every 15 seconds somebody reads the metrics, if they are to be had.
func (n *node) minute(b *testing.B, pods, containers []string, metrics string) {
	for second := range 60 {
		n.ask(b, "ListPodSandbox", &runtimeapi.ListPodSandboxRequest{})
		n.ask(b, "ListContainers", &runtimeapi.ListContainersRequest{})
		if second%10 == 0 {
			n.ask(b, "ListContainerStats", &runtimeapi.ListContainerStatsRequest{})
			n.ask(b, "ListPodSandboxStats", &runtimeapi.ListPodSandboxStatsRequest{})
		}
		if second%15 == 0 && metrics != "" {
			readMetrics(b, metrics)
		}
	}
	for i := range pods {
		n.ask(b, "PodSandboxStatus", &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pods[i]})
		n.ask(b, "ContainerStatus", &runtimeapi.ContainerStatusRequest{ContainerId: containers[i]})
	}
}

// withMetrics turns metrics on, and returns their socket.
func withMetrics(c *config.Config) string {
	socket := filepath.Join(c.State, "metrics.sock")
	c.Metrics.Listen = "unix://" + socket
	return socket
}

func readMetrics(b *testing.B, socket string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
	answer, err := client.Get("http://cribox/metrics")
	must(b, err)
	defer answer.Body.Close()
	size, err := io.Copy(io.Discard, answer.Body)
	must(b, err)
	if answer.StatusCode != http.StatusOK || size < 10_000 {
		b.Fatalf("the metrics are %s, %d bytes", answer.Status, size)
	}
}

// sinkOfTraces is a collector that reads traces and keeps none. It returns its address.
func sinkOfTraces(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	server := grpc.NewServer(grpc.ForceServerCodec(undecoded{}),
		grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			var size int
			if err := s.RecvMsg(&size); err != nil {
				return err
			}
			return s.SendMsg(proto.Message(&emptypb.Empty{}))
		}))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	b.Cleanup(func() {
		server.Stop()
		<-ended
	})
	return l.Addr().String()
}
