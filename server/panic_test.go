package server

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

type brokenStream struct{ grpc.ServerStream }

func (brokenStream) SendMsg(any) error { panic("oh") }

// TestPanicCostsOneStream checks that a panic during the encoding of a message ends only that
// stream.
func TestPanicCostsOneStream(t *testing.T) {
	s := &Server{ending: make(chan struct{})}
	if err := s.push(t.Context(), brokenStream{}, nil); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a panic comes back as %v", err)
	}
}
