package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/log"
	"github.com/go-logr/logr/funcr"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cribox/cribox/internal/guard"
)

// door is where exec, attach and port-forward are streamed: an HTTP server on the loopback that answers to tickets only. The kubelet and
// crictl come there by the URL that the CRI call gave them, and speak SPDY or WebSocket.
type door struct {
	*tickets
	http http.Server
	base string // of every URL
	shut context.CancelFunc
}

const (
	streamIdle  = 4 * time.Hour    // a stream on which nothing comes for so long ends, as in the kubelet
	streamBegin = 30 * time.Second // for the client to open its streams
	headerLimit = 5 * time.Second  // for a client to show its ticket
	leavePace   = time.Second      // how often a client is looked after
	maxWaiting  = 256              // clients that have not shown a ticket
)

// ListenStreams returns the listener that New wants: a free port of the loopback, which the kubelet of this node reaches and nobody else.
func ListenStreams() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l, err = net.Listen("tcp", "[::1]:0") // a node without IPv4
	}
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	return l, nil
}

func newDoor(l net.Listener) *door {
	ctx, shut := context.WithCancel(context.Background())
	d := &door{tickets: newTickets(), base: "http://" + l.Addr().String(), shut: shut}
	d.http = http.Server{
		ReadHeaderTimeout: headerLimit,
		ReadTimeout:       headerLimit, // of a request; a stream has taken the connection over by then
		MaxHeaderBytes:    16 << 10,
		Handler:           d.routes(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, lineKey{}, c) },
		ConnState: func(c net.Conn, now http.ConnState) {
			if l, ok := c.(*line); ok && now == http.StateHijacked {
				l.taken.Store(true)
			}
		},
	}
	d.http.SetKeepAlivesEnabled(false)
	return d
}

// line is the connection of one client. The HTTP server forgets it once a protocol has taken it over.
type line struct {
	*net.TCPConn
	taken   atomic.Bool
	waiting *waiting
}

// Close is of the connection, which waits no more.
func (l *line) Close() error {
	l.waiting.leave(l)
	return l.TCPConn.Close()
}

type lineKey struct{}

// waiting are the connections that have not shown a ticket, the oldest first. Any user of the node may open as many as he likes: the oldest
// makes room for the newest, so that they keep nobody out. Who has a ticket shows it at once.
type waiting struct {
	mu  sync.Mutex // guards all
	all []*line
}

// enter closes the oldest when there are too many.
func (w *waiting) enter(l *line) {
	w.mu.Lock()
	w.all = append(w.all, l)
	var oldest *line
	if len(w.all) > maxWaiting {
		oldest = w.all[0]
	}
	w.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
}

// leave may be called more than once.
func (w *waiting) leave(l *line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.all, l); i >= 0 {
		w.all = slices.Delete(w.all, i, i+1)
	}
}

// lineListener makes a line of each connection.
type lineListener struct {
	net.Listener
	waiting waiting
}

func (l *lineListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn, err
	}
	one := &line{TCPConn: tcp, waiting: &l.waiting}
	l.waiting.enter(one)
	return one, nil
}

// listen answers until close.
func (d *door) listen(l net.Listener) { _ = d.http.Serve(&lineListener{Listener: l}) }

func (d *door) routes() http.Handler {
	mux := http.NewServeMux()
	for _, method := range []string{http.MethodGet, http.MethodPost} { // WebSocket begins with GET, SPDY with either
		mux.HandleFunc(method+" /{kind}/{token}", d.serve)
	}
	return mux
}

func (d *door) close() {
	d.shut()
	_ = d.http.Close()
}

// serve runs what the ticket stands for. Its context ends with the connection, whether or not anybody reads from that; and the connection
// ends with it: the libraries leave it open when a client does not begin as it should, and panic when it is worse than that.
func (d *door) serve(w http.ResponseWriter, r *http.Request) {
	serve := d.take(r.PathValue("token"))
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

// cancelWhenGone looks at a connection until it is closed from either side. Reading from it tells too, but a stream whose process does not
// take its input is not read. (A client that left more than the kernel keeps for us is noticed when the kernel gives it up, in minutes.)
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
func (d *door) url(kind string, serve http.HandlerFunc) (string, error) {
	token, err := d.issue(serve)
	if err != nil {
		return "", err
	}
	return d.base + "/" + kind + "/" + token, nil
}

// What the streaming libraries say about their clients is for whoever debugs them; the client has been told.
func init() {
	klog.SetLogger(funcr.New(func(prefix, args string) { log.L.Debugf("streaming: %s %s", prefix, args) }, funcr.Options{}))
}
