package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/log"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/monitor"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox"
	"github.com/cribox/cribox/server"
)

// observation is what the daemon counts, and who is told. The zero value counts nothing.
type observation struct {
	monitor  *monitor.Monitor
	listener net.Listener
	server   *monitor.Server
}

// observe listens at metrics.listen and connects to tracing.endpoint, if they are set. The returned
// context reports to the monitor.
func observe(ctx context.Context, c config.Config) (context.Context, *observation, error) {
	network, address, err := c.MetricsAddress()
	if err != nil {
		return ctx, nil, err
	}
	collector, err := c.TraceURL()
	if err != nil {
		return ctx, nil, err
	}
	if network == "" && collector == "" {
		return ctx, &observation{}, nil
	}
	o := &observation{monitor: monitor.New(versionString())}
	if collector != "" {
		if err := o.monitor.Trace(ctx, collector, c.Tracing.SamplingRatio, versionString()); err != nil {
			return ctx, nil, err
		}
	}
	switch network {
	case "":
	case "unix":
		o.listener, err = listen(address)
	default:
		o.listener, err = net.Listen(network, address)
	}
	if err != nil {
		return ctx, nil, errors.Join(err, o.monitor.Close(ctx))
	}
	return telemetry.With(ctx, o.monitor), o, nil
}

// options let the gRPC server take the trace of a request from its headers.
func (o *observation) options() []grpc.ServerOption {
	if o.monitor == nil || o.monitor.Tracing() == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(o.monitor.Tracing()), otelgrpc.WithMeterProvider(noop.NewMeterProvider()),
		otelgrpc.WithPropagators(propagation.TraceContext{})))}
}

// requests returns who is told of requests, nil for nobody.
func (o *observation) requests() server.Monitor {
	if o.monitor == nil {
		return nil
	}
	return o.monitor
}

// open begins to answer scrapes.
func (o *observation) open(ctx context.Context, s *server.Server, pods *sandbox.Manager) {
	if o.listener == nil {
		return
	}
	type numbers = map[string]float64
	gauge := o.monitor.Gauge
	gauge("network_debts", "Ended pods whose network is not released yet.", "", func(context.Context) numbers {
		return numbers{"": float64(len(pods.Owed()))}
	})
	gauge("pods", "Pods, by state.", "state", func(context.Context) numbers { return podStates(pods.Pods()) })
	gauge("containers", "Containers, by state.", "state", func(context.Context) numbers {
		return containerStates(pods.Containers())
	})
	gauge("process_goroutines", "Goroutines of the daemon, the shim and the logger.", "process",
		func(ctx context.Context) numbers { return goroutines(processes(ctx, pods)) })
	gauge("process_resident_memory_bytes", "Resident memory of the daemon, the shim and the logger.", "process",
		func(ctx context.Context) numbers { return residentMemory(processes(ctx, pods)) })
	o.server = o.monitor.NewServer(ctx, s.ContainerMetrics)
	go func() {
		if err := o.server.Serve(o.listener); err != nil {
			log.G(ctx).WithError(err).Error("metrics are not served any more")
		}
	}()
}

// lastSpans is how long the collector has to take the last spans.
const lastSpans = 2 * time.Second

// close ends what observe has begun.
func (o *observation) close(ctx context.Context) {
	if o.server != nil {
		o.server.Stop()
	}
	if o.listener != nil {
		_ = o.listener.Close() // closed already by a server
	}
	if o.monitor == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSpans)
	defer cancel()
	if err := o.monitor.Close(ctx); err != nil {
		log.G(ctx).WithError(err).Debug("the last traces are lost")
	}
}

// podStates counts pods by state.
func podStates(pods []sandbox.Pod) map[string]float64 {
	n := map[string]float64{"ready": 0, "notready": 0}
	for _, p := range pods {
		if p.Ready() {
			n["ready"]++
		} else {
			n["notready"]++
		}
	}
	return n
}

// containerStates counts containers by state.
func containerStates(containers []sandbox.Container) map[string]float64 {
	n := map[string]float64{"created": 0, "running": 0, "exited": 0, "unknown": 0}
	for _, c := range containers {
		state := strings.TrimPrefix(c.CRIState().String(), "CONTAINER_")
		n[strings.ToLower(state)]++
	}
	return n
}

// processes are the daemon, the shim and the logger, those that answer.
func processes(ctx context.Context, pods *sandbox.Manager) []runtimeshim.Helper {
	daemon := runtimeshim.Helper{Name: "daemon", Pid: os.Getpid(), Goroutines: runtime.NumGoroutine()}
	return append(pods.Helpers(ctx), daemon)
}

// goroutines returns how many each process has.
func goroutines(all []runtimeshim.Helper) map[string]float64 {
	n := map[string]float64{}
	for _, p := range all {
		if p.Goroutines > 0 {
			n[p.Name] = float64(p.Goroutines)
		}
	}
	return n
}

// residentMemory returns the bytes of each process that are in memory, without one that has ended.
func residentMemory(all []runtimeshim.Helper) map[string]float64 {
	n := map[string]float64{}
	for _, p := range all {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Pid))
		var size, resident int64
		if _, scanErr := fmt.Sscan(string(b), &size, &resident); err == nil && scanErr == nil {
			n[p.Name] = float64(resident * int64(os.Getpagesize()))
		}
	}
	return n
}
