package streaming

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnelProtocol is the WebSocket protocol of current clients of port-forward: the bytes of its
// binary messages, in order, are an SPDY connection as older clients use it.
const tunnelProtocol = spdy.HeaderSpdy31 + "+" + portforward.ProtocolV1Name

// serveTunnel opens the tunnel and calls serve with a request that looks like an SPDY upgrade.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	ctx, leave := context.WithCancel(r.Context())
	defer leave()
	conn := openWebSocket(ctx, w, r, tunnelProtocol)
	if conn == nil {
		return
	}
	inner := r.Clone(ctx)
	inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	serve(&tunnelled{http.Header{}, &tunnel{Conn: conn}}, inner)
}

// tunnelled is the http.ResponseWriter from which serve takes the connection. It discards the
// response to the upgrade, because the client already has one.
type tunnelled struct {
	header http.Header
	conn   net.Conn
}

func (t *tunnelled) Header() http.Header         { return t.header }
func (t *tunnelled) WriteHeader(int)             {}
func (t *tunnelled) Write(p []byte) (int, error) { return len(p), nil }

func (t *tunnelled) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}

// tunnel is a net.Conn whose bytes are the content of WebSocket messages.
type tunnel struct {
	*websocket.Conn
	message io.Reader // the message being read

	mu sync.Mutex // guards the message being written; closing the connection ends the write
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			if err := t.next(); err != nil {
				return 0, err
			}
		}
		n, err := t.message.Read(p)
		if err == io.EOF {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (t *tunnel) next() error {
	kind, message, err := t.NextReader()
	switch {
	case websocket.IsCloseError(err, websocket.CloseNormalClosure):
		return io.EOF
	case err != nil:
		return err
	case kind != websocket.BinaryMessage:
		return fmt.Errorf("messages of %s are binary", tunnelProtocol)
	}
	t.message = message
	return nil
}

func (t *tunnel) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close waits at most a second for a client that does not read.
func (t *tunnel) Close() error {
	_ = t.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""),
		time.Now().Add(time.Second))
	return t.Conn.Close()
}

func (t *tunnel) SetDeadline(at time.Time) error { return t.NetConn().SetDeadline(at) }
