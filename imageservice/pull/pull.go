// Package pull downloads images: from a reference to a record. It mounts nothing, and leaves
// deletion to package garbage.
package pull

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/garbage"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/registry"
	"github.com/cribox/cribox/imageservice/signature"
	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/telemetry"
)

// Config is the configuration of a Puller.
type Config struct {
	Root         string // the folder of content/ and layers/
	Client       *registry.Client
	Policy       *signature.Policy // which images must be signed; archives need not be
	Limits       layers.Limits
	StallTimeout time.Duration // a pull that moves no bytes for this long is cancelled
	MaxDownloads int           // parallel downloads of one pull
	MaxUnpacks   int           // layers that all pulls unpack in parallel, and as many during download
	Step         step.Hook
	Activity     *activity.Table
	Syncfs       func(fd int) error
}

// Puller pulls images, and holds what pulls share.
type Puller struct {
	cfg     Config
	catalog *catalog.Catalog
	blobs   *content.Blobs
	layers  *layers.Store
	pins    *content.Pins
	garbage *garbage.Collector

	unpacks *semaphore.Weighted // for downloaded blobs; a slot is held only as long as the local disk and CPU need
	alongs  *semaphore.Weighted // for blobs during download; no pull waits for a slot
	claims  keyed.Turns         // the right to produce data, by key; others wait and then look again
	flights flights
}

// New returns a Puller that uses the collector's records and folders.
func New(cfg Config, g *garbage.Collector) *Puller {
	return &Puller{
		cfg: cfg, catalog: g.Catalog, blobs: g.Blobs, layers: g.Layers, pins: g.Pins, garbage: g,
		unpacks: semaphore.NewWeighted(int64(cfg.MaxUnpacks)), alongs: semaphore.NewWeighted(int64(cfg.MaxUnpacks)),
	}
}

// Pull implements Images.Pull.
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
	return u.pull(ctx, t, creds, creds.Key(),
		func(ctx context.Context, prog *progress.Clock) (*registry.Repository, error) {
			return u.cfg.Client.Open(ctx, t, creds, prog)
		})
}

// loads tells the pulls from archives apart: no two of them are the same.
var loads atomic.Int64

// Load pulls t from a repository in this process, for example an archive. name is what errors call
// it.
func (u *Puller) Load(
	ctx context.Context, t imageref.Target, name string, from http.RoundTripper,
) (catalog.Image, error) {
	key := fmt.Sprintf("%s %d", name, loads.Add(1))
	return u.pull(ctx, t, registry.Credentials{}, key,
		func(_ context.Context, prog *progress.Clock) (*registry.Repository, error) {
			return registry.Local(t, name, from, prog), nil
		})
}

// opener connects a pull to its repository.
type opener func(context.Context, *progress.Clock) (*registry.Repository, error)

// pull joins the pull of t with this key, or begins it.
func (u *Puller) pull(
	ctx context.Context, t imageref.Target, creds registry.Credentials, key string, open opener,
) (catalog.Image, error) {
	img, err := u.flights.do(ctx, t, key, func(ctx context.Context, f *flight) { u.fly(ctx, f, creds, open) })
	if err != nil && err == ctx.Err() {
		err = fmt.Errorf("pull %s: %w", t, err)
	}
	return img, err
}

// Waiting returns the number of callers that wait for each pull in progress.
func (u *Puller) Waiting() []int { return u.flights.waiting() }

// Pulls returns the pulls in progress, those that began first before the others.
func (u *Puller) Pulls() []Status {
	all := u.flights.list()
	for _, s := range u.cfg.Activity.Running() {
		for i := range all {
			if s.Kind == "image" && s.ID == all[i].Ref {
				all[i].Doing = s.Running
			}
		}
	}
	return all
}

// fly runs a pull, and sets the flight's result.
func (u *Puller) fly(ctx context.Context, f *flight, creds registry.Credentials, open opener) {
	t := f.ref
	f.err = errdefs.ErrAborted // stays if the goroutine ends early (runtime.Goexit)
	ctx = u.cfg.Activity.About(ctx, activity.Subject{Kind: "image", ID: t.String(), Name: t.String()})
	defer u.cfg.Activity.Forget("image", t.String())
	ctx = activity.Moving(ctx, f.prog.Moved.Load)
	watch, unwatch := context.WithCancel(ctx)
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("image", t.String()).Errorf("panic during a pull: %v\n%s", p, debug.Stack())
			f.err = fmt.Errorf("pull %s: %w", t, errdefs.ErrInternal)
		}
		unwatch()
	}()
	p := &pull{by: u, ref: t, open: open, prog: &f.prog, held: &holding{pins: u.pins}, moved: unwatch}
	go p.prog.Watch(watch, u.cfg.StallTimeout, func() {
		err := fault.Unavailable(fmt.Errorf("no progress for %s at %s", u.cfg.StallTimeout, p.prog.Where()))
		u.flights.giveUp(f, pullError(t.String(), err), err)
	})
	var img catalog.Image
	err := telemetry.Part(ctx, "image.pull", func(ctx context.Context) (err error) {
		img, err = p.run(ctx)
		return err
	})
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	telemetry.Add(ctx, telemetry.Pulls, resultOf(err), 1)
	if err != nil {
		if errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
			err = fmt.Errorf("%w (%s)", err, creds.Describe())
		}
		err = pullError(t.String(), err)
	}
	f.img, f.err = img, err
}

