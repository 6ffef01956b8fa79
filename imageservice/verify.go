package imageservice

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/progress"
)

// Damage is a blob or an unpacked layer that is not what it was when it was pulled.
type Damage struct {
	Data     string   // "blob sha256:..." or "layer sha256:...", by its diff ID
	What     []string // how it differs
	Repaired bool     // new pods get undamaged data
	Users    []string // containers that see a damaged layer, also after its repair
}

// Verified is what was found out about an image.
type Verified struct {
	Image   Image
	Damages []Damage
	Err     error // why a part of it could not be verified or repaired
}

// Sound reports whether the image has no damage, or none any more.
func (v Verified) Sound() bool {
	return v.Err == nil && !slices.ContainsFunc(v.Damages, func(d Damage) bool { return !d.Repaired })
}

// Verification hashes the blobs of images again, and compares their unpacked layers with what the
// blobs unpack to. A layer is unpacked a second time for that, so that it needs the disk space of
// the largest layer, and little memory. What images share is read once.
type Verification struct {
	images *Images
	list   []Image
	repair bool
	auth   *Auth

	blobs  map[digest.Digest]string // what was found: "" for an undamaged blob
	layers map[string][]string      // differences of each folder

	mu    sync.Mutex // guards what follows
	image Image
	prog  *progress.Clock
}

// Verify prepares the verification of the images with these names or IDs, or of all. With repair,
// damaged blobs are pulled again with the credentials auth, and damaged layers are unpacked again
// into other folders, which new containers get. The old folders stay as long as containers use them:
// overlayfs does not allow that they change. Errors: those of Lookup.
func (s *Images) Verify(names []string, repair bool, auth *Auth) (*Verification, error) {
	v := &Verification{
		images: s, repair: repair, auth: auth, blobs: map[digest.Digest]string{}, layers: map[string][]string{},
	}
	if len(names) == 0 {
		v.list = s.List()
	}
	for _, name := range names {
		image, err := s.Lookup(name)
		if err != nil {
			return nil, err
		}
		v.list = append(v.list, image)
	}
	return v, nil
}

// Progress returns the image that is being verified, and how far that is.
func (v *Verification) Progress() (Image, []progress.Step) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.prog == nil {
		return Image{}, nil
	}
	return v.image, v.prog.Steps()
}

// Run calls found with each image that still exists, one after the other. It returns an error when
// ctx ends.
func (v *Verification) Run(ctx context.Context, found func(Verified)) error {
	for _, image := range v.list {
		v.mu.Lock()
		v.image, v.prog = image, &progress.Clock{}
		v.mu.Unlock()
		one := Verified{Image: image}
		err := v.verify(ctx, &one)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, gone := v.images.catalog.Record(image.ID); gone != nil {
			continue // removed meanwhile
		}
		one.Err = err
		found(one)
	}
	return nil
}

// verify verifies one image. No pull or removal deletes its data meanwhile.
func (v *Verification) verify(ctx context.Context, one *Verified) error {
	r, err := v.images.catalog.Record(one.Image.ID)
	if err != nil {
		return err
	}
	held, err := v.pin(ctx, r.Keys())
	defer func() { v.images.garbage.Unpin(held, false) }()
	if err != nil {
		return err
	}
	for _, b := range r.Blobs {
		what, err := v.blob(ctx, b)
		if err != nil {
			return err
		}
		if what != "" {
			one.Damages = append(one.Damages, Damage{Data: "blob " + string(b.Digest), What: []string{what}})
		}
	}
	var errs []error
	if v.repair && len(one.Damages) > 0 {
		errs = append(errs, v.pullBlobs(ctx, one, r.Blobs))
	}
	return errors.Join(append(errs, v.verifyLayers(ctx, one, r))...)
}

func (v *Verification) pin(ctx context.Context, keys []string) (held []string, err error) {
	for _, key := range keys {
		if err := v.images.garbage.Pins.Take(ctx, key); err != nil {
			return held, err
		}
		held = append(held, key)
	}
	return held, nil
}

// blob says what is wrong with a blob, "" if nothing is.
func (v *Verification) blob(ctx context.Context, b content.Blob) (string, error) {
	if what, known := v.blobs[b.Digest]; known {
		return what, nil
	}
	name := "blob " + imageref.Short(b.Digest)
	it := v.prog.Item(name, b.Size)
	defer v.prog.Finish(name)
	what, err := checkBlob(ctx, v.images.blobs.Path(b.Digest), b, it)
	if err != nil {
		return "", err
	}
	if what != "" {
		v.images.blobs.Doubt(b.Digest)
	}
	v.blobs[b.Digest] = what
	return what, nil
}

// checkBlob hashes a blob, from the disk and not from the memory of the kernel.
func checkBlob(ctx context.Context, path string, b content.Blob, it *progress.Item) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "is missing", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	content.ReadFromDisk(f)
	h, buf := sha256.New(), make([]byte, 256<<10)
	size := int64(0)
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		it.Done.Store(size)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Sprintf("cannot be read: %v", err), nil
		}
	}
	got := digest.NewDigest(digest.SHA256, h)
	switch {
	case size != b.Size:
		return fmt.Sprintf("has %d bytes, not %d", size, b.Size), nil
	case got != b.Digest:
		return "has digest " + string(got), nil
	}
	return "", nil
}

// blobOf returns a blob from which a layer can be unpacked, and whether it is undamaged.
func (v *Verification) blobOf(image Image, blobs []content.Blob, l layers.Layer, index int) (content.Blob, bool) {
	var found content.Blob
	for _, b := range blobs {
		if b.DiffID == l.DiffID && b.DiffID != "" {
			if found = b; v.blobs[b.Digest] == "" {
				return b, true
			}
		}
	}
	if found.Digest != "" {
		return found, false
	}
	// An older version has pulled the image, and did not write which blob is which layer.
	saved, err := v.images.saved(image)
	if err != nil || index >= len(saved.Manifest.Layers) {
		return content.Blob{}, false
	}
	d := saved.Manifest.Layers[index]
	return content.Blob{Digest: d.Digest, Size: d.Size}, v.blobs[d.Digest] == ""
}
