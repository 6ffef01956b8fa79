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

// Server streams exec, attach and port-forward: an HTTP server on the loopback that answers only
// those who have a ticket. The kubelet and crictl come there by the URL that the CRI call gave
// them, and speak SPDY or WebSocket.
type Server struct {
	tickets *tickets
	http    http.Server
	base    string // of every URL
	shut    context.CancelFunc
}

const (
	streamIdle  = 4 * time.Hour    // a stream on which nothing comes for so long ends, as in the kubelet
	streamBegin = 30 * time.Second // for the client to open its streams
	headerLimit = 5 * time.Second  // for a client to show its ticket
	leavePace   = time.Second      // how often a client is looked after
	maxWaiting  = 256              // clients that have not shown a ticket
)

// Listen returns the listener that New wants: a free port of the loopback, which only programs of
// this node can reach.
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
		ReadTimeout:       headerLimit, // of a request; a stream has taken the connection over by then
		MaxHeaderBytes:    16 << 10,
		Handler:           s.routes(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, lineKey{}, c) },
		ConnState: func(c net.Conn, now http.ConnState) {
			if l, ok := c.(*line); ok && now == http.StateHijacked {
				l.taken.Store(true)
			}
		},
	}
	s.http.SetKeepAlivesEnabled(false)
	return s
}

// Serve answers until Close.
func (s *Server) Serve(l net.Listener) { _ = s.http.Serve(&lineListener{Listener: l}) }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, method := range []string{http.MethodGet, http.MethodPost} { // WebSocket begins with GET, SPDY with either
		mux.HandleFunc(method+" /{kind}/{token}", s.serve)
	}
	return mux
}

// Close ends all streams.
func (s *Server) Close() {
	s.shut()
	_ = s.http.Close()
}

// serve runs what the ticket stands for. Its context ends with the connection, whether or not
// anybody reads from that; and the connection ends with it: the libraries leave it open when a
// client does not begin as it should, and panic when it is worse than that.
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
		context.AfterFunc(ctx, func() { // who waits for the client to read waits for the connection
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
			log.G(ctx).Debugf("streaming: a client has broken the protocol: %v", p)
		}
	}()
	serve(w, r.WithContext(ctx))
}

// cancelWhenGone looks at a connection until it is closed from either side. Reading from it tells
// too, but a stream whose process does not take its input is not read. (A client that left more
// than the kernel keeps for us is noticed when the kernel gives it up, in minutes.)
func cancelWhenGone(ctx context.Context, conn syscall.Conn, cancel func()) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(leavePace)
	defer tick.Stop()
	for {
		gone := true // closed by us
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

// url gives out a ticket.
func (s *Server) url(kind string, serve http.HandlerFunc) (string, error) {
	token, err := s.tickets.issue(serve)
	if err != nil {
		return "", err
	}
	return s.base + "/" + kind + "/" + token, nil
}

// What the streaming libraries say about their clients is for whoever debugs them; the client has
// been told.
func init() {
	klog.SetLogger(funcr.New(func(prefix, args string) { log.L.Debugf("streaming: %s %s", prefix, args) }, funcr.Options{}))
}
