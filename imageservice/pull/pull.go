// Package pull brings images here, from a reference to a record; it deletes and mounts nothing.
package pull

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/garbage"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/registry"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/keyed"
)

// Config is what a puller needs to know.
type Config struct {
	Root         string // the folder that content/ and layers/ are in
	Client       *registry.Client
	Limits       layers.Limits
	StallTimeout time.Duration // a pull that moves no bytes for so long is cancelled
	MaxDownloads int           // blobs fetched in parallel by one pull
	MaxUnpacks   int           // layers unpacked in parallel by all pulls, and as many more while they arrive
	Step         func(name string)
	Syncfs       func(fd int) error
}

// Puller pulls images; what pulls share is here.
type Puller struct {
	cfg     Config
	catalog *catalog.Catalog
	blobs   *content.Blobs
	layers  *layers.Store
	pins    *content.Pins
	garbage *garbage.Collector

	unpacks *semaphore.Weighted // of blobs that are here: each is given back as soon as our own disk and CPU allow
	alongs  *semaphore.Weighted // of blobs that are arriving: nobody waits for one
	claims  keyed.Turns         // the right to produce a thing, by key: the others wait for it and look again
	flights flights
}

// New returns a puller of images into the folders and records that a collector looks after.
func New(cfg Config, g *garbage.Collector) *Puller {
	return &Puller{
		cfg: cfg, catalog: g.Catalog, blobs: g.Blobs, layers: g.Layers, pins: g.Pins, garbage: g,
		unpacks: semaphore.NewWeighted(int64(cfg.MaxUnpacks)), alongs: semaphore.NewWeighted(int64(cfg.MaxUnpacks)),
	}
}

// Pull is Images.Pull.
func (u *Puller) Pull(ctx context.Context, ref string, auth *registry.Auth) (catalog.Image, error) {
	t, err := imageref.Parse(ref)
	if err != nil {
		return catalog.Image{}, err
	}
	creds, err := registry.NewCredentials(auth, t)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return catalog.Image{}, fmt.Errorf("pull %s: %w", t, err)
	}
	img, err := u.flights.do(ctx, t.String()+" "+creds.Key(), func(ctx context.Context, f *flight) { u.fly(ctx, f, t, creds) })
	if err != nil && err == ctx.Err() {
		err = fmt.Errorf("pull %s: %w", t, err)
	}
	return img, err
}

// Waiting returns how many callers wait for each pull under way.
func (u *Puller) Waiting() []int { return u.flights.waiting() }

// fly runs a pull to its end, whatever that is.
func (u *Puller) fly(ctx context.Context, f *flight, t imageref.Target, creds registry.Credentials) {
	f.err = errdefs.ErrAborted // what remains if the goroutine is ended from within
	watch, unwatch := context.WithCancel(ctx)
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("image", t.String()).Errorf("panic during a pull: %v\n%s", p, debug.Stack())
			f.err = fmt.Errorf("pull %s: %w", t, errdefs.ErrInternal)
		}
		unwatch()
	}()
	p := &pull{by: u, ref: t, creds: creds, held: &holding{pins: u.pins}, moved: unwatch}
	go p.prog.Watch(watch, u.cfg.StallTimeout, func() {
		err := fault.Unavailable(fmt.Errorf("nothing moved for %s at %s", u.cfg.StallTimeout, p.prog.Where()))
		u.flights.giveUp(f, pullError(t.String(), err), err)
	})
	img, err := p.run(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
			err = fmt.Errorf("%w (%s)", err, creds.Describe())
		}
		err = pullError(t.String(), err)
	}
	f.img, f.err = img, err
}

// claim takes a key with the stall clock of a pull stopped.
func (u *Puller) claim(ctx context.Context, prog *progress.Clock, key string) (release func(), err error) {
	err = prog.Waiting(func() (err error) {
		release, err = u.claims.Take(ctx, key)
		return err
	})
	return release, err
}

// pull is one pull, from a reference to a record.
type pull struct {
	by    *Puller
	ref   imageref.Target
	creds registry.Credentials
	prog  progress.Clock
	moved func() // ends the stall watch
	reg   *registry.Repository
	held  *holding
}

// content of a pull once it is all here.
type contents struct {
	root     ocispec.Descriptor // what the reference points to
	manifest ocispec.Descriptor
	doc      *ocispec.Manifest
	config   ocispec.Image
	layers   []*layers.Layer // bottom first
}

