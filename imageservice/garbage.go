package imageservice

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

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
)

// debrisRetention is how long what nobody needs stays for the next try.
const debrisRetention = 10 * time.Minute

// collector deletes what no record lists and no pull needs: at once, or after a while.
type collector struct {
	catalog *catalog
	blobs   *blobs
	layers  *layers.Store
	pins    *pins
	step    func(string)

	mu       sync.Mutex
	sweeping *time.Timer
}

func newCollector(c *catalog, b *blobs, l *layers.Store, p *pins, step func(string)) *collector {
	return &collector{catalog: c, blobs: b, layers: l, pins: p, step: step}
}

// unpin gives pins back. With discard, what then belongs to nobody is deleted; else it stays a while for the next try.
func (g *collector) unpin(keys []string, discard bool) {
	g.pins.give(keys)
	if discard {
		g.collect(keys)
	} else {
		g.sweepLater(debrisRetention)
	}
}

// collect deletes those of keys that belong to nobody.
func (g *collector) collect(keys []string) { g.delete(g.catalog.condemn(keys)) }

// delete removes condemned data. What cannot be deleted is logged and is debris for the next Open.
func (g *collector) delete(keys []string) {
	for _, key := range keys {
		if err := g.deleteOne(key); err != nil {
			log.L.WithError(err).WithField("data", key).Warn("image data could not be deleted")
		}
		g.pins.end([]string{key})
	}
}

func (g *collector) deleteOne(key string) error {
	if d, ok := strings.CutPrefix(key, blobPrefix); ok {
		g.blobs.forget(digest.Digest(d))
		err := g.blobs.delete(context.Background(), digest.Digest(d))
		g.step("remove.blob.gone")
		return err
	}
	if ref, ok := strings.CutPrefix(key, partialPrefix); ok {
		return g.blobs.abort(context.Background(), ref)
	}
	l := g.layers.Take(strings.TrimPrefix(key, layerPrefix))
	if l == nil {
		return nil
	}
	err := g.layers.Remove(l.Dir)
	g.step("remove.layer.gone")
	return err
}

// remove is Images.Remove.
func (g *collector) remove(ctx context.Context, ref string) error {
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
func (g *collector) unlist(ctx context.Context, ref string) (garbage []string, err error) {
	if err := g.catalog.writer.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer g.catalog.writer.Release(1)
	r, garbage, err := g.catalog.unlist(ref)
	if err != nil {
		return nil, err
	}
	if err := g.catalog.erase(r.ID); err != nil {
		g.catalog.relist(r, garbage)
		return nil, fault.Disk(err)
	}
	g.step("remove.unrecorded")
	return garbage, nil
}

// forget takes away every layer that no record lists. The kernel tells a write error once: whoever synced after this would be told that
// all is well. Layers that other pulls are about to list are among them, and those pulls end, see forgotten. The caller has the writer's
// right.
func (g *collector) forget(ctx context.Context) {
	listed := g.catalog.listed()
	doubtful := g.layers.TakeAll(func(key string) bool {
		_, dying := g.pins.state(layerPrefix + key)
		return !dying && !listed[layerPrefix+key]
	})
	for _, l := range doubtful {
		if err := g.layers.Remove(l.Dir); err != nil {
			log.G(ctx).WithError(err).WithField("layer", l.Dir).Warn("layer that may not be on disk could not be deleted")
		}
	}
}

// sweepLater has debris looked for after d; one timer for all.
func (g *collector) sweepLater(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sweeping != nil {
		return
	}
	g.sweeping = time.AfterFunc(d, func() {
		g.mu.Lock()
		g.sweeping = nil
		g.mu.Unlock()
		if g.sweep(time.Now().Add(-debrisRetention)) {
			g.sweepLater(debrisRetention)
		}
	})
}

// sweep deletes what belongs to nobody and was last touched before t. It returns whether some debris was too young.
func (g *collector) sweep(t time.Time) (more bool) {
	ctx := context.Background()
	if !g.catalog.readAgain(ctx) {
		return true
	}
	var keys []string
	listed := g.catalog.listed()
	for key := range g.layers.All() {
		if !listed[layerPrefix+key] {
			keys = append(keys, layerPrefix+key)
		}
	}
	debris, more := g.blobs.debris(ctx, t, listed)
	g.collect(append(keys, debris...))
	g.step("sweep.done")
	return more
}

// dropOrphanLayers deletes the directories no record lists: they were never proven to be on disk. What is mounted stays all the same: a
// container runs on it although its image's record is damaged.
func (g *collector) dropOrphanLayers(ctx context.Context) error {
	entries, err := os.ReadDir(g.layers.Root)
	if err != nil {
		return err
	}
	known := g.catalog.layerDirs()
	known["empty"], known["none"] = true, true
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return err
	}
	mounted := func(dir string) bool {
		return slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool {
			return showsLayer(m.VFSOptions, g.layers.Files(dir))
		})
	}
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			g.layers.Taken(n)
		}
		if known[e.Name()] || !g.catalog.isRead() || mounted(e.Name()) {
			continue
		}
		if err := g.layers.Remove(e.Name()); err != nil {
			log.G(ctx).WithError(err).WithField("layer", e.Name()).Warn("orphan layer could not be deleted")
		}
	}
	return nil
}

// showsLayer says whether the options of an overlay name a layer: by its path, or as mount(2) had it on an old kernel, relative to layers/.
// Of the latter, one of another root is taken for ours: a layer too many costs disk only.
func showsLayer(options, layer string) bool {
	relative := filepath.Join(filepath.Base(filepath.Dir(layer)), filepath.Base(layer))
	parts := ":" + strings.NewReplacer("=", ":", ",", ":").Replace(options) + ":"
	return strings.Contains(options, layer) || strings.Contains(parts, ":"+relative+":")
}
