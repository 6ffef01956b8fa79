// Package garbage deletes data that no record lists and no pull needs.
package garbage

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	"github.com/cribox/cribox/internal/step"
)

// DebrisRetention is how long unused data is kept for a retry.
const DebrisRetention = 10 * time.Minute

// Collector deletes data that no record lists and no pull needs, at once or after DebrisRetention.
type Collector struct {
	Catalog *catalog.Catalog
	Blobs   *content.Blobs
	Layers  *layers.Store
	Pins    *content.Pins
	step    step.Hook

	failures atomic.Int64 // syncs that have failed

	mu       sync.Mutex
	sweeping *time.Timer
	replaced map[string]string // folders of layers that were repaired, with their keys, see Replaced
}

func New(c *catalog.Catalog, b *content.Blobs, l *layers.Store, p *content.Pins, step step.Hook) *Collector {
	return &Collector{Catalog: c, Blobs: b, Layers: l, Pins: p, step: step}
}

// Unpin releases pins. With discard, data that is now unused is deleted at once, otherwise after
// DebrisRetention.
func (g *Collector) Unpin(keys []string, discard bool) {
	g.Pins.Give(keys)
	if discard {
		g.Collect(keys)
	} else {
		g.SweepLater(DebrisRetention)
	}
}

// Collect deletes the unused data of keys.
func (g *Collector) Collect(keys []string) { g.delete(g.Catalog.Condemn(keys)) }

// delete deletes the data of condemned keys. If that fails, it logs the error; the next Open or
// sweep retries.
func (g *Collector) delete(keys []string) {
	for _, key := range keys {
		if err := g.deleteOne(key); err != nil {
			log.L.WithError(err).WithField("data", key).Warn("cannot delete image data")
		}
		g.Pins.End([]string{key})
	}
}

func (g *Collector) deleteOne(key string) error {
	if d, ok := strings.CutPrefix(key, content.BlobPrefix); ok {
		g.Blobs.Forget(digest.Digest(d))
		err := g.Blobs.Delete(digest.Digest(d))
		g.step.Pass("remove.blob.gone")
		return err
	}
	if ref, ok := strings.CutPrefix(key, content.PartialPrefix); ok {
		return g.Blobs.Abort(ref)
	}
	l := g.Layers.Take(strings.TrimPrefix(key, content.LayerPrefix))
	if l == nil {
		return nil
	}
	err := g.Layers.Remove(l.Dir)
	g.step.Pass("remove.layer.gone")
	return err
}

// Remove implements Images.Remove.
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

// unlist deletes an image's record, and returns the keys of the data to delete.
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
	g.step.Pass("remove.unrecorded")
	return garbage, nil
}

// Forget deletes every layer, blob and partial download that no record lists, after a sync has
// failed. The kernel reports a write error only once, so a later sync would wrongly report success.
// This includes data of pulls in progress, which then fail, see Failures. The caller holds
// Catalog.Writer.
func (g *Collector) Forget(ctx context.Context) {
	g.failures.Add(1)
	listed := g.Catalog.Listed()
	doubtful := func(key string) bool {
		_, dying := g.Pins.State(key)
		return !dying && !listed[key]
	}
	for _, l := range g.Layers.TakeAll(func(key string) bool { return doubtful(content.LayerPrefix + key) }) {
		if err := g.Layers.Remove(l.Dir); err != nil {
			log.G(ctx).WithError(err).WithField("layer", l.Dir).Warn("cannot delete a layer that may not be completely on disk")
		}
	}
	unlisted, _ := g.Blobs.Debris(time.Now().Add(DebrisRetention), listed)
	for _, key := range unlisted {
		if !doubtful(key) {
			continue
		}
		if err := g.deleteOne(key); err != nil {
			log.G(ctx).WithError(err).WithField("data", key).Warn("download that may not be on disk could not be deleted")
		}
	}
}

