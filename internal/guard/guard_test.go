package guard

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestCall checks that Call returns act's error, and returns a panic as an error that names the
// operation.
func TestCall(t *testing.T) {
	if err := Call(t.Context(), "work", func() error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("an error comes back as %v", err)
	}
	err := Call(t.Context(), "work", func() error { panic("oh") })
	if !errors.Is(err, errdefs.ErrInternal) || !strings.Contains(err.Error(), "panic in work: oh") {
		t.Errorf("a panic comes back as %v", err)
	}
	Run(t.Context(), "work", func() { panic("oh") })
}
