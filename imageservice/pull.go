package imageservice

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/keyed"
)

// puller pulls images; what pulls share is here.
type puller struct {
	cfg     Config
	catalog *catalog
	blobs   *blobs
	layers  *layerStore
	pins    *pins
	garbage *collector
	syncfs  func(fd int) error

	unpacks  *semaphore.Weighted // of blobs that are here: each is given back as soon as our own disk and CPU allow
	alongs   *semaphore.Weighted // of blobs that are arriving: nobody waits for one
	claims   keyed.Turns         // the right to produce a thing, by key: the others wait for it and look again
	troubled troubledHosts
	flights  flights
}

// pull is Images.Pull.
func (u *puller) pull(ctx context.Context, ref string, auth *Auth) (Image, error) {
	t, err := parseTarget(ref)
	if err != nil {
		return Image{}, err
	}
	creds, err := credentialsFor(auth, t)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", t, err)
	}
	img, err := u.flights.do(ctx, t.String()+" "+creds.key(), func(ctx context.Context, f *flight) { u.fly(ctx, f, t, creds) })
	if err != nil && err == ctx.Err() {
		err = fmt.Errorf("pull %s: %w", t, err)
	}
	return img, err
}

// fly runs a pull to its end, whatever that is.
func (u *puller) fly(ctx context.Context, f *flight, t target, creds credentials) {
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
	go p.prog.watch(watch, u.cfg.StallTimeout, func() {
		err := unavailable{fmt.Errorf("nothing moved for %s at %s", u.cfg.StallTimeout, p.prog.where())}
		u.flights.giveUp(f, pullError(t.String(), err), err)
	})
	img, err := p.run(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
			err = fmt.Errorf("%w (%s)", err, creds.told())
		}
		err = pullError(t.String(), err)
	}
	f.img, f.err = img, err
}

// claim takes a key with the stall clock of a pull stopped.
func (u *puller) claim(ctx context.Context, prog *progress, key string) (release func(), err error) {
	err = prog.waiting(func() (err error) {
		release, err = u.claims.Take(ctx, key)
		return err
	})
	return release, err
}

// pull is one pull, from a reference to a record.
type pull struct {
	by    *puller
	ref   target
	creds credentials
	prog  progress
	moved func() // ends the stall watch
	reg   *registry
	held  *holding
}

// content of a pull once it is all here.
type contents struct {
	root     ocispec.Descriptor // what the reference points to
	manifest ocispec.Descriptor
	doc      *ocispec.Manifest
	config   ocispec.Image
	layers   []*layer // bottom first
}

func (p *pull) run(ctx context.Context) (img Image, err error) {
	defer func() {
		// Bytes that are wrong will be wrong again, and a full disk wants them gone. Others wait for the next try.
		var wrong contentError
		full := errors.Is(err, errdefs.ErrResourceExhausted)
		p.by.garbage.unpin(p.held.keys, err == nil || full || errors.As(err, &wrong))
	}()
	// Opened before the first write, so that syncfs reports every write error since.
	disk, err := openDisk(p.by.cfg.Root)
	if err != nil {
		return Image{}, err
	}
	defer disk.close()
	if p.reg, err = p.by.openRegistry(ctx, p.ref, p.creds, &p.prog); err != nil {
		return Image{}, err
	}
	defer p.reg.close()
	var got contents
	err = p.prog.working(func() (err error) {
		got, err = newResolver(p).documents(ctx)
		return err
	})
	if err != nil {
		return Image{}, err
	}
	proved := p.by.catalog.pulled(got.doc.Config.Digest.String(), p.ref.repository()+"@"+got.root.Digest.String())
	if err := p.fetchLayers(ctx, newFetcher(p, proved), &got); err != nil {
		return Image{}, err
	}
	p.moved()
	return p.commit(ctx, got, disk)
}

// fetchLayers downloads and unpacks, several layers at a time.
func (p *pull) fetchLayers(ctx context.Context, ft *fetcher, got *contents) error {
	got.layers = make([]*layer, len(got.doc.Layers))
	g, gctx := errgroup.WithContext(ctx)
	for i := range got.doc.Layers {
		g.Go(func() error {
			name := fmt.Sprintf("layer %d/%d %s", i+1, len(got.layers), short(got.doc.Layers[i].Digest))
			return guard.Call(ctx, name, func() error {
				return p.prog.working(func() (err error) {
					got.layers[i], err = ft.layer(gctx, got.doc.Layers[i], got.config.RootFS.DiffIDs[i], name)
					return err
				})
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return p.prog.working(func() error { return ft.fixLayers(ctx, got) })
}

func short(d digest.Digest) string {
	if s := string(d); len(s) > 19 {
		return s[:19]
	}
	return string(d)
}

// commit makes the image durable and lists it (I10).
func (p *pull) commit(ctx context.Context, got contents, disk *disk) (Image, error) {
	var unsynced error
	if !p.proven(got) {
		if unsynced = disk.sync(p.by.syncfs); unsynced == nil {
			p.by.cfg.Step("pull.synced")
		}
	}
	if unsynced != nil {
		ctx = context.WithoutCancel(ctx) // what follows must be done; the writer never waits for a registry
	}
	c := p.by.catalog
	if err := c.writer.Acquire(ctx, 1); err != nil {
		return Image{}, err
	}
	defer c.writer.Release(1)
	if unsynced != nil {
		p.by.garbage.forget(ctx)
		return Image{}, fmt.Errorf("sync image data: %w", diskError(unsynced))
	}
	if lost := p.forgotten(got); lost != nil {
		return Image{}, fmt.Errorf("layer %s went with a sync that failed, pull again: %w", short(lost.DiffID), errdefs.ErrAborted)
	}
	r := p.newRecord(got)
	old, changed, garbage := c.merge(r, p.ref, got.root.Digest)
	if !changed {
		return r.image(c.pinned), nil
	}
	if err := c.write(r); err != nil {
		return Image{}, fmt.Errorf("write image record: %w", err)
	}
	p.by.cfg.Step("pull.recorded")
	c.put(r, old)
	if old != nil {
		// The new record's later serial has already won the tag; this only saves Open the decision.
		if err := c.write(old); err != nil {
			log.G(ctx).WithError(err).WithField("image", old.ID).Warn("record of the image that lost its tag is not rewritten")
		}
		p.by.cfg.Step("pull.moved")
	}
	p.by.garbage.collect((&record{Blobs: garbage}).keys())
	return r.image(c.pinned), nil
}

// forgotten returns a layer that is not known any more, nil if all are. The caller has the writer's right, so that it stays so.
func (p *pull) forgotten(got contents) *layer {
	for _, l := range got.layers {
		if known := p.by.layers.byKey(l.key()); known == nil || known.Dir != l.Dir {
			return l
		}
	}
	return nil
}

// proven tells whether records list every piece already: then all of it was synced before. Our pins keep it from going meanwhile.
func (p *pull) proven(got contents) bool {
	listed := p.by.catalog.listed()
	for _, key := range p.newRecord(got).keys() {
		if !listed[key] {
			return false
		}
	}
	return true
}

// newRecord is what this pull alone knows of the image.
func (p *pull) newRecord(got contents) *record {
	r := &record{ID: string(got.doc.Config.Digest), config: got.config, Size: got.manifest.Size + got.doc.Config.Size}
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
		b.DiffID = p.by.blobs.unpacksTo(b.Digest)
		r.Blobs = append(r.Blobs, b)
	}
	return r
}
