package streaming

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// Wanted says which streams the client requested.
type Wanted struct{ Stdin, Stdout, Stderr, TTY bool }

// Streams are the client's streams. Those that were not requested are nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size // closed after the last size; nil without a terminal
}

// Size is the size of a terminal.
type Size = remotecommand.TerminalSize

// Run runs a command with the client's streams and returns its exit code. ctx ends when the client
// disconnects.
type Run func(ctx context.Context, streams Streams) (code int32, err error)

// Exec returns a URL at which a client can call run once, within a minute.
func (s *Server) Exec(want Wanted, run Run) (string, error) {
	c := command{want, run}
	return s.url("exec", func(w http.ResponseWriter, r *http.Request) {
		if offers(r, protocolV5) {
			serveV5(w, r, c.serveChannels)
			return
		}
		remotecommand.ServeExec(w, r, c, "", "", "", nil, c.options(), streamIdle, streamBegin,
			remotecommand.SupportedStreamingProtocols)
	})
}

// Attach returns a URL at which a client can call run once, within a minute.
func (s *Server) Attach(want Wanted, run Run) (string, error) {
	c := command{want, run}
	return s.url("attach", func(w http.ResponseWriter, r *http.Request) {
		if offers(r, protocolV5) {
			serveV5(w, r, c.serveChannels)
			return
		}
		remotecommand.ServeAttach(w, r, c, "", "", "", c.options(), streamIdle, streamBegin,
			remotecommand.SupportedStreamingProtocols)
	})
}

// Forward connects a client to a port. ctx ends when the client disconnects.
type Forward func(ctx context.Context, port int32, client io.ReadWriteCloser) error

// PortForward returns a URL, valid for one use within a minute, at which a client can open any
// number of connections.
func (s *Server) PortForward(ports []int32, forward Forward) (string, error) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, forwarder{r.Context(), forward}, "", "", &portforward.V4Options{Ports: ports},
			streamIdle, streamBegin, portforward.SupportedProtocols)
	}
	return s.url("portforward", func(w http.ResponseWriter, r *http.Request) {
		if offers(r, tunnelProtocol) {
			serveTunnel(w, r, serve)
			return
		}
		serve(w, r)
	})
}

// command calls run with only the requested streams, because a WebSocket client opens all of them.
type command struct {
	want Wanted
	run  Run
}

func (c command) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: c.want.Stdin, Stdout: c.want.Stdout, Stderr: c.want.Stderr, TTY: c.want.TTY}
}

func (c command) ExecInContainer(
	ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errs io.WriteCloser, _ bool,
	sizes <-chan Size, _ time.Duration,
) error {
	return c.do(ctx, in, out, errs, sizes)
}

func (c command) AttachContainer(
	ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, sizes <-chan Size,
) error {
	return c.do(ctx, in, out, errs, sizes)
}

func (c command) serveChannels(ctx context.Context, from *channels) error {
	return c.do(ctx, from.stdin, from.stdout(), from.stderr(), from.sizes)
}

func (c command) do(ctx context.Context, in io.Reader, out, errs io.Writer, sizes <-chan Size) error {
	streams := Streams{Resize: sizes}
	if c.want.Stdin {
		streams.Stdin = in
	}
	if c.want.Stdout {
		streams.Stdout = out
	}
	if c.want.Stderr {
		streams.Stderr = errs
	}
	code, err := c.run(ctx, streams)
	if err == nil && code != 0 {
		// The library sends the exit code to the client only with this type of error.
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return err
}

// forwarder forwards the connections of one client. ctx ends when the client disconnects; it is a
// field because the library does not pass it on.
type forwarder struct {
	ctx     context.Context
	forward Forward
}

func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, client io.ReadWriteCloser) error {
	if err := accept(client); err != nil {
		return err
	}
	return f.forward(f.ctx, port, client)
}

// accept tells the client that its SPDY stream is open. The library does so as well, beside the
// call of PortForward: when forward fails first, the client sees its stream reset while it is
// opening it, and never reads why. The second reply to a stream is dropped.
func accept(client io.ReadWriteCloser) error {
	if stream, ok := client.(interface{ SendReply(http.Header, bool) error }); ok {
		return stream.SendReply(http.Header{}, false)
	}
	return nil
}
