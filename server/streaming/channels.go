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

// protocolV5 is the WebSocket protocol of current clients of exec and attach. The streaming library
// supports only versions up to v4, in which a client cannot signal the end of its input.
const protocolV5 = "v5.channel.k8s.io"

// The first byte of each message is its channel.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	statusChannel
	resizeChannel
	closeChannel = 255 // the next byte is the channel that the client closes
)

const (
	farewell = 10 * time.Second // for a client to read the end of a stream and disconnect
	maxSize  = 1 << 10          // bytes of the JSON of a terminal size
)

// channels is a client's connection with protocolV5. Nothing is buffered: while the process does
// not read its input, neither that input nor later messages are read from the connection.
type channels struct {
	conn  *websocket.Conn
	used  func() // called for each message in either direction
	stdin input
	typed *io.PipeWriter
	sizes chan remotecommand.TerminalSize

	mu  sync.Mutex // guards out and the message being written; closing the connection ends the write
	out []byte
}

// serveV5 calls run with the client's streams and sends its result to the client.
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

// read handles the client's messages until the connection ends.
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

// take handles one message. An error means that the connection is broken.
func (c *channels) take(message io.Reader) error {
	channel, err := next(message)
	if err != nil {
		return unlessEmpty(err)
	}
	switch channel {
	case stdinChannel:
		_, err = io.Copy(c.typed, message)
		if errors.Is(err, io.ErrClosedPipe) {
			return nil // the process reads no more input; skip the rest of the message
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

// unlessEmpty returns nil for io.EOF: a message that is too short is ignored.
func unlessEmpty(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// input is the standard input of a process.
type input struct{ *io.PipeReader }

// WriteTo implements io.WriterTo for io.Copy. When the process stops reading, it closes the input,
// so that the rest of it is dropped and later messages are read.
func (in input) WriteTo(w io.Writer) (int64, error) {
	defer in.Close()
	return io.Copy(w, in.PipeReader)
}

// output is one output stream to the client.
type output struct {
	*channels
	channel byte
}

func (c *channels) stdout() output { return output{c, stdoutChannel} }
func (c *channels) stderr() output { return output{c, stderrChannel} }

// Write blocks until the message has been written to the connection.
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

// end sends the result to the client, and waits until the client disconnects. Closing a connection
// with unread data would reset it, and the client could lose what is in flight to it.
func (c *channels) end(ctx context.Context, how error) {
	c.stdin.Close()
	text, err := json.Marshal(statusOf(how))
	if err == nil {
		_, err = output{c, statusChannel}.Write(text)
	}
	if err != nil {
		return // the client has disconnected
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

// streamStatus is the JSON that reports the result of a stream: the fields of metav1.Status that
// clients read.
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
		return streamStatus{Status: "Failure", Message: err.Error(), Reason: "InternalError",
			Code: http.StatusInternalServerError}
	}
}
