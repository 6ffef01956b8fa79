// Package garbage deletes what no record lists and no pull needs.
package garbage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
)

// DebrisRetention is how long what nobody needs stays for the next try.
const DebrisRetention = 10 * time.Minute

// Collector deletes what no record lists and no pull needs: at once, or after a while.
type Collector struct {
	Catalog *catalog.Catalog
	Blobs   *content.Blobs
	Layers  *layers.Store
	Pins    *content.Pins
	step    func(string)

	mu       sync.Mutex
	sweeping *time.Timer
}

func New(c *catalog.Catalog, b *content.Blobs, l *layers.Store, p *content.Pins, step func(string)) *Collector {
	return &Collector{Catalog: c, Blobs: b, Layers: l, Pins: p, step: step}
}

// Unpin gives pins back. With discard, what then belongs to nobody is deleted; else it stays a
// while for the next try.
func (g *Collector) Unpin(keys []string, discard bool) {
	g.Pins.Give(keys)
	if discard {
		g.Collect(keys)
	} else {
		g.SweepLater(DebrisRetention)
	}
}

// Collect deletes those of keys that belong to nobody.
func (g *Collector) Collect(keys []string) { g.delete(g.Catalog.Condemn(keys)) }

// delete removes condemned data. What cannot be deleted is logged and is debris for the next Open.
func (g *Collector) delete(keys []string) {
	for _, key := range keys {
		if err := g.deleteOne(key); err != nil {
			log.L.WithError(err).WithField("data", key).Warn("image data could not be deleted")
		}
		g.Pins.End([]string{key})
	}
}

func (g *Collector) deleteOne(key string) error {
	if d, ok := strings.CutPrefix(key, content.BlobPrefix); ok {
		g.Blobs.Forget(digest.Digest(d))
		err := g.Blobs.Delete(context.Background(), digest.Digest(d))
		g.step("remove.blob.gone")
		return err
	}
	if ref, ok := strings.CutPrefix(key, content.PartialPrefix); ok {
		return g.Blobs.Abort(context.Background(), ref)
	}
	l := g.Layers.Take(strings.TrimPrefix(key, content.LayerPrefix))
	if l == nil {
		return nil
	}
	err := g.Layers.Remove(l.Dir)
	g.step("remove.layer.gone")
	return err
}

// Remove is Images.Remove.
func (g *Collector) Remove(ctx context.Context, ref string) error {
	garbage, err := g.unlist(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", imageref.Quoted(ref), err)
	}
	g.delete(garbage)
	return nil
}

// unlist takes an image and its record away and returns the data to delete.
func (g *Collector) unlist(ctx context.Context, ref string) (garbage []string, err error) {
	if err := g.Catalog.Writer.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer g.Catalog.Writer.Release(1)
	r, garbage, err := g.Catalog.Unlist(ref)
	if err != nil {
		return nil, err
	}
	if err := g.Catalog.Erase(r.ID); err != nil {
		g.Catalog.Relist(r, garbage)
		return nil, fault.Disk(err)
	}
	g.step("remove.unrecorded")
	return garbage, nil
}

// Forget takes away every layer that no record lists. The kernel tells a write error once: whoever
// synced after this would be told that all is well. Layers that other pulls are about to list are
// among them, and those pulls end, see forgotten. The caller has the writer's right.
func (g *Collector) Forget(ctx context.Context) {
	listed := g.Catalog.Listed()
	doubtful := g.Layers.TakeAll(func(key string) bool {
		_, dying := g.Pins.State(content.LayerPrefix + key)
		return !dying && !listed[content.LayerPrefix+key]
	})
	for _, l := range doubtful {
		if err := g.Layers.Remove(l.Dir); err != nil {
			log.G(ctx).WithError(err).WithField("layer", l.Dir).Warn("layer that may not be on disk could not be deleted")
		}
	}
}

// SweepLater has debris looked for after d; one timer for all.
func (g *Collector) SweepLater(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sweeping != nil {
		return
	}
	g.sweeping = time.AfterFunc(d, func() {
		g.mu.Lock()
		g.sweeping = nil
		g.mu.Unlock()
		if g.Sweep(time.Now().Add(-DebrisRetention)) {
			g.SweepLater(DebrisRetention)
		}
	})
}

// Sweep deletes what belongs to nobody and was last touched before t. It returns whether some
// debris was too young.
func (g *Collector) Sweep(t time.Time) (more bool) {
	ctx := context.Background()
	if !g.Catalog.ReadAgain(ctx) {
		return true
	}
	var keys []string
	listed := g.Catalog.Listed()
	for key := range g.Layers.All() {
		if !listed[content.LayerPrefix+key] {
			keys = append(keys, content.LayerPrefix+key)
		}
	}
	debris, more := g.Blobs.Debris(ctx, t, listed)
	g.Collect(append(keys, debris...))
	g.step("sweep.done")
	return more
}

// DropOrphanLayers deletes the directories no record lists: they were never proven to be on disk.
// What is mounted stays all the same: a container runs on it although its image's record is
// damaged.
func (g *Collector) DropOrphanLayers(ctx context.Context) error {
	entries, err := os.ReadDir(g.Layers.Root)
	if err != nil {
		return err
	}
	known := g.Catalog.LayerDirs()
	known["empty"], known["none"] = true, true
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return err
	}
	mounted := func(dir string) bool {
		return slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool {
			return ShowsLayer(m.VFSOptions, g.Layers.Files(dir))
		})
	}
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			g.Layers.Taken(n)
		}
		if known[e.Name()] || !g.Catalog.IsRead() || mounted(e.Name()) {
			continue
		}
		if err := g.Layers.Remove(e.Name()); err != nil {
			log.G(ctx).WithError(err).WithField("layer", e.Name()).Warn("orphan layer could not be deleted")
		}
	}
	return nil
}

// ShowsLayer says whether the options of an overlay name a layer: by its path, or as mount(2) had
// it on an old kernel, relative to layers/. Of the latter, one of another root is taken for ours: a
// layer too many costs disk only.
func ShowsLayer(options, layer string) bool {
	relative := filepath.Join(filepath.Base(filepath.Dir(layer)), filepath.Base(layer))
	parts := ":" + strings.NewReplacer("=", ":", ",", ":").Replace(options) + ":"
	return strings.Contains(options, layer) || strings.Contains(parts, ":"+relative+":")
}
