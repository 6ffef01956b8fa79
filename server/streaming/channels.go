package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/cribox/cribox/internal/guard"
)

// protocolV5 is what today's clients of exec and attach speak over WebSocket. The streaming library
// knows it only as far as v4, where a client cannot say that its input is over.
const protocolV5 = "v5.channel.k8s.io"

// The first byte of each message says what the others are.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	statusChannel
	resizeChannel
	closeChannel = 255 // followed by the channel on which no more comes
)

const (
	farewell = 10 * time.Second // for a client to take the end of a stream and leave
	maxSize  = 1 << 10          // of the text of a terminal's size
)

// channels is a client's connection with protocolV5. Input that the process does not take is not
// read from the connection, nor is what comes behind it: nothing is kept.
type channels struct {
	conn  *websocket.Conn
	used  func() // something has come or gone
	stdin input
	typed *io.PipeWriter
	sizes chan remotecommand.TerminalSize

	mu  sync.Mutex // guards out and the message under way, whose writing ends at the latest with the connection
	out []byte
}

// serveV5 does run with the client's streams and tells the client how it ended.
func serveV5(w http.ResponseWriter, r *http.Request, run func(context.Context, *channels) error) {
	ctx, leave := context.WithCancel(r.Context())
	defer leave()
	conn := openWebSocket(ctx, w, r, protocolV5)
	if conn == nil {
		return
	}
	idle := time.AfterFunc(streamIdle, leave)
	defer idle.Stop()
	c := newChannels(conn, func() { idle.Reset(streamIdle) })
	go func() {
		defer leave()
		guard.Run(ctx, "what a client sends", c.read)
	}()
	c.end(ctx, run(ctx, c))
}

func newChannels(conn *websocket.Conn, used func()) *channels {
	r, w := io.Pipe()
	return &channels{conn: conn, used: used, stdin: input{r}, typed: w, sizes: make(chan remotecommand.TerminalSize, 1)}
}

// read takes what the client sends until the connection ends.
func (c *channels) read() {
	defer close(c.sizes)
	for {
		kind, message, err := c.conn.NextReader()
		if err == nil && kind != websocket.BinaryMessage {
			err = fmt.Errorf("messages of %s are binary", protocolV5)
			c.bye(websocket.CloseUnsupportedData, err.Error())
		}
		if err == nil {
			c.used()
			err = c.take(message)
		}
		if err != nil {
			c.typed.CloseWithError(err)
			return
		}
	}
}

// take passes one message on; an error is the connection's.
func (c *channels) take(message io.Reader) error {
	channel, err := next(message)
	if err != nil {
		return unlessEmpty(err)
	}
	switch channel {
	case stdinChannel:
		_, err = io.Copy(c.typed, message)
		if errors.Is(err, io.ErrClosedPipe) {
			return nil // nobody takes input any more; the rest of the message is skipped
		}
	case resizeChannel:
		var size remotecommand.TerminalSize
		if json.NewDecoder(io.LimitReader(message, maxSize)).Decode(&size) == nil {
			replace(c.sizes, size)
		}
	case closeChannel:
		if channel, err = next(message); err == nil && channel == stdinChannel {
			c.typed.Close()
		}
		return unlessEmpty(err)
	}
	return err
}

func next(message io.Reader) (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(message, b[:])
	return b[0], err
}

// unlessEmpty forgives a message that ends before it says something.
func unlessEmpty(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// input is what a process is given to read.
type input struct{ *io.PipeReader }

// WriteTo is what io.Copy calls. A process that takes no more ends the input, so that the rest of
// it is dropped and what comes behind it is read.
func (in input) WriteTo(w io.Writer) (int64, error) {
	defer in.Close()
	return io.Copy(w, in.PipeReader)
}

// output is the client's end of a stream.
type output struct {
	*channels
	channel byte
}

func (c *channels) stdout() output { return output{c, stdoutChannel} }
func (c *channels) stderr() output { return output{c, stderrChannel} }

// Write waits until the client takes it.
func (o output) Write(p []byte) (int, error) {
	o.used()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.out = append(append(o.out[:0], o.channel), p...)
	if err := o.conn.WriteMessage(websocket.BinaryMessage, o.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (o output) Close() error { return nil }

// end tells the client how it went, and lets it leave first: a connection that is closed before
// everything was read from it takes with it what is under way to the client.
func (c *channels) end(ctx context.Context, how error) {
	c.stdin.Close()
	text, err := json.Marshal(statusOf(how))
	if err == nil {
		_, err = output{c, statusChannel}.Write(text)
	}
	if err != nil {
		return // the client has left
	}
	c.bye(websocket.CloseNormalClosure, "")
	late := time.NewTimer(farewell)
	defer late.Stop()
	select {
	case <-ctx.Done():
	case <-late.C:
	}
}

func (c *channels) bye(code int, why string) {
	_ = c.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, why), time.Now().Add(farewell))
}

// streamStatus is the JSON in which a client is told how a stream ended: as much of metav1.Status
// as clients look at.
type streamStatus struct {
	Status  string         `json:"status"`
	Message string         `json:"message,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Details *statusDetails `json:"details,omitempty"`
	Code    int            `json:"code,omitempty"`
}

type statusDetails struct {
	Causes []statusCause `json:"causes"`
}

type statusCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) streamStatus {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return streamStatus{Status: "Success"}
	case errors.As(err, &exit):
		return streamStatus{
			Status: "Failure", Message: "command terminated with non-zero exit code: " + err.Error(), Reason: "NonZeroExitCode",
			Details: &statusDetails{[]statusCause{{"ExitCode", strconv.Itoa(exit.ExitStatus())}}},
		}
	default:
		return streamStatus{Status: "Failure", Message: err.Error(), Reason: "InternalError", Code: http.StatusInternalServerError}
	}
}
