package imageservice

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cribox/cribox/internal/guard"
)

// flight is a pull under way, shared by everybody who asked for the same reference with the same credentials.
type flight struct {
	key     string
	waiters int  // under Images.mu
	leaving bool // cancelled: a new caller must not join. Under Images.mu
	cancel  context.CancelCauseFunc
	stalled chan struct{} // closed when the flight was given up; stallErr is set before
	done    chan struct{} // closed at the end; img and err are set before

	stallErr error
	img      Image
	err      error
}

var errNobodyWaits = errors.New("nobody waits for this pull any more")

// Pull fetches ref, unpacks it and lists it, or finds that the registry still serves what is listed; the registry is asked every time, so
// the answer is also one about the caller's right to the image. A caller that gives up leaves; the pull goes on for the others and is
// cancelled when nobody is left, keeping for a while what it has.
//
// Errors: ErrInvalidArgument for a bad reference, bad credentials or content that contradicts itself; ErrNotFound (with the list of
// platforms where that is why); ErrUnauthenticated; ErrPermissionDenied; ErrDataLoss when bytes do not have their digest;
// ErrResourceExhausted for a full disk and for content beyond the limits; ErrNotImplemented for formats we do not take; the context's
// error; and, without any class, one that begins with "RegistryUnavailable: ".
func (c *Images) Pull(ctx context.Context, ref string, auth *Auth) (Image, error) {
	t, err := parseTarget(ref)
	if err != nil {
		return Image{}, err
	}
	creds, err := credentialsFor(auth, t)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", t, err)
	}
	if err := ctx.Err(); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", t, err)
	}
	for {
		f, old := c.join(ctx, t, creds)
		if old == nil {
			return c.await(ctx, t, f)
		}
		select {
		case <-old.done: // a cancelled one winds down
		case <-ctx.Done():
			return Image{}, fmt.Errorf("pull %s: %w", t, ctx.Err())
		}
	}
}

// join returns the flight to wait for, or the cancelled one whose end must come first.
func (c *Images) join(ctx context.Context, t target, creds credentials) (f, leaving *flight) {
	key := t.String() + " " + creds.key()
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[key]; f != nil {
		if f.leaving {
			return nil, f
		}
		f.waiters++
		return f, nil
	}
	// The flight is not the caller's: others may join it.
	fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f = &flight{key: key, waiters: 1, cancel: cancel, stalled: make(chan struct{}), done: make(chan struct{})}
	c.flights[key] = f
	go c.fly(fctx, f, t, creds)
	return f, nil
}

// await returns what the flight brings, or leaves it.
func (c *Images) await(ctx context.Context, t target, f *flight) (Image, error) {
	select {
	case <-f.done:
		return f.img, f.err
	case <-f.stalled:
		return Image{}, f.stallErr
	case <-ctx.Done():
	}
	c.mu.Lock()
	f.waiters--
	if f.waiters == 0 {
		f.leaving = true
		f.cancel(errNobodyWaits)
	}
	c.mu.Unlock()
	return Image{}, fmt.Errorf("pull %s: %w", t, ctx.Err())
}

