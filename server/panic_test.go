package server

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

type brokenStream struct{ grpc.ServerStream }

func (brokenStream) SendMsg(any) error { panic("oh") }

// TestPanicCostsOneStream: a message that panics while it is encoded ends its stream, and no more.
func TestPanicCostsOneStream(t *testing.T) {
	s := &Server{ending: make(chan struct{})}
	if err := s.push(t.Context(), brokenStream{}, nil); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a panic comes back as %v", err)
	}
}
