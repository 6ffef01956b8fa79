package server

import (
	"context"
	"fmt"
	"net"
	"path"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/sandbox"
	"github.com/cribox/cribox/server/streaming"
)

// maxMessage is the largest message in bytes that the kubelet sends or accepts.
const maxMessage = 16 << 20

// Limits of one connection before a request on it has been read.
const (
	maxStreams = 2000             // concurrent calls; the client delays further ones
	maxHeaders = 64 << 10         // bytes of headers per call
	greeting   = 10 * time.Second // for the client to complete the HTTP/2 handshake
)

// Server implements the RuntimeService and the ImageService of CRI v1.
type Server struct {
	version string
	grpc    *grpc.Server
	streams *streaming.Server
	parts   atomic.Pointer[parts] // nil until Open
	unknown unknownFields
	monitor Monitor
	calls   atomic.Int64  // number of calls in progress
	ending  chan struct{} // closed by Stop
	stop    sync.Once
}

// parts are the packages that handle requests.
type parts struct {
	pods   *sandbox.Manager
	images *imageservice.Images
	config func() any
}

type runtimeService struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	*Server
}

type imageService struct {
	runtimeapi.UnimplementedImageServiceServer
	*Server
}

// Monitor learns of requests.
type Monitor interface {
	telemetry.Sink
	// Request is called after a request was answered. took of a stream is as long as its client
	// wanted.
	Request(method, code string, took time.Duration, stream bool)
}

// New returns a Server that answers every request with Unavailable until Open is called. It serves
// exec, attach and port-forward on the listener streams (see streaming.Listen); Stop closes it.
// monitor may be nil. options are added to those of the gRPC server.
func New(version string, streams net.Listener, monitor Monitor, options ...grpc.ServerOption) *Server {
	s := &Server{version: version, streams: streaming.New(streams), monitor: monitor, ending: make(chan struct{})}
	go s.streams.Serve(streams) // returns after Stop
	s.grpc = grpc.NewServer(append(options, grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(greeting),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream))...)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, &runtimeService{Server: s})
	runtimeapi.RegisterImageServiceServer(s.grpc, &imageService{Server: s})
	return s
}

// Open lets the Server handle requests. config returns the configuration in effect, for the verbose
// Status.
func (s *Server) Open(pods *sandbox.Manager, images *imageservice.Images, config func() any) {
	s.parts.Store(&parts{pods: pods, images: images, config: config})
}

// Serve handles requests on l until Stop.
func (s *Server) Serve(l net.Listener) error { return s.grpc.Serve(l) }

// unreadLimit is how long a client has to read its last response when the daemon ends.
const unreadLimit = time.Second

// Stop refuses new requests and waits for those in progress until ctx ends; then it cuts them off.
// Streams of events and lists end at once with Unavailable; exec, attach and port-forward end when
// Stop returns. A client that does not read its responses delays Stop by at most unreadLimit.
func (s *Server) Stop(ctx context.Context) {
	defer s.streams.Close()
	s.stop.Do(func() { close(s.ending) })
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for busy := time.Now(); ; {
		select {
		case <-done:
			return
		case <-again.C:
			if s.calls.Load() > 0 {
				busy = time.Now()
			}
			if time.Since(busy) < unreadLimit {
				continue
			}
		case <-ctx.Done():
		}
		s.grpc.Stop()
		return
	}
}

func (s *Server) pods() *sandbox.Manager       { return s.parts.Load().pods }
func (s *Server) images() *imageservice.Images { return s.parts.Load().images }

var (
	errStarting = status.Error(codes.Unavailable, "cribox is starting")
	errEnding   = status.Error(codes.Unavailable, "cribox is shutting down; retry after its restart")
)

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo,
	next grpc.UnaryHandler) (reply any, err error) {
	err = s.pass(ctx, info.FullMethod, false, func(ctx context.Context) error {
		var err error
		s.unknown.see(ctx, req)
		if reply, err = next(ctx, req); err != nil {
			return err
		}
		return fits(info.FullMethod, reply)
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return s.pass(ss.Context(), info.FullMethod, true, func(context.Context) error {
		return next(srv, seeing{ss, &s.unknown})
	})
}

// pass handles what all requests need: it returns Unavailable until Open was called, turns a panic
// into an error of this request, gives an error its gRPC code, writes one line to the log, and tells
// the monitor.
func (s *Server) pass(ctx context.Context, method string, stream bool, next func(context.Context) error) (err error) {
	if s.parts.Load() == nil {
		return errStarting
	}
	s.calls.Add(1)
	defer s.calls.Add(-1)
	start := time.Now()
	call := path.Base(method)
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("call", call))
	if s.monitor != nil {
		ctx = telemetry.With(ctx, s.monitor)
	}
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).Errorf("panic: %v\n%s", p, debug.Stack())
			err = fmt.Errorf("%s: %w: %v", call, errdefs.ErrInternal, p)
		}
		err = withCode(call, err)
		took := time.Since(start)
		logCall(ctx, call, took, err)
		if s.monitor != nil {
			s.monitor.Request(call, status.Code(err).String(), took, stream)
		}
	}()
	return next(ctx)
}

// quiet are the calls that the kubelet makes all the time. They are logged at level debug unless
// they fail.
var quiet = map[string]bool{
	"Version": true, "Status": true, "ListPodSandbox": true, "ListContainers": true, "PodSandboxStatus": true,
	"ContainerStatus": true, "ListImages": true, "ImageStatus": true, "ImageFsInfo": true,
	"ListContainerStats": true, "ContainerStats": true, "RuntimeConfig": true, "ExecSync": true,
	"StreamPodSandboxes": true, "StreamContainers": true, "StreamImages": true, "PodSandboxStats": true,
	"ListPodSandboxStats": true, "ListPodSandboxMetrics": true, "ListMetricDescriptors": true,
	"StreamContainerStats": true, "StreamPodSandboxStats": true, "StreamPodSandboxMetrics": true,
}

// logCall writes the log line of a finished call. NotFound from a quiet call other than ExecSync is
// normal, because the kubelet asks for objects that it has just removed.
func logCall(ctx context.Context, call string, took time.Duration, err error) {
	l := log.G(ctx).WithField("took", took.Round(time.Millisecond).String())
	code := status.Code(err)
	switch asks := quiet[call] && call != "ExecSync"; {
	case code == codes.Unimplemented, code == codes.NotFound && asks:
		l.Debug(status.Convert(err).Message())
	case err != nil:
		l.WithField("code", code.String()).Warn(status.Convert(err).Message())
	case quiet[call]:
		l.Debug("done")
	default:
		l.Info("done")
	}
}
