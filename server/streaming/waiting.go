package streaming

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
)

// line is the connection of one client. The HTTP server forgets it once a protocol has taken it
// over.
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

// waiting are the connections that have not shown a ticket, the oldest first. Any user of the node
// may open as many as he likes: the oldest makes room for the newest, so that they keep nobody out.
// Who has a ticket shows it at once.
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
