package content

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A data key identifies data on disk: BlobKey a blob in content/, LayerPrefix with a layer's key a
// folder in layers/, PartialPrefix with an ingest reference a partial download. Data is kept as
// long as a record lists it or a pull has pinned it. To delete data, its key is first marked as
// dying. A pull that needs the same data waits until it has been deleted, and then looks whether it
// exists.

const (
	BlobPrefix    = "blob "
	LayerPrefix   = "layer "
	PartialPrefix = "partial "
)

func BlobKey(d digest.Digest) string { return BlobPrefix + string(d) }

// Pins tracks which data keys are in use by pulls, and which are being deleted. No key is both.
type Pins struct {
	mu    sync.Mutex
	held  map[string]int
	dying map[string]chan struct{}
}

func NewPins() *Pins { return &Pins{held: map[string]int{}, dying: map[string]chan struct{}{}} }

// Take pins the data of key, so that it is not deleted until Give. It waits while the data is being
// deleted.
func (p *Pins) Take(ctx context.Context, key string) error {
	for {
		p.mu.Lock()
		going, ok := p.dying[key]
		if !ok {
			p.held[key]++
			p.mu.Unlock()
			return nil
		}
		p.mu.Unlock()
		select {
		case <-going:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *Pins) Give(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		if p.held[key]--; p.held[key] <= 0 {
			delete(p.held, key)
		}
	}
}

// Condemn marks those keys as dying that are neither listed nor pinned, and returns them.
func (p *Pins) Condemn(keys []string, listed map[string]bool) (condemned []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		if _, twice := p.dying[key]; twice || listed[key] || p.held[key] > 0 {
			continue
		}
		p.dying[key] = make(chan struct{})
		condemned = append(condemned, key)
	}
	return condemned
}

// End unmarks dying keys, after their data was deleted or is to be kept after all.
func (p *Pins) End(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		close(p.dying[key])
		delete(p.dying, key)
	}
}

// State returns the number of pulls that use a key, and whether its data is being deleted.
func (p *Pins) State(key string) (users int, dying bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, dying = p.dying[key]
	return p.held[key], dying
}

// Blob is one blob of an image.
type Blob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	// DiffID is the digest of the uncompressed content of a layer's blob, once it has been
	// unpacked. Older versions did not write it.
	DiffID digest.Digest `json:"diff_id,omitempty"`
}
