package client

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

// TestPanicCostsOneTry: what panics while a peer is started or watched is tried again.
func TestPanicCostsOneTry(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	c := Config{State: dir, Step: func(string) {
		if tries++; tries == 2 {
			cancel()
		}
		panic("oh")
	}}
	p := newPeer("shim", c, filepath.Join(dir, "sock"), filepath.Join(dir, "lock"), dir, filepath.Join(dir, "log"))
	p.keep(ctx, nil)
	if tries != 2 {
		t.Errorf("%d tries", tries)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	(&Client{ctx: ctx}).watch() // without a shim to watch: it panics until ctx ends
}
