package content

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A data key names what takes space: blobKey a blob of content/, a layer key with its prefix a
// directory of layers/, an ingest reference with its prefix a partial download. Data lives as long
// as a record lists it or a pull has it pinned. Deleting takes the key first, and a pull that wants
// the same data waits for the deletion to end before it looks whether there is any.

const (
	BlobPrefix    = "blob "
	LayerPrefix   = "layer "
	PartialPrefix = "partial "
)

func BlobKey(d digest.Digest) string { return BlobPrefix + string(d) }

// Pins says which data keys are in use by pulls, and which are being deleted. No key is both.
type Pins struct {
	mu    sync.Mutex
	held  map[string]int
	dying map[string]chan struct{}
}

func NewPins() *Pins { return &Pins{held: map[string]int{}, dying: map[string]chan struct{}{}} }

// Take keeps the data of key from being deleted until give.
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

// Condemn marks those of keys that are neither listed nor pinned as dying and returns them.
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

// End says of condemned keys that they are deleted, or stay after all.
func (p *Pins) End(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		close(p.dying[key])
		delete(p.dying, key)
	}
}

// State says by how many pulls a key is in use, and whether it is being deleted.
func (p *Pins) State(key string) (users int, dying bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, dying = p.dying[key]
	return p.held[key], dying
}

// Blob is one blob that an image consists of.
type Blob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	// DiffID is the digest of what a layer's blob was seen to unpack to. Older versions did not
	// write it.
	DiffID digest.Digest `json:"diff_id,omitempty"`
}
