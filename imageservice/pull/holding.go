package pull

import (
	"context"
	"slices"
	"sync"

	"github.com/cribox/cribox/imageservice/content"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// holding has the data that one pull has pinned, and the blobs of its image.
type holding struct {
	pins *content.Pins

	mu    sync.Mutex
	keys  []string // pinned
	blobs []content.Blob
}

// pin protects the data of key from deletion until the pull ends.
func (h *holding) pin(ctx context.Context, key string) error {
	if err := h.pins.Take(ctx, key); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys = append(h.keys, key)
	return nil
}

// note adds a blob to those of the image.
func (h *holding) note(d ocispec.Descriptor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := content.Blob{Digest: d.Digest, Size: d.Size}
	if !slices.Contains(h.blobs, b) {
		h.blobs = append(h.blobs, b)
	}
}

// noted returns the number of blobs added so far.
func (h *holding) noted() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.blobs)
}

// unnote removes all blobs except the first n.
func (h *holding) unnote(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blobs = h.blobs[:n]
}
