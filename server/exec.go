package server

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
	"github.com/cribox/cribox/server/streaming"
)

// Exec returns a URL at which the client can run the command once, within a minute.
func (s *runtimeService) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	want, err := wanted(req)
	if err != nil {
		return nil, err
	}
	pods, id, cmd := s.pods(), req.GetContainerId(), req.GetCmd()
	if err := pods.CheckExec(id, cmd, want.TTY); err != nil {
		return nil, err
	}
	url, err := s.streams.Exec(want, func(ctx context.Context, c streaming.Streams) (int32, error) {
		return pods.Exec(ctx, id, cmd, want.TTY, streamsOf(ctx, c))
	})
	return &runtimeapi.ExecResponse{Url: url}, err
}

// Attach returns a URL at which a client can attach once, within a minute.
func (s *runtimeService) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	want, err := wanted(req)
	if err != nil {
		return nil, err
	}
	pods, id := s.pods(), req.GetContainerId()
	if err := pods.CheckAttach(id, want.TTY); err != nil {
		return nil, err
	}
	url, err := s.streams.Attach(want, func(ctx context.Context, c streaming.Streams) (int32, error) {
		return 0, pods.Attach(ctx, id, streamsOf(ctx, c))
	})
	return &runtimeapi.AttachResponse{Url: url}, err
}

// PortForward returns a URL, valid for one use within a minute, at which a client can open any
// number of connections to ports of the pod.
func (s *runtimeService) PortForward(_ context.Context,
	req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	pods, id := s.pods(), req.GetPodSandboxId()
	if err := pods.CheckPortForward(id, req.GetPort()); err != nil {
		return nil, err
	}
	url, err := s.streams.PortForward(req.GetPort(),
		func(ctx context.Context, port int32, client io.ReadWriteCloser) error {
			return pods.PortForward(ctx, id, port, client)
		})
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

// streamRequest has the methods that ExecRequest and AttachRequest share.
type streamRequest interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

func wanted(r streamRequest) (streaming.Wanted, error) {
	want := streaming.Wanted{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	switch {
	case want.TTY && want.Stderr:
		return want, fmt.Errorf("stderr: cannot be requested with a tty, which has one output: %w",
			errdefs.ErrInvalidArgument)
	case !want.Stdin && !want.Stdout && !want.Stderr:
		return want, fmt.Errorf("one of stdin, stdout and stderr must be requested: %w", errdefs.ErrInvalidArgument)
	}
	return want, nil
}

// streamsOf converts a client's streams to the type of package sandbox. Terminal sizes are passed
// on until ctx ends.
func streamsOf(ctx context.Context, c streaming.Streams) sandbox.Streams {
	streams := sandbox.Streams{Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr}
	if c.Resize != nil {
		streams.Resize = sizesOf(ctx, c.Resize)
	}
	return streams
}

func sizesOf(ctx context.Context, sizes <-chan streaming.Size) <-chan sandbox.Size {
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
