package streaming

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// typist is a test client that speaks protocolV5.
type typist struct {
	testing.TB
	*websocket.Conn
}

// typing connects a typist to run. Both have ended when the test ends.
func typing(t *testing.T, run func(context.Context, *channels) error) typist {
	t.Helper()
	over := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(over)
		serveV5(w, r, run)
	}))
	dialer := websocket.Dialer{Subprotocols: []string{protocolV5}}
	conn, r, err := dialer.Dial(strings.Replace(s.URL, "http", "ws", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		<-over
		s.Close()
	})
	return typist{t, conn}
}

func (c typist) say(kind int, channel byte, text string) {
	c.Helper()
	if err := c.WriteMessage(kind, append([]byte{channel}, text...)); err != nil {
		c.Fatal(err)
	}
}

// hear returns the next message of the channel.
func (c typist) hear(channel byte) string {
	c.Helper()
	for {
		_, b, err := c.ReadMessage()
		if err != nil {
			c.Fatalf("on channel %d: %v", channel, err)
		}
		if len(b) > 0 && b[0] == channel {
			return string(b[1:])
		}
	}
}

// wantClosed reads until the connection is closed, and checks the close code.
func (c typist) wantClosed(code int) {
	c.Helper()
	for {
		_, _, err := c.ReadMessage()
		if err == nil {
			continue
		}
		if !websocket.IsCloseError(err, code) {
			c.Errorf("the connection ended with %v, want close code %d", err, code)
		}
		return
	}
}

// swallow reads the input to its end and sends the error on how.
func swallow(how chan<- error) func(context.Context, *channels) error {
	return func(_ context.Context, c *channels) error {
		_, err := io.Copy(io.Discard, c.stdin)
		how <- err
		return err
	}
}

// TestTextIsRefused checks that a text message closes the connection with the right code, and that
// the process's input ends with an error instead of EOF.
func TestTextIsRefused(t *testing.T) {
	how := make(chan error, 1)
	c := typing(t, swallow(how))
	c.say(websocket.TextMessage, stdinChannel, "text")
	if err := <-how; err == nil {
		t.Error("input that broke off looks like one that ended")
	}
	c.wantClosed(websocket.CloseUnsupportedData)
}

// TestLongMessageIsRefused checks that a message is refused by the length in its header.
func TestLongMessageIsRefused(t *testing.T) {
	how := make(chan error, 1)
	c := typing(t, swallow(how))
	head := binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, maxFrame+1) // binary, final, masked, 64-bit length
	if _, err := c.NetConn().Write(append(head, 0, 0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := <-how; !errors.Is(err, websocket.ErrReadLimit) {
		t.Errorf("input ended with %v", err)
	}
	c.wantClosed(websocket.CloseMessageTooBig)
}

// TestPings checks that a ping is answered with its own text, whatever the process does.
func TestPings(t *testing.T) {
	c := typing(t, func(ctx context.Context, _ *channels) error { <-ctx.Done(); return nil })
	pong := make(chan string, 1)
	c.SetPongHandler(func(text string) error { pong <- text; return nil })
	if err := c.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _, _ = c.ReadMessage() }() // handles control messages until the client disconnects
	select {
	case got := <-pong:
		if got != "are you there" {
			t.Errorf("the answer is %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("no answer")
	}
}

// TestOddMessages checks that invalid sizes, empty messages and unknown channels are ignored.
func TestOddMessages(t *testing.T) {
	var early int
	var size remotecommand.TerminalSize
	c := typing(t, func(_ context.Context, c *channels) error {
		word := make([]byte, len("typed"))
		if _, err := io.ReadFull(c.stdin, word); err != nil {
			return err
		}
		early = len(c.sizes)
		if _, err := c.stdout().Write(word); err != nil {
			return err
		}
		size = <-c.sizes
		_, err := io.Copy(io.Discard, c.stdin)
		return err
	})
	for _, text := range []string{
		"", "large", "{", `{"Width":70000,"Height":1}`, `{"Width":-1,"Height":1}`, `{"Width":"80"}`, `[80,25]`, strings.Repeat(" ", maxSize) + `{"Width":1,"Height":1}`,
	} {
		c.say(websocket.BinaryMessage, resizeChannel, text)
	}
	if err := c.WriteMessage(websocket.BinaryMessage, nil); err != nil {
		t.Fatal(err)
	}
	c.say(websocket.BinaryMessage, 77, "nobody listens")
	c.say(websocket.BinaryMessage, stdoutChannel, "not yours")
	c.say(websocket.BinaryMessage, closeChannel, "")
	c.say(websocket.BinaryMessage, closeChannel, string([]byte{stdoutChannel}))
	c.say(websocket.BinaryMessage, stdinChannel, "typed")
	if got := c.hear(stdoutChannel); got != "typed" {
		t.Errorf("echo of %q", got)
	}
	c.say(websocket.BinaryMessage, resizeChannel, `{"Width":80,"Height":25}`)
	c.say(websocket.BinaryMessage, closeChannel, string([]byte{stdinChannel}))
	if status := c.hear(statusChannel); !strings.Contains(status, `"Success"`) {
		t.Errorf("status %s", status)
	}
	if want := (remotecommand.TerminalSize{Width: 80, Height: 25}); early != 0 || size != want {
		t.Errorf("the terminal's size is %v, and before it was said there were %d", size, early)
	}
}

// deaf accepts no input.
type deaf struct{}

func (deaf) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestProcessClosesStdin checks that input is dropped once the process stops reading, and that later
// messages are still handled.
func TestProcessClosesStdin(t *testing.T) {
	c := typing(t, func(_ context.Context, c *channels) error {
		if _, err := io.Copy(deaf{}, c.stdin); !errors.Is(err, io.ErrClosedPipe) {
			return err
		}
		if size := <-c.sizes; size.Width != 80 {
			return errors.New("another size")
		}
		return nil
	})
	for range 3 {
		c.say(websocket.BinaryMessage, stdinChannel, strings.Repeat("unheard ", 1<<17))
	}
	c.say(websocket.BinaryMessage, resizeChannel, `{"Width":80,"Height":25}`)
	if status := c.hear(statusChannel); !strings.Contains(status, `"Success"`) {
		t.Errorf("status %s", status)
	}
}

// TestUnreadInput checks that input which the process left unread does not block: the connection is
// read until the client disconnects.
func TestUnreadInput(t *testing.T) {
	ran := make(chan *channels, 1)
	c := typing(t, func(_ context.Context, c *channels) error { ran <- c; return nil })
	c.say(websocket.BinaryMessage, stdinChannel, "unread")
	if status := c.hear(statusChannel); !strings.Contains(status, `"Success"`) {
		t.Errorf("status %s", status)
	}
	c.wantClosed(websocket.CloseNormalClosure)
	c.Close()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range (<-ran).sizes {
		}
	}()
	select {
	case <-over: // closed when channels.read has returned
	case <-time.After(time.Minute):
		t.Error("the input waits for a process that has ended")
	}
}
