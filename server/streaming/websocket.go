package streaming

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/websocket"
)

// maxFrame is what one message of a client may hold, as with the older protocols. It is passed on
// as it comes, never kept.
const maxFrame = 32 << 20

// offers says whether the client can speak the protocol over WebSocket.
func offers(r *http.Request, protocol string) bool {
	return websocket.IsWebSocketUpgrade(r) && slices.Contains(websocket.Subprotocols(r), protocol)
}

// openWebSocket makes a WebSocket of the request, nil when that was not possible and the client
// knows. It is closed when ctx ends, so that nobody waits in it for a client that is gone.
func openWebSocket(ctx context.Context, w http.ResponseWriter, r *http.Request, protocol string) *websocket.Conn {
	up := websocket.Upgrader{
		Subprotocols: []string{protocol},
		CheckOrigin:  func(*http.Request) bool { return true }, // the ticket is the permission; a proxy hands on the browser's Origin
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

// answerPings answers the newest ping when the client takes it. The library's own answer is given
// up after a second, and the connection with it, which would end the session of a client that has
// merely paused its terminal.
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
				_ = conn.WriteControl(websocket.PongMessage, []byte(text), time.Time{}) // who left needs none
			case <-ctx.Done():
				return
			}
		}
	}()
}

// replace puts v into a channel with room for one, in place of what nobody took. Only one goroutine
// may put things there.
func replace[T any](one chan T, v T) {
	select {
	case <-one:
	default:
	}
	one <- v
}
