package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/log"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
)

// pullBlobs downloads the damaged blobs of an image again. The image is pulled by its digests: its
// tags may be other images by now.
func (v *Verification) pullBlobs(ctx context.Context, one *Verified, blobs []content.Blob) error {
	disk, err := content.OpenDisk(v.images.cfg.Root)
	if err != nil {
		return err
	}
	defer disk.Close()
	var errs []error
	for _, ref := range one.Image.RepoDigests {
		if _, err := v.images.Pull(ctx, ref, v.auth); err != nil {
			errs = append(errs, err)
		}
		left, err := v.checkAgain(ctx, one, blobs)
		if err != nil {
			return err
		}
		if left == 0 {
			// The record lists the blobs, so the pull has taken them for synced.
			return fault.Disk(disk.Sync(v.images.cfg.syncfs))
		}
	}
	errs = append(errs, errors.New("blobs are still damaged; load the archive again if the image was loaded from one"))
	return errors.Join(errs...)
}

// checkAgain looks at the damaged blobs, and returns how many still are.
func (v *Verification) checkAgain(ctx context.Context, one *Verified, blobs []content.Blob) (left int, err error) {
	for i := range one.Damages {
		is := func(b content.Blob) bool { return one.Damages[i].Data == "blob "+string(b.Digest) }
		at := slices.IndexFunc(blobs, is)
		if at < 0 || one.Damages[i].Repaired {
			continue
		}
		delete(v.blobs, blobs[at].Digest)
		what, err := v.blob(ctx, blobs[at])
		if err != nil {
			return left, err
		}
		if one.Damages[i].Repaired = what == ""; what != "" {
			left++
		}
	}
	return left, nil
}

// Debts says what image data is to be read or deleted yet, for people.
func (s *Images) Debts() (all []string) {
	for _, dir := range s.garbage.ReplacedLayers() {
		all = append(all, "delete damaged layer "+dir+", which was repaired, once no container has it")
	}
	if !s.catalog.IsRead() {
		all = append(all, "read image records that cannot be read now; their images are not listed")
	}
	return all
}

// verifyLayers compares the layers of an image with what their blobs unpack to, the lowest first: the
// metadata of some directories comes from the layers below.
func (v *Verification) verifyLayers(ctx context.Context, one *Verified, r *catalog.Record) error {
	u := &unpacked{Verification: v, unpacker: layers.NewUnpacker(v.images.layers, v.images.cfg.Limits, v.prog)}
	var errs []error
	for i, l := range r.Layers {
		b, sound := v.blobOf(one.Image, r.Blobs, l, i)
		if !sound {
			b.Digest = ""
		}
		now, damage, err := u.layer(ctx, l, b)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("layer %s: %w", imageref.Short(l.DiffID), err))
		}
		if damage != nil {
			one.Damages = append(one.Damages, *damage)
		}
		u.below = slices.Insert(u.below, 0, now)
	}
	return errors.Join(errs...)
}

// unpacked verifies the layers of one image.
type unpacked struct {
	*Verification
	unpacker *layers.Unpacker
	below    []*layers.Layer // those that are verified, topmost first
}

// layer compares one layer with what its blob unpacks to, and repairs it if that is wanted. It
// returns the layer that new containers get from now on. The blob has no digest if it is damaged.
func (v *unpacked) layer(
	ctx context.Context, l layers.Layer, b content.Blob,
) (now *layers.Layer, damage *Damage, err error) {
	now = &l
	if what, known := v.layers[l.Dir]; known {
		return now, v.damage(l, what), nil
	}
	if b.Digest == "" {
		return now, nil, errors.New("cannot be verified, because its blob is damaged")
	}
	disk, err := content.OpenDisk(v.images.cfg.Root)
	if err != nil {
		return now, nil, err
	}
	defer disk.Close()
	fresh, what, err := v.compare(ctx, &l, b)
	if err != nil {
		return now, nil, err
	}
	v.images.cfg.Step.Pass("verify.unpacked")
	v.layers[l.Dir] = what
	damage = v.damage(l, what)
	if damage == nil || !v.repair {
		return now, damage, v.images.layers.Remove(fresh.Dir)
	}
	if err := fault.Disk(disk.Sync(v.images.cfg.syncfs)); err != nil {
		return now, damage, errors.Join(err, v.images.layers.Remove(fresh.Dir))
	}
	if err := v.images.replaceLayer(ctx, l, fresh); err != nil {
		return now, damage, err
	}
	damage.Repaired = true
	v.layers[fresh.Dir] = nil
	return fresh, damage, nil
}

// damage returns the damage of a layer, nil for an undamaged one.
func (v *Verification) damage(l layers.Layer, what []string) *Damage {
	if len(what) == 0 {
		return nil
	}
	_, holders := v.images.catalog.OfLayer(l.Dir)
	return &Damage{Data: "layer " + string(l.DiffID), What: what, Users: holders}
}

func (v *unpacked) compare(ctx context.Context, l *layers.Layer, b content.Blob) (*layers.Layer, []string, error) {
	fixes, err := v.unpacker.FixesOf(ctx, l, v.below)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(v.images.blobs.Path(b.Digest))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	name := "layer " + imageref.Short(l.DiffID)
	it := v.prog.Item(name, 0)
	defer v.prog.Finish(name)
	return v.unpacker.Again(ctx, l, layers.Source{Reader: f, Size: b.Size}, fixes, it)
}

// replaceLayer puts fresh, which is on disk, in the place of a damaged layer, in all records. The
// damaged folder stays as long as a mount shows it.
func (s *Images) replaceLayer(ctx context.Context, l layers.Layer, fresh *layers.Layer) error {
	if err := s.catalog.Writer.Acquire(ctx, 1); err != nil {
		return errors.Join(err, s.layers.Remove(fresh.Dir))
	}
	defer s.catalog.Writer.Release(1)
	written := 0
	records, _ := s.catalog.OfLayer(l.Dir)
	for _, r := range records {
		r = r.WithLayer(l.Dir, *fresh)
		if err := s.catalog.Write(r); err != nil {
			// The record may be there all the same. The next Open deletes what none lists.
			return fmt.Errorf("write image record: %w", err)
		}
		s.catalog.Put(r, nil)
		s.layers.Set(fresh)
		if written++; written == 1 {
			s.cfg.Step.Pass("verify.recorded")
		}
	}
	if written == 0 { // no image has the layer any more
		return s.layers.Remove(fresh.Dir)
	}
	s.garbage.Replaced(l.Dir, l.Key())
	log.G(ctx).WithField("layer", l.Dir).
		Infof("a damaged layer was replaced by layer %s; containers that use it keep it until they end", fresh.Dir)
	return nil
}
