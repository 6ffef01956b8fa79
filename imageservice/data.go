package imageservice

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/internal/tree"
)

// A data key names what takes space: blobKey a blob of content/, a layer key with its prefix a directory of layers/, an ingest reference with
// its prefix a partial download. Data lives as long as
// a record lists it or a pull has it pinned. Deleting takes the key first, under the lock, and a pull that wants the same data waits for
// the deletion to end before it looks whether there is any.

const (
	blobPrefix    = "blob "
	layerPrefix   = "layer "
	partialPrefix = "partial "
)

func blobKey(d digest.Digest) string { return blobPrefix + string(d) }

// pin keeps the data of key from being deleted until unpin.
func (c *Images) pin(ctx context.Context, key string) error {
	for {
		c.mu.Lock()
		going, ok := c.dying[key]
		if !ok {
			c.pins[key]++
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-going:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unpin gives pins back. With discard, what then belongs to nobody is deleted; else it stays a while for the next try.
func (c *Images) unpin(keys []string, discard bool) {
	c.mu.Lock()
	for _, key := range keys {
		if c.pins[key]--; c.pins[key] <= 0 {
			delete(c.pins, key)
		}
	}
	var garbage []string
	if discard {
		garbage = c.condemn(keys)
	}
	c.mu.Unlock()
	c.delete(garbage)
	if !discard {
		c.sweepLater(debrisRetention)
	}
}

// listed is the set of data keys that records name. Under the lock.
func (c *Images) listed() map[string]bool {
	set := map[string]bool{}
	for _, r := range c.records {
		for _, b := range r.Blobs {
			set[blobKey(b.Digest)] = true
		}
		for _, l := range r.Layers {
			set[layerPrefix+l.key()] = true
		}
	}
	return set
}

// condemn marks those of keys that belong to nobody as dying and returns them. Under the lock; the caller must delete them.
func (c *Images) condemn(keys []string) []string {
	if len(c.unread) > 0 {
		return nil // nobody knows what those need
	}
	listed := c.listed()
	var garbage []string
	for _, key := range keys {
		if _, twice := c.dying[key]; twice || listed[key] || c.pins[key] > 0 {
			continue
		}
		c.dying[key] = make(chan struct{})
		garbage = append(garbage, key)
	}
	return garbage
}

// delete removes condemned data. What cannot be deleted is logged and is debris for the next Open.
func (c *Images) delete(keys []string) {
	for _, key := range keys {
		if err := c.deleteOne(key); err != nil {
			log.L.WithError(err).WithField("data", key).Warn("image data could not be deleted")
		}
		c.mu.Lock()
		going := c.dying[key]
		delete(c.dying, key)
		c.mu.Unlock()
		close(going)
	}
}

func (c *Images) deleteOne(key string) error {
	if d, ok := strings.CutPrefix(key, blobPrefix); ok {
		c.mu.Lock()
		delete(c.diffIDs, digest.Digest(d))
		c.mu.Unlock()
		err := ignoreNotFound(c.content.Delete(context.Background(), digest.Digest(d)))
		c.step("remove.blob.gone")
		return err
	}
	if ref, ok := strings.CutPrefix(key, partialPrefix); ok {
		return ignoreNotFound(c.content.Abort(context.Background(), ref))
	}
	key = strings.TrimPrefix(key, layerPrefix)
	c.mu.Lock()
	l := c.layers[key]
	delete(c.layers, key)
	c.mu.Unlock()
	if l == nil {
		return nil
	}
	err := removeTree(c.layerDir(l.Dir))
	c.step("remove.layer.gone")
	return err
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// removeTree deletes a tree, whatever its shape. It goes on to the end: what is left over is found by the next Open only.
func removeTree(path string) error { return tree.Remove(context.Background(), path) }

func (c *Images) layerDir(dir string) string { return filepath.Join(c.cfg.Root, "layers", dir) }

// sweepLater has debris looked for after d; one timer for all.
func (c *Images) sweepLater(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sweeping != nil {
		return
	}
	c.sweeping = time.AfterFunc(d, func() {
		c.mu.Lock()
		c.sweeping = nil
		c.mu.Unlock()
		if c.sweep(time.Now().Add(-debrisRetention)) {
			c.sweepLater(debrisRetention)
		}
	})
}

// sweep deletes what belongs to nobody and was last touched before t. It returns whether some debris was too young.
func (c *Images) sweep(t time.Time) (more bool) {
	ctx := context.Background()
	if !c.readAgain(ctx) {
		return true
	}
	var keys []string
	c.mu.Lock()
	listed := c.listed()
	for key := range c.layers {
		if !listed[layerPrefix+key] {
			keys = append(keys, layerPrefix+key)
		}
	}
	c.mu.Unlock()
	err := c.content.Walk(ctx, func(i content.Info) error {
		switch {
		case listed[blobKey(i.Digest)]:
		case i.CreatedAt.Before(t):
			keys = append(keys, blobKey(i.Digest))
		default:
			more = true
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.L.WithError(err).Warn("blobs could not be listed to find what nobody needs")
	}
	partial, _ := c.content.ListStatuses(ctx)
	for _, s := range partial {
		switch {
		case s.UpdatedAt.Before(t):
			keys = append(keys, partialPrefix+s.Ref)
		default:
			more = true
		}
	}
	c.mu.Lock()
	garbage := c.condemn(keys)
	c.mu.Unlock()
	c.delete(garbage)
	c.step("sweep.done")
	return more
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
