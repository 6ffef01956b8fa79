package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/archive"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/imageservice/pull"
)

// PullStatus is how far a pull in progress is.
type PullStatus = pull.Status

// Progress is how far a part of a pull or of a verification is.
type Progress = progress.Step

// Pulls returns the pulls in progress, the oldest first.
func (s *Images) Pulls() []PullStatus { return s.puller.Pulls() }

// Load lists the images of an archive: a tar as docker save writes it or in the OCI layout, plain or
// compressed. They are verified and limited like those that are pulled, and nothing is asked of a
// registry. name is for an archive with one image, and replaces the names that it has. If one image
// fails, the others are loaded; the images that are listed are returned together with the error.
//
// Errors are those of Pull, and ErrInvalidArgument for what is no archive of images, and for an
// image without a name.
func (s *Images) Load(ctx context.Context, r io.Reader, name string) ([]Image, error) {
	a, err := archive.Open(ctx, r, filepath.Join(s.blobs.Dir, "ingest"), s.cfg.Limits.ImageBytes)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	found := a.Images()
	if name != "" && len(found) > 1 {
		return nil, fmt.Errorf("name %s: the archive has %d images: %w", name, len(found), errdefs.ErrInvalidArgument)
	}
	var loaded []Image
	var errs []error
	for _, i := range found {
		image, err := s.loadImage(ctx, a, i, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		loaded = append(loaded, image)
	}
	return loaded, errors.Join(errs...)
}

// loadImage loads one image of the archive under all its names, or under the given one.
func (s *Images) loadImage(
	ctx context.Context, a *archive.Archive, i archive.Image, name string,
) (image Image, err error) {
	names := i.Names
	if name != "" {
		names = []string{name}
	}
	if len(names) == 0 {
		return Image{}, fmt.Errorf("the archive has no name for image %s: give it one: %w",
			imageref.Short(i.Root), errdefs.ErrInvalidArgument)
	}
	for _, n := range names {
		t, err := imageref.Parse(n)
		if err != nil {
			return Image{}, err
		}
		if image, err = s.puller.Load(ctx, t, "archive", a.Transport(i)); err != nil {
			return Image{}, err
		}
	}
	return image, nil
}

// Stored is an image whose blobs are in a folder of this machine, such as that of containerd.
type Stored struct {
	Folder    string // with blobs below ALGORITHM/HEX
	Names     []string
	Digest    digest.Digest // of its manifest or index
	MediaType string
}

// TakeOver lists an image under all its names. It is verified and limited like one that is pulled,
// its blobs are copied, and nothing is asked of a registry. Errors are those of Pull; ErrNotFound for
// an image some blob of which is not in the folder.
func (s *Images) TakeOver(ctx context.Context, i Stored) (image Image, err error) {
	if len(i.Names) == 0 {
		return Image{}, fmt.Errorf("image %s has no name: %w", i.Digest, errdefs.ErrInvalidArgument)
	}
	from, err := archive.Folder(i.Folder).Transport(i.Digest, i.MediaType)
	if err != nil {
		return Image{}, err
	}
	for _, n := range i.Names {
		t, err := imageref.Parse(n)
		if err != nil {
			return Image{}, err
		}
		if image, err = s.puller.Load(ctx, t, "archive", from); err != nil {
			return Image{}, err
		}
	}
	return image, nil
}

// FullName returns the fully qualified form of a reference. ErrInvalidArgument if it is none.
func FullName(ref string) (string, error) {
	t, err := imageref.Parse(ref)
	if err != nil {
		return "", err
	}
	return t.String(), nil
}
