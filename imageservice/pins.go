package imageservice

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A data key names what takes space: blobKey a blob of content/, a layer key with its prefix a directory of layers/, an ingest reference
// with its prefix a partial download. Data lives as long as a record lists it or a pull has it pinned. Deleting takes the key first, and a
// pull that wants the same data waits for the deletion to end before it looks whether there is any.

const (
	blobPrefix    = "blob "
	layerPrefix   = "layer "
	partialPrefix = "partial "
)

func blobKey(d digest.Digest) string { return blobPrefix + string(d) }

// pins says which data keys are in use by pulls, and which are being deleted. No key is both.
type pins struct {
	mu    sync.Mutex
	held  map[string]int
	dying map[string]chan struct{}
}

func newPins() *pins { return &pins{held: map[string]int{}, dying: map[string]chan struct{}{}} }

// take keeps the data of key from being deleted until give.
func (p *pins) take(ctx context.Context, key string) error {
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

func (p *pins) give(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		if p.held[key]--; p.held[key] <= 0 {
			delete(p.held, key)
		}
	}
}

// condemn marks those of keys that are neither listed nor pinned as dying and returns them.
func (p *pins) condemn(keys []string, listed map[string]bool) (condemned []string) {
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

// end says of condemned keys that they are deleted, or stay after all.
func (p *pins) end(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		close(p.dying[key])
		delete(p.dying, key)
	}
}

// state says by how many pulls a key is in use, and whether it is being deleted.
func (p *pins) state(key string) (users int, dying bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, dying = p.dying[key]
	return p.held[key], dying
}

// blob is one blob that an image consists of.
type blob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	// DiffID is the digest of what a layer's blob was seen to unpack to. Older versions did not write it.
	DiffID digest.Digest `json:"diff_id,omitempty"`
}
