package streaming

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/containerd/log"
	"github.com/go-logr/logr/funcr"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cribox/cribox/internal/guard"
)

// Server serves exec, attach and port-forward over HTTP on the loopback interface. A request must
// contain a valid ticket. The CRI call returns the URL; the kubelet or crictl connects there with
// SPDY or WebSocket.
type Server struct {
	tickets *tickets
	http    http.Server
	base    string // prefix of every URL
	shut    context.CancelFunc
}

const (
	streamIdle  = 4 * time.Hour    // ends a stream without traffic, as in the kubelet
	streamBegin = 30 * time.Second // for the client to open its streams
	headerLimit = 5 * time.Second  // for the client to send its ticket
	leavePace   = time.Second      // how often to check whether a client has disconnected
	maxWaiting  = 256              // connections that have not sent a ticket yet
)

// Listen returns a listener for New on a free port of the loopback interface, which only programs
// on this node can reach.
func Listen() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l, err = net.Listen("tcp", "[::1]:0") // a node without IPv4
	}
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	return l, nil
}

// New returns a Server whose URLs lead to l.
func New(l net.Listener) *Server {
	ctx, shut := context.WithCancel(context.Background())
	s := &Server{tickets: newTickets(), base: "http://" + l.Addr().String(), shut: shut}
	s.http = http.Server{
		ReadHeaderTimeout: headerLimit,
		ReadTimeout:       headerLimit, // for the request; a stream has taken over the connection by then
		MaxHeaderBytes:    16 << 10,
		Handler:           s.routes(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, lineKey{},
				c)
		},
		ConnState: func(c net.Conn, now http.ConnState) {
			if l, ok := c.(*line); ok && now == http.StateHijacked {
				l.taken.Store(true)
			}
		},
	}
	s.http.SetKeepAlivesEnabled(false)
	return s
}

// Serve handles requests until Close.
func (s *Server) Serve(l net.Listener) { _ = s.http.Serve(&lineListener{Listener: l}) }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, method := range []string{http.MethodGet, http.MethodPost} { // WebSocket uses GET, SPDY either
		mux.HandleFunc(method+" /{kind}/{token}", s.serve)
	}
	return mux
}

// Close ends all streams.
func (s *Server) Close() {
	s.shut()
	_ = s.http.Close()
}

// serve handles a request with the function of its ticket. The request's context ends with the
// connection, even if nothing reads from it. The connection is closed when the function returns:
// the streaming libraries leave it open if a client does not begin correctly, and panic on some
// protocol errors.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	serve := s.tickets.take(r.PathValue("token"))
	if serve == nil {
		http.NotFound(w, r)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if l, ok := ctx.Value(lineKey{}).(*line); ok {
		l.waiting.leave(l)
		go guard.Run(ctx, "the watch of a client", func() { cancelWhenGone(ctx, l, cancel) })
		context.AfterFunc(ctx, func() { // unblocks writes to a client that does not read
			if l.taken.Load() {
				l.Close()
			}
		})
		defer func() {
			if l.taken.Load() {
				l.Close()
			}
		}()
	}
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).Debugf("streaming: a client broke the protocol: %v", p)
		}
	}()
	serve(w, r.WithContext(ctx))
}

// cancelWhenGone polls the connection, and calls cancel when either side has closed it. Reading
// would notice that too, but nothing reads a stream whose process does not read its input. If the
// client disconnects with more unread data than the kernel buffers, this takes minutes, until the
// kernel gives up the connection.
func cancelWhenGone(ctx context.Context, conn syscall.Conn, cancel func()) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(leavePace)
	defer tick.Stop()
	for {
		gone := true // stays true if we have closed it
		_ = raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(p, 0)
			gone = err == nil && n > 0
		})
		if gone {
			cancel()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// url returns a URL with a new ticket for serve.
func (s *Server) url(kind string, serve http.HandlerFunc) (string, error) {
	token, err := s.tickets.issue(serve)
	if err != nil {
		return "", err
	}
	return s.base + "/" + kind + "/" + token, nil
}

// The streaming libraries log what clients do wrong. The clients get these errors, so the daemon
// logs them only at level debug.
func init() {
	klog.SetLogger(funcr.New(func(prefix, args string) { log.L.Debugf("streaming: %s %s", prefix, args) },
		funcr.Options{}))
}
