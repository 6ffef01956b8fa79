package imageservice

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/archive"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/manifest"
)

// Export is images that cannot be removed until Close, in a form that can be written.
type Export struct {
	images *Images
	saved  []archive.Saved
	ids    []string
	holder string
}

var exports atomic.Int64

// Export prepares the images with these names or IDs to be written to an archive. An ID stands for
// all tags of its image. The caller calls Close. Errors: ErrNotFound; ErrInvalidArgument for an
// invalid reference; ErrDataLoss if a document of the image is not here any more.
func (s *Images) Export(names []string) (*Export, error) {
	e := &Export{images: s, holder: fmt.Sprintf("export %d", exports.Add(1))}
	for _, name := range names {
		if err := e.prepare(name); err != nil {
			e.Close()
			return nil, err
		}
	}
	return e, nil
}

// prepare holds one image, and finds what to write of it.
func (e *Export) prepare(name string) error {
	image, err := e.images.Lookup(name)
	if err != nil {
		return err
	}
	if err := e.images.Hold(image.ID, e.holder); err != nil {
		return err
	}
	e.ids = append(e.ids, image.ID)
	saved, err := e.images.saved(image)
	if err != nil {
		return err
	}
	if t, err := imageref.Parse(name); err == nil && t.Tag != "" && slices.Contains(image.RepoTags, t.String()) {
		saved.Names = []string{t.String()}
	}
	e.add(saved)
	return nil
}

// add adds an image, or the names that it does not have yet.
func (e *Export) add(i archive.Saved) {
	for n := range e.saved {
		if e.saved[n].Root.Digest != i.Root.Digest {
			continue
		}
		for _, name := range i.Names {
			if !slices.Contains(e.saved[n].Names, name) {
				e.saved[n].Names = append(e.saved[n].Names, name)
			}
		}
		return
	}
	e.saved = append(e.saved, i)
}

// Write writes the archive. ErrDataLoss if a blob is damaged; the archive is then not complete.
func (e *Export) Write(ctx context.Context, w io.Writer) error {
	return archive.Write(ctx, w, e.saved, func(d digest.Digest) string {
		e.images.cfg.Step.Pass("save.blob")
		return e.images.blobs.Path(d)
	})
}

// Close lets the images be removed again. It can be called more than once.
func (e *Export) Close() {
	for _, id := range e.ids {
		e.images.Release(id, e.holder)
	}
}

// saved finds the manifest of an image among its blobs: the record does not say which one it is.
func (s *Images) saved(image Image) (archive.Saved, error) {
	r, err := s.catalog.Record(image.ID)
	if err != nil {
		return archive.Saved{}, err
	}
	for _, b := range r.Blobs {
		if b.DiffID != "" || b.Size > manifest.MaxBytes {
			continue
		}
		raw, err := s.blobs.ReadDocument(b.Digest)
		if err != nil {
			continue
		}
		doc, err := manifest.Decode(raw, "")
		if err == nil && doc.Manifest != nil && doc.Manifest.Config.Digest.String() == image.ID {
			return archive.Saved{Names: image.RepoTags, Manifest: doc.Manifest,
				Root: manifest.Describe(raw, cmp.Or(doc.Manifest.MediaType, ocispec.MediaTypeImageManifest))}, nil
		}
	}
	return archive.Saved{}, fmt.Errorf("the manifest of image %s is not on this node any more; pull the image again: %w",
		image.ID, errdefs.ErrDataLoss)
}
