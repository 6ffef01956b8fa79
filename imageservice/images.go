package imageservice

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/garbage"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/pull"
	"github.com/cribox/cribox/imageservice/registry"
	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/step"
)

// Config is the configuration for Open.
type Config struct {
	Root            string        // the daemon's root folder; the package owns content/, images/ and layers/ in it
	RegistryConfig  string        // folders like containerd's certs.d, with a colon between; read at every pull; "" = none
	Credentials     string        // file of the node's credentials, see package keyring; "" = none
	HelpersDir      string        // folder of its credential helpers; "" = PATH
	SignaturePolicy string        // file, see package signature; read at every pull; "" = none
	Limits          layers.Limits // limits on what a registry can make us store
	StallTimeout    time.Duration // a pull that moves no bytes for this long is cancelled; default 5 min
	MaxDownloads    int           // parallel downloads of one pull; default 3
	// layers that all pulls unpack in parallel, and as many during download; default CPUs, at least 2
	MaxUnpacks int
	Pinned     []string // names of pinned images, see SetPinned
	Step       step.Hook

	Activity *activity.Table // what pulls are doing; nil: not remembered

	syncfs func(fd int) error // replaces the system call in tests
}

// Auth is the credentials of one pull.
type Auth = registry.Auth

// Limits limits what a registry can make us store.
type Limits = layers.Limits

// Image is one image as the CRI reports it.
type Image = catalog.Image

// Images is the image service. All methods may be called concurrently.
type Images struct {
	cfg     Config
	catalog *catalog.Catalog
	blobs   *content.Blobs
	layers  *layers.Store
	garbage *garbage.Collector
	puller  *pull.Puller

	pinning sync.Mutex // held while pins change, the write to the disk included
	pins    []string
}

// Lookup finds an image by ID ("sha256:<hex>" or the hex alone), by tag or digest reference, or by
// a unique prefix of the ID of at least four hex digits. Names take precedence over prefixes.
// Errors: ErrNotFound; ErrInvalidArgument for an invalid reference or an ambiguous prefix.
func (s *Images) Lookup(ref string) (Image, error) { return s.catalog.Lookup(ref) }

// List returns every image, sorted by ID. It never waits for a disk or a pull.
func (s *Images) List() []Image { return s.catalog.List() }

// SetPinned replaces the names of pinned images. An image is reported as pinned if one of its tags
// or digest references matches a name. Names are fully qualified; * matches any characters.
func (s *Images) SetPinned(names []string) { s.catalog.Pinned.Set(names) }

// Hold prevents the removal of an image until holder (a container ID) releases it. Holding it twice
// is not an error. Holds are only in memory. It returns ErrNotFound if the image does not exist.
func (s *Images) Hold(imageID, holder string) error { return s.catalog.Hold(imageID, holder) }

// Release undoes Hold. Unknown images and holders are ignored.
func (s *Images) Release(imageID, holder string) { s.catalog.Release(imageID, holder) }

// Pull downloads ref, unpacks it and lists it. It asks the registry every time, even if the image
// is already listed, so success also means that the caller's credentials permit the image. If ctx
// ends, Pull returns; the download continues for other callers, and is cancelled when none is left.
// Its data is kept for a while.
//
// Errors: ErrInvalidArgument for an invalid reference, invalid credentials or contradictory
// content; ErrNotFound (with the available platforms if that is the reason); ErrUnauthenticated;
// ErrPermissionDenied; ErrDataLoss if data does not have its digest; ErrResourceExhausted for a
// full disk or content beyond the limits; ErrNotImplemented for unsupported formats; the error of
// ctx; and, without a class, an error whose text begins with "RegistryUnavailable: ".
func (s *Images) Pull(ctx context.Context, ref string, auth *registry.Auth) (Image, error) {
	return s.puller.Pull(ctx, ref, auth)
}

// Remove deletes the image that ref (an ID or any of its names) refers to, with all its names and
// with every blob and layer that no other image and no current pull needs. It returns nil if the
// image does not exist. Errors: ErrInvalidArgument for an invalid reference; ErrFailedPrecondition,
// with the name of the holder, if the image is held. Pinned images are removed, too: pinning is
// only a recommendation (CRI Image.pinned).
//
// Removal needs no free disk space (I15). Once the record is deleted, it continues even if ctx
// ends.
func (s *Images) Remove(ctx context.Context, ref string) error { return s.garbage.Remove(ctx, ref) }

// Prune removes every image that no container was made of and that is not pinned, and returns them.
// With dry it only returns them. An image that a container begins to use meanwhile stays.
func (s *Images) Prune(ctx context.Context, dry bool) ([]Image, error) {
	var removed []Image
	for _, image := range s.List() {
		if image.Pinned || image.InUse {
			continue
		}
		if !dry {
			err := s.Remove(ctx, image.ID)
			if errdefs.IsFailedPrecondition(err) {
				continue
			}
			if err != nil {
				return removed, err
			}
		}
		removed = append(removed, image)
	}
	return removed, nil
}
