package pull

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPanicCostsOneLayer checks that a panic in the goroutine of a layer fails only this pull.
func TestPanicCostsOneLayer(t *testing.T) {
	p := &pull{}
	got := contents{doc: &ocispec.Manifest{}}
	got.doc.Layers = []ocispec.Descriptor{{Digest: "sha256:0123456789abcdef"}} // the config has no such layer
	if err := p.fetchLayers(t.Context(), &fetcher{}, &got); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a panic comes back as %v", err)
	}
}