// claim takes the claim on key. The wait does not count as stall time.
func (u *Puller) claim(ctx context.Context, prog *progress.Clock, key string) (release func(), err error) {
	if release, ok := u.claims.Try(key); ok {
		return release, nil
	}
	err = activity.Wait(ctx, "waiting for another pull of "+key, func(ctx context.Context) error {
		return prog.Waiting(func() (err error) {
			release, err = u.claims.Take(ctx, key)
			return err
		})
	})
	return release, err
}

// pull is one pull, from a reference to a record.
type pull struct {
	by    *Puller
	ref   imageref.Target
	open  opener
	prog  *progress.Clock
	moved func() // ends the stall watch
	reg   *registry.Repository
	held  *holding
}

// contents are the data of a pull after everything was downloaded.
type contents struct {
	root     ocispec.Descriptor // the document that the reference points to
	manifest ocispec.Descriptor
	doc      *ocispec.Manifest
	config   ocispec.Image
	layers   []*layers.Layer // bottom first
}

func (p *pull) run(ctx context.Context) (img catalog.Image, err error) {
	defer func() {
		// Delete the data if it is wrong, because a retry would get the same bytes, or if the disk
		// is full. Otherwise keep it for a retry.
		full := errors.Is(err, errdefs.ErrResourceExhausted)
		p.by.garbage.Unpin(p.held.keys, err == nil || full || fault.IsRefused(err))
	}()
	failures := p.by.garbage.Failures()
	// Opened before the first write, so that syncfs reports every write error since then.
	disk, err := content.OpenDisk(p.by.cfg.Root)
	if err != nil {
		return catalog.Image{}, err
	}
	defer disk.Close()
	if p.reg, err = p.open(ctx, p.prog); err != nil {
		return catalog.Image{}, err
	}
	defer p.reg.Close()
	var got contents
	err = activity.Do(ctx, "asking "+p.ref.Domain+" for the manifest", func(ctx context.Context) error {
		return p.prog.Working(func() (err error) {
			got, err = newResolver(p).documents(ctx)
			return err
		})
	})
	if err != nil {
		return catalog.Image{}, err
	}
	proved := p.by.catalog.Pulled(got.doc.Config.Digest.String(), p.ref.Repository()+"@"+got.root.Digest.String())
	if err := p.fetchLayers(ctx, newFetcher(p, proved), &got); err != nil {
		return catalog.Image{}, err
	}
	p.moved()
	err = activity.Do(ctx, "writing the record", func(ctx context.Context) error {
		img, err = p.commit(ctx, got, disk, failures)
		return err
	})
	return img, err
}

// fetchLayers downloads and unpacks the layers, several in parallel.
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

// commit makes the image durable and lists it (I10). failures are the failed syncs before the pull.
func (p *pull) commit(ctx context.Context, got contents, disk *content.Disk, failures int64) (catalog.Image, error) {
	var unsynced error
	proven := p.proven(got)
	if !proven {
		sync := func(context.Context) error { return disk.Sync(p.by.cfg.Syncfs) }
		if unsynced = activity.Do(ctx, "waiting for the disk (sync)", sync); unsynced == nil {
			p.by.cfg.Step.Pass("pull.synced")
		}
	}
	if unsynced != nil {
		ctx = context.WithoutCancel(ctx) // the clean-up below must not be cancelled; Writer is never held during network I/O
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
	if !proven && p.by.garbage.Failures() != failures {
		return catalog.Image{}, fmt.Errorf("the sync of another pull failed, and its data was deleted; pull again: %w",
			errdefs.ErrAborted)
	}
	r := p.newRecord(got)
	old, changed, garbage := c.Merge(r, p.ref, got.root.Digest)
	if !changed {
		return r.Image(c.Pinned.Match), nil
	}
	if err := c.Write(r); err != nil {
		return catalog.Image{}, fmt.Errorf("write image record: %w", err)
	}
	p.by.cfg.Step.Pass("pull.recorded")
	c.Put(r, old)
	if old != nil {
		// The new record has the higher serial and so already owns the tag; this saves Open the
		// decision.
		if err := c.Write(old); err != nil {
			log.G(ctx).WithError(err).WithField("image", old.ID).Warn("cannot update the record of the image that lost its tag")
		}
		p.by.cfg.Step.Pass("pull.moved")
	}
	p.by.garbage.Collect((&catalog.Record{Blobs: garbage}).Keys())
	return r.Image(c.Pinned.Match), nil
}

// proven reports whether records already list all data of the image, which means that it was
// synced. The pins of this pull keep it from being deleted meanwhile.
func (p *pull) proven(got contents) bool {
	listed := p.by.catalog.Listed()
	for _, key := range p.newRecord(got).Keys() {
		if !listed[key] {
			return false
		}
	}
	return true
}

// newRecord returns a record with what this pull knows about the image.
func (p *pull) newRecord(got contents) *catalog.Record {
	r := &catalog.Record{ID: string(got.doc.Config.Digest), Config: got.config,
		Size: got.manifest.Size + got.doc.Config.Size}
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
