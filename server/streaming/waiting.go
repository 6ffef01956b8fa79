package streaming

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
)

// line is the connection of one client. It still works after a protocol has taken over the
// connection and the HTTP server no longer tracks it.
type line struct {
	*net.TCPConn
	taken   atomic.Bool
	waiting *waiting
}

// Close closes the connection and removes it from the waiting ones.
func (l *line) Close() error {
	l.waiting.leave(l)
	return l.TCPConn.Close()
}

type lineKey struct{}

// waiting are the connections that have not sent a ticket, oldest first. Any user of the node may
// open connections. When there are too many, the oldest is closed for the newest, so that a flood
// does not lock out a client with a ticket, which sends it at once.
type waiting struct {
	mu  sync.Mutex // guards all
	all []*line
}

// enter adds a connection, and closes the oldest if there are too many.
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

// leave removes a connection. It may be called more than once.
func (w *waiting) leave(l *line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.all, l); i >= 0 {
		w.all = slices.Delete(w.all, i, i+1)
	}
}

// lineListener is a listener whose connections are lines.
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