func (p *pull) run(ctx context.Context) (img catalog.Image, err error) {
	defer func() {
		// Bytes that are wrong will be wrong again, and a full disk wants them gone. Others wait
		// for the next try.
		full := errors.Is(err, errdefs.ErrResourceExhausted)
		p.by.garbage.Unpin(p.held.keys, err == nil || full || fault.IsRefused(err))
	}()
	// Opened before the first write, so that syncfs reports every write error since.
	disk, err := content.OpenDisk(p.by.cfg.Root)
	if err != nil {
		return catalog.Image{}, err
	}
	defer disk.Close()
	if p.reg, err = p.by.cfg.Client.Open(ctx, p.ref, p.creds, &p.prog); err != nil {
		return catalog.Image{}, err
	}
	defer p.reg.Close()
	var got contents
	err = p.prog.Working(func() (err error) {
		got, err = newResolver(p).documents(ctx)
		return err
	})
	if err != nil {
		return catalog.Image{}, err
	}
	proved := p.by.catalog.Pulled(got.doc.Config.Digest.String(), p.ref.Repository()+"@"+got.root.Digest.String())
	if err := p.fetchLayers(ctx, newFetcher(p, proved), &got); err != nil {
		return catalog.Image{}, err
	}
	p.moved()
	return p.commit(ctx, got, disk)
}

// fetchLayers downloads and unpacks, several layers at a time.
func (p *pull) fetchLayers(ctx context.Context, ft *fetcher, got *contents) error {
	got.layers = make([]*layers.Layer, len(got.doc.Layers))
	g, gctx := errgroup.WithContext(ctx)
	for i := range got.doc.Layers {
		g.Go(func() error {
			name := fmt.Sprintf("layer %d/%d %s", i+1, len(got.layers), imageref.Short(got.doc.Layers[i].Digest))
			return guard.Call(ctx, name, func() error {
				return p.prog.Working(func() (err error) {
					got.layers[i], err = ft.layer(gctx, got.doc.Layers[i], got.config.RootFS.DiffIDs[i], name)
					return err
				})
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return p.prog.Working(func() error { return ft.fixLayers(ctx, got) })
}

// commit makes the image durable and lists it (I10).
func (p *pull) commit(ctx context.Context, got contents, disk *content.Disk) (catalog.Image, error) {
	var unsynced error
	if !p.proven(got) {
		if unsynced = disk.Sync(p.by.cfg.Syncfs); unsynced == nil {
			p.by.cfg.Step("pull.synced")
		}
	}
	if unsynced != nil {
		ctx = context.WithoutCancel(ctx) // what follows must be done; the writer never waits for a registry
	}
	c := p.by.catalog
	if err := c.Writer.Acquire(ctx, 1); err != nil {
		return catalog.Image{}, err
	}
	defer c.Writer.Release(1)
	if unsynced != nil {
		p.by.garbage.Forget(ctx)
		return catalog.Image{}, fmt.Errorf("sync image data: %w", fault.Disk(unsynced))
	}
	if lost := p.forgotten(got); lost != nil {
		return catalog.Image{}, fmt.Errorf("layer %s went with a sync that failed, pull again: %w", imageref.Short(lost.DiffID), errdefs.ErrAborted)
	}
	r := p.newRecord(got)
	old, changed, garbage := c.Merge(r, p.ref, got.root.Digest)
	if !changed {
		return r.Image(c.Pinned), nil
	}
	if err := c.Write(r); err != nil {
		return catalog.Image{}, fmt.Errorf("write image record: %w", err)
	}
	p.by.cfg.Step("pull.recorded")
	c.Put(r, old)
	if old != nil {
		// The new record's later serial has already won the tag; this only saves Open the decision.
		if err := c.Write(old); err != nil {
			log.G(ctx).WithError(err).WithField("image", old.ID).Warn("record of the image that lost its tag is not rewritten")
		}
		p.by.cfg.Step("pull.moved")
	}
	p.by.garbage.Collect((&catalog.Record{Blobs: garbage}).Keys())
	return r.Image(c.Pinned), nil
}

// forgotten returns a layer that is not known any more, nil if all are. The caller has the writer's
// right, so that it stays so.
func (p *pull) forgotten(got contents) *layers.Layer {
	for _, l := range got.layers {
		if known := p.by.layers.ByKey(l.Key()); known == nil || known.Dir != l.Dir {
			return l
		}
	}
	return nil
}

// proven tells whether records list every piece already: then all of it was synced before. Our pins
// keep it from going meanwhile.
func (p *pull) proven(got contents) bool {
	listed := p.by.catalog.Listed()
	for _, key := range p.newRecord(got).Keys() {
		if !listed[key] {
			return false
		}
	}
	return true
}

// newRecord is what this pull alone knows of the image.
func (p *pull) newRecord(got contents) *catalog.Record {
	r := &catalog.Record{ID: string(got.doc.Config.Digest), Config: got.config, Size: got.manifest.Size + got.doc.Config.Size}
	counted := map[digest.Digest]bool{}
	for _, d := range got.doc.Layers {
		if !counted[d.Digest] {
			r.Size += d.Size
		}
		counted[d.Digest] = true
	}
	for _, l := range got.layers {
		r.Layers = append(r.Layers, *l)
	}
	for _, b := range p.held.blobs {
		b.DiffID = p.by.blobs.UnpacksTo(b.Digest)
		r.Blobs = append(r.Blobs, b)
	}
	return r
}