// Failures counts the syncs that have failed. A pull that began at another count must not be
// recorded: it may rely on data that Forget has deleted.
func (g *Collector) Failures() int64 { return g.failures.Load() }

// SweepLater runs Sweep after d, unless a sweep is already scheduled.
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

// Sweep deletes unused data that was last changed before t. It reports whether there is newer
// unused data.
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
	debris, more := g.Blobs.Debris(t, listed)
	g.Collect(append(keys, debris...))
	more = g.dropReplaced(ctx) || more
	g.step.Pass("sweep.done")
	return more
}

// Replaced has the folder of a damaged layer deleted once no container shows it. key is the layer's.
func (g *Collector) Replaced(dir, key string) {
	g.mu.Lock()
	if g.replaced == nil {
		g.replaced = map[string]string{}
	}
	g.replaced[dir] = key
	g.mu.Unlock()
	g.SweepLater(DebrisRetention)
}

// ReplacedLayers returns the folders of damaged layers that wait for their containers to end.
func (g *Collector) ReplacedLayers() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.replaced))
}

// dropReplaced deletes the folders of damaged layers that no record lists, no container shows and no
// pull may have found before they were replaced. It reports whether some are left.
func (g *Collector) dropReplaced(ctx context.Context) (left bool) {
	g.mu.Lock()
	waiting := maps.Clone(g.replaced)
	g.mu.Unlock()
	if len(waiting) == 0 {
		return false
	}
	mounted, err := g.mountedLayers()
	if err != nil {
		log.G(ctx).WithError(err).Warn("cannot find out which layers are mounted; the damaged ones stay for now")
		return true
	}
	listed := g.Catalog.LayerDirs()
	for dir, key := range waiting {
		if users, _ := g.Pins.State(content.LayerPrefix + key); users > 0 || listed[dir] || mounted(dir) {
			left = true
			continue
		}
		if err := g.Layers.Remove(dir); err != nil {
			log.G(ctx).WithError(err).WithField("layer", dir).Warn("cannot delete a damaged layer")
			left = true
			continue
		}
		g.mu.Lock()
		delete(g.replaced, dir)
		g.mu.Unlock()
	}
	return left
}

// mountedLayers returns a function that reports whether a mount shows the folder of a layer.
func (g *Collector) mountedLayers() (func(dir string) bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return nil, err
	}
	return func(dir string) bool {
		return slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool {
			return ShowsLayer(m.VFSOptions, g.Layers.Files(dir))
		})
	}, nil
}

// DropOrphanLayers deletes the folders in layers/ that no record lists, because they may be
// incomplete on disk. It keeps layers that are mounted: a container may run on them although its
// image's record is damaged.
func (g *Collector) DropOrphanLayers(ctx context.Context) error {
	entries, err := os.ReadDir(g.Layers.Root)
	if err != nil {
		return err
	}
	known := g.Catalog.LayerDirs()
	known["empty"], known["none"] = true, true
	mounted, err := g.mountedLayers()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			g.Layers.Taken(n)
		}
		if known[e.Name()] || !g.Catalog.IsRead() || mounted(e.Name()) {
			continue
		}
		if err := g.Layers.Remove(e.Name()); err != nil {
			log.G(ctx).WithError(err).WithField("layer", e.Name()).Warn("cannot delete an unused layer")
		}
	}
	return nil
}

// ShowsLayer reports whether the options of an overlay mount name a layer, by its absolute path or,
// on an old kernel, by its path relative to layers/. A relative path may belong to another root;
// then the layer is kept without need, which costs only disk space.
func ShowsLayer(options, layer string) bool {
	relative := filepath.Join(filepath.Base(filepath.Dir(layer)), filepath.Base(layer))
	parts := ":" + strings.NewReplacer("=", ":", ",", ":").Replace(options) + ":"
	return strings.Contains(options, layer) || strings.Contains(parts, ":"+relative+":")
}