// fly runs a pull to its end, whatever that is.
func (c *Images) fly(ctx context.Context, f *flight, t target, creds credentials) {
	p := &pull{Images: c, target: t, creds: creds, want: platforms.Only(platforms.DefaultSpec())}
	p.read.most, p.written.most = c.cfg.Limits.ImageBytes, c.cfg.Limits.ImageBytes
	f.err = errdefs.ErrAborted // what remains if the goroutine is ended from within
	watch, unwatch := context.WithCancel(ctx)
	p.moved = unwatch
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("image", t.String()).Errorf("panic during a pull: %v\n%s", p, debug.Stack())
			f.err = fmt.Errorf("pull %s: %w", t, errdefs.ErrInternal)
		}
		unwatch()
		f.cancel(nil)
		c.mu.Lock()
		delete(c.flights, f.key)
		c.mu.Unlock()
		close(f.done)
	}()
	go p.prog.watch(watch, c.cfg.StallTimeout, func() {
		err := unavailable{fmt.Errorf("nothing moved for %s at %s", c.cfg.StallTimeout, p.prog.where())}
		c.mu.Lock()
		f.leaving = true
		f.stallErr = pullError(t.String(), err)
		c.mu.Unlock()
		close(f.stalled)
		f.cancel(err)
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

// pull is the state of one flight.
type pull struct {
	*Images
	target
	creds credentials
	want  platforms.MatchComparer
	prog  progress
	moved func() // ends the stall watch
	reg   *registry

	proved        bool   // the whole image is recorded for this repository
	looks         int    // into layers, for directories that were made up
	read, written budget // by the unpackers: bytes of tars, and of files, whose holes are in no tar

	mu    sync.Mutex
	keys  []string // pinned
	blobs []blob   // everything this image consists of
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
		p.unpin(p.keys, err == nil || full || errors.As(err, &wrong))
	}()
	// Opened before the first write, so that syncfs reports every write error since.
	disk, err := openDisk(p.cfg.Root)
	if err != nil {
		return Image{}, err
	}
	defer disk.close()
	if p.reg, err = p.openRegistry(ctx, p.target, p.creds, &p.prog); err != nil {
		return Image{}, err
	}
	defer p.reg.close()
	var got contents
	err = p.prog.working(func() (err error) {
		got, err = p.documents(ctx)
		return err
	})
	if err != nil {
		return Image{}, err
	}
	p.proved = p.pulledBefore(got)
	if err := p.fetchLayers(ctx, &got); err != nil {
		return Image{}, err
	}
	p.moved()
	return p.commit(ctx, got, disk)
}

// fetchLayers downloads and unpacks, several layers at a time.
func (p *pull) fetchLayers(ctx context.Context, got *contents) error {
	got.layers = make([]*layer, len(got.doc.Layers))
	g, gctx := errgroup.WithContext(ctx)
	downloads := make(slots, p.cfg.MaxDownloads)
	for i := range got.doc.Layers {
		g.Go(func() error {
			name := fmt.Sprintf("layer %d/%d %s", i+1, len(got.layers), short(got.doc.Layers[i].Digest))
			return guard.Call(ctx, name, func() error {
				return p.prog.working(func() (err error) {
					got.layers[i], err = p.layer(gctx, downloads, got.doc.Layers[i], got.config.RootFS.DiffIDs[i], name)
					return err
				})
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return p.prog.working(func() error { return p.fixLayers(ctx, got) })
}

// fixLayers settles what made-up directories look like, bottom up.
func (p *pull) fixLayers(ctx context.Context, got *contents) error {
	var total uint64
	var below []*layer // topmost first
	for i, l := range got.layers {
		if total += l.Bytes; total > uint64(p.cfg.Limits.ImageBytes) {
			return refuse(errdefs.ErrResourceExhausted, "image unpacks to more than %d bytes (image_size_max)", p.cfg.Limits.ImageBytes)
		}
		implied, err := p.readImplied(l.Dir)
		if err != nil {
			return err
		}
		fixes, err := p.fixesFor(ctx, implied, below)
		if err != nil {
			return err
		}
		if l.Fixes != fixesKey(fixes) {
			if l, err = p.unpackBlob(ctx, got.doc.Layers[i], l.DiffID, fixes); err != nil {
				return err
			}
			got.layers[i] = l
		}
		below = slices.Insert(below, 0, l)
	}
	return nil
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
		if unsynced = disk.sync(p.syncfs); unsynced == nil {
			p.step("pull.synced")
		}
	}
	if unsynced != nil {
		ctx = context.WithoutCancel(ctx) // what follows must be done; the writer never waits for a stranger
	}
	if err := p.writer.take(ctx); err != nil {
		return Image{}, err
	}
	defer p.writer.give()
	if unsynced != nil {
		p.forget(ctx)
		return Image{}, fmt.Errorf("sync image data: %w", diskError(unsynced))
	}
	if lost := p.forgotten(got); lost != nil {
		return Image{}, fmt.Errorf("layer %s went with a sync that failed, pull again: %w", short(lost.DiffID), errdefs.ErrAborted)
	}
	r, old, changed, garbage := p.newRecord(got)
	if !changed {
		return r.image(p.pinned), nil
	}
	if err := p.writeRecord(r); err != nil {
		return Image{}, fmt.Errorf("write image record: %w", err)
	}
	p.step("pull.recorded")
	p.Images.mu.Lock()
	p.records[r.ID] = r
	for _, t := range r.Tags {
		p.names[t.Name] = r.ID
	}
	if old != nil {
		p.records[old.ID] = old
	}
	p.Images.mu.Unlock()
	if old != nil {
		// The new record's later serial has already won the tag; this only saves Open the decision.
		if err := p.writeRecord(old); err != nil {
			log.G(ctx).WithError(err).WithField("image", old.ID).Warn("record of the image that lost its tag is not rewritten")
		}
		p.step("pull.moved")
	}
	p.dropBlobs(garbage)
	return r.image(p.pinned), nil
}

// forget takes away every layer that no record lists. The kernel tells a write error once: whoever synced after this would be told that all
// is well. Layers that other pulls are about to list are among them, and those pulls end, see forgotten. The caller has the writer's right.
func (c *Images) forget(ctx context.Context) {
	c.mu.Lock()
	listed := c.listed()
	var doubtful []*layer
	for key, l := range c.layers {
		if _, dying := c.dying[layerPrefix+key]; !dying && !listed[layerPrefix+key] {
			doubtful = append(doubtful, l)
			delete(c.layers, key)
		}
	}
	c.mu.Unlock()
	for _, l := range doubtful {
		if err := removeTree(c.layerDir(l.Dir)); err != nil {
			log.G(ctx).WithError(err).WithField("layer", l.Dir).Warn("layer that may not be on disk could not be deleted")
		}
	}
}

// forgotten returns a layer that is not known any more, nil if all are. The caller has the writer's right, so that it stays so.
func (p *pull) forgotten(got contents) *layer {
	p.Images.mu.Lock()
	defer p.Images.mu.Unlock()
	for _, l := range got.layers {
		if known := p.layers[l.key()]; known == nil || known.Dir != l.Dir {
			return l
		}
	}
	return nil
}

// proven tells whether records list every piece already: then all of it was synced before. Our pins keep it from going meanwhile.
func (p *pull) proven(got contents) bool {
	p.Images.mu.Lock()
	defer p.Images.mu.Unlock()
	listed := p.listed()
	for _, b := range p.blobs {
		if !listed[blobKey(b.Digest)] {
			return false
		}
	}
	for _, l := range got.layers {
		if !listed[layerPrefix+l.key()] {
			return false
		}
	}
	return true
}

// newRecord merges what we have with the record there may be. old is the record, without the tag, of the image that loses it. garbage are
// blobs that the image does not need any more. The caller has the writer's right, so that records do not change meanwhile.
func (p *pull) newRecord(got contents) (r, old *record, changed bool, garbage []blob) {
	p.Images.mu.Lock()
	defer p.Images.mu.Unlock()
	id := string(got.doc.Config.Digest)
	r = &record{ID: id, config: got.config, Size: got.manifest.Size + got.doc.Config.Size}
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
	have := p.records[id]
	if have != nil {
		r.Tags, r.Digests, r.ByDigest, r.Blobs = slices.Clone(have.Tags), slices.Clone(have.Digests), slices.Clone(have.ByDigest), slices.Clone(have.Blobs)
	}
	changed = have == nil || !slices.Equal(have.Layers, r.Layers)
	for i := range p.blobs {
		p.blobs[i].DiffID = p.diffIDs[p.blobs[i].Digest]
		if r.addBlob(p.blobs[i]) {
			changed = true
		}
	}
	if r.addDigest(p.repository()+"@"+got.root.Digest.String(), p.tag == "") {
		changed = true
	}
	if p.tag == "" {
		return r, nil, changed, nil
	}
	if r.setRoot(p.String(), got.root.Digest) {
		changed = true
	} else if !r.hasTag(p.String()) {
		p.serial++
		r.Tags = append(r.Tags, tag{Name: p.String(), Serial: p.serial, Root: got.root.Digest})
		if loser := p.records[p.names[p.String()]]; loser != nil && loser.ID != id {
			old = loser.withoutTag(p.String())
		}
		changed = true
	}
	if garbage = r.forgetRoots(p.repository(), got.root.Digest, p.blobs); len(garbage) > 0 {
		changed = true
	}
	return r, old, changed, garbage
}

// dropBlobs deletes what a record no longer lists and nobody else needs.
func (c *Images) dropBlobs(blobs []blob) {
	if len(blobs) == 0 {
		return
	}
	var keys []string
	for _, b := range blobs {
		keys = append(keys, blobKey(b.Digest))
	}
	c.mu.Lock()
	garbage := c.condemn(keys)
	c.mu.Unlock()
	c.delete(garbage)
}

// String keeps target's method in front of the others'.
func (p *pull) String() string { return p.target.String() }

// note remembers a blob of the image.
func (p *pull) note(d ocispec.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := blob{Digest: d.Digest, Size: d.Size}
	if !slices.Contains(p.blobs, b) {
		p.blobs = append(p.blobs, b)
	}
}

// hold pins data for the rest of the pull.
func (p *pull) hold(ctx context.Context, key string) error {
	if err := p.pin(ctx, key); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, key)
	return nil
}
