package streaming

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/websocket"
)

// maxFrame is the largest message in bytes that a client may send, as with the older protocols. A
// message is passed on as it arrives and never buffered whole.
const maxFrame = 32 << 20

// offers reports whether the client offers the protocol over WebSocket.
func offers(r *http.Request, protocol string) bool {
	return websocket.IsWebSocketUpgrade(r) && slices.Contains(websocket.Subprotocols(r), protocol)
}

// openWebSocket upgrades the request to a WebSocket. If that fails, it answers the client and
// returns nil. The connection is closed when ctx ends, so that no read or write blocks after that.
func openWebSocket(ctx context.Context, w http.ResponseWriter, r *http.Request, protocol string) *websocket.Conn {
	up := websocket.Upgrader{
		Subprotocols: []string{protocol},
		// the ticket authorises the client, and a proxy may pass on the browser's Origin
		CheckOrigin: func(*http.Request) bool { return true },
	}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	conn.SetReadLimit(maxFrame)
	answerPings(ctx, conn)
	return conn
}

// answerPings answers the newest ping as soon as the client reads. The library's own handler gives
// up after a second and breaks the connection, which would end the session of a client that has
// only paused its terminal.
func answerPings(ctx context.Context, conn *websocket.Conn) {
	newest := make(chan string, 1)
	conn.SetPingHandler(func(text string) error {
		replace(newest, text)
		return nil
	})
	go func() {
		for {
			select {
			case text := <-newest:
				// an error means that the client has disconnected
				_ = conn.WriteControl(websocket.PongMessage, []byte(text), time.Time{})
			case <-ctx.Done():
				return
			}
		}
	}()
}

// replace puts v into a channel of capacity one, and drops an older value that nobody has received.
// Only one goroutine may send on the channel.
func replace[T any](one chan T, v T) {
	select {
	case <-one:
	default:
	}
	one <- v
}
