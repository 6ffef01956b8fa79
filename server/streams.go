package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/cribox/cribox/sandbox"
)

// Exec answers with a URL at which the command can be run once, within a minute.
func (s *runtimeService) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	if err := s.pods().CheckExec(req.GetContainerId(), req.GetCmd(), req.GetTty()); err != nil {
		return nil, err
	}
	url, err := s.door.url("exec", func(w http.ResponseWriter, r *http.Request) {
		x, id, cmd := &wanted{req, s.pods()}, req.GetContainerId(), req.GetCmd()
		if offers(r, protocolV5) {
			serveV5(w, r, func(ctx context.Context, c *channels) error {
				return x.ExecInContainer(ctx, "", "", id, cmd, c.stdin, c.stdout(), c.stderr(), req.GetTty(), c.sizes, 0)
			})
			return
		}
		remotecommand.ServeExec(w, r, x, "", "", id, cmd, options(req), streamIdle, streamBegin, remotecommand.SupportedStreamingProtocols)
	})
	return &runtimeapi.ExecResponse{Url: url}, err
}

// Attach answers with a URL at which a client can be attached once, within a minute.
func (s *runtimeService) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	if err := s.pods().CheckAttach(req.GetContainerId(), req.GetTty()); err != nil {
		return nil, err
	}
	url, err := s.door.url("attach", func(w http.ResponseWriter, r *http.Request) {
		x, id := &wanted{req, s.pods()}, req.GetContainerId()
		if offers(r, protocolV5) {
			serveV5(w, r, func(ctx context.Context, c *channels) error {
				return x.AttachContainer(ctx, "", "", id, c.stdin, c.stdout(), c.stderr(), req.GetTty(), c.sizes)
			})
			return
		}
		remotecommand.ServeAttach(w, r, x, "", "", id, options(req), streamIdle, streamBegin, remotecommand.SupportedStreamingProtocols)
	})
	return &runtimeapi.AttachResponse{Url: url}, err
}

// PortForward answers with a URL at which a client can open connections to ports of the pod, as many as it likes, within a minute from now.
func (s *runtimeService) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := s.pods().CheckPortForward(req.GetPodSandboxId(), req.GetPort()); err != nil {
		return nil, err
	}
	serve := func(w http.ResponseWriter, r *http.Request) {
		portforward.ServePortForward(w, r, forwarder{r.Context(), s.pods()}, req.GetPodSandboxId(), "", &portforward.V4Options{Ports: req.GetPort()},
			streamIdle, streamBegin, portforward.SupportedProtocols)
	}
	url, err := s.door.url("portforward", func(w http.ResponseWriter, r *http.Request) {
		if offers(r, tunnelProtocol) {
			serveTunnel(w, r, serve)
			return
		}
		serve(w, r)
	})
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

// streamRequest is what ExecRequest and AttachRequest have in common.
type streamRequest interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

func checkStreams(r streamRequest) error {
	switch {
	case r.GetTty() && r.GetStderr():
		return fmt.Errorf("stderr: a tty has one output, stderr cannot be asked for: %w", errdefs.ErrInvalidArgument)
	case !r.GetStdin() && !r.GetStdout() && !r.GetStderr():
		return fmt.Errorf("one of stdin, stdout and stderr must be asked for: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func options(r streamRequest) *remotecommand.Options {
	return &remotecommand.Options{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
}

// wanted runs what was asked for with the streams that were asked for: a WebSocket client is given all of them.
type wanted struct {
	req  streamRequest
	pods *sandbox.Manager
}

func (x *wanted) ExecInContainer(ctx context.Context, _, _, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool,
	sizes <-chan remotecommand.TerminalSize, _ time.Duration) error {
	code, err := x.pods.Exec(ctx, id, cmd, tty, x.streams(ctx, in, out, errs, sizes))
	if err == nil && code != 0 {
		// By this type the client learns the code; any other error is one of ours.
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return err
}

func (x *wanted) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errs io.WriteCloser, _ bool, sizes <-chan remotecommand.TerminalSize) error {
	return x.pods.Attach(ctx, id, x.streams(ctx, in, out, errs, sizes))
}

func (x *wanted) streams(ctx context.Context, in io.Reader, out, errs io.Writer, sizes <-chan remotecommand.TerminalSize) sandbox.Streams {
	var s sandbox.Streams
	if x.req.GetStdin() {
		s.Stdin = in
	}
	if x.req.GetStdout() {
		s.Stdout = out
	}
	if x.req.GetStderr() {
		s.Stderr = errs
	}
	if sizes != nil {
		s.Resize = translate(ctx, sizes)
	}
	return s
}

func translate(ctx context.Context, sizes <-chan remotecommand.TerminalSize) <-chan sandbox.Size {
	out := make(chan sandbox.Size)
	go func() {
		defer close(out)
		for s := range sizes {
			select {
			case out <- sandbox.Size{Width: s.Width, Height: s.Height}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// forwarder forwards the connections of one client; ctx ends with the client, which the library does not tell.
type forwarder struct {
	ctx  context.Context
	pods *sandbox.Manager
}

func (f forwarder) PortForward(_ context.Context, podID, _ string, port int32, client io.ReadWriteCloser) error {
	return f.pods.PortForward(f.ctx, podID, port, client)
}
