package imageservice

import (
	"context"
	"time"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/garbage"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/imageservice/pull"
	"github.com/cribox/cribox/imageservice/registry"
)

// Config is what Open needs to know.
type Config struct {
	Root           string        // the daemon's root folder; content/, images/ and layers/ below it are ours
	RegistryConfig string        // folder in the style of containerd's certs.d (<host>/hosts.toml), read at every pull; "" = none
	Limits         layers.Limits // caps on what a registry can make us store
	StallTimeout   time.Duration // a pull that moves no bytes for so long is cancelled; default 5 min
	MaxDownloads   int           // blobs fetched in parallel by one pull; default 3
	MaxUnpacks     int           // layers unpacked in parallel by all pulls together, and as many more while they arrive; default CPUs, at least 2
	Pinned         []string      // names of images that are reported as pinned, see SetPinned
	Step           func(name string)

	syncfs func(fd int) error // instead of the system call
}

// Auth is the credentials of one pull.
type Auth = registry.Auth

// Limits caps what a registry can make us store.
type Limits = layers.Limits

// Image is one image as the CRI shows it.
type Image = catalog.Image

// Images is the image service. All methods may be called at the same time from anywhere.
type Images struct {
	cfg     Config
	catalog *catalog.Catalog
	blobs   *content.Blobs
	layers  *layers.Store
	garbage *garbage.Collector
	puller  *pull.Puller
}

// Lookup finds an image by id ("sha256:<hex>", or the hex alone), by tag or digest reference, or by
// a unique prefix of the id of at least four digits; names come before prefixes. Errors:
// ErrNotFound, or ErrInvalidArgument for what is no reference or an ambiguous prefix.
func (s *Images) Lookup(ref string) (Image, error) { return s.catalog.Lookup(ref) }

// List returns every image, sorted by id. It never waits for a disk or a pull.
func (s *Images) List() []Image { return s.catalog.List() }

// SetPinned says anew which images are reported as pinned: those with a tag or digest reference
// that fits one of the names. A name is fully qualified, and * in it stands for any characters.
func (s *Images) SetPinned(names []string) { s.catalog.SetPinned(names) }

// Hold keeps an image from being removed for as long as holder (a container's id) has it; again is
// no error. Holds live in memory. ErrNotFound when there is no such image.
func (s *Images) Hold(imageID, holder string) error { return s.catalog.Hold(imageID, holder) }

// Release undoes Hold. Unknown images and holders are fine.
func (s *Images) Release(imageID, holder string) { s.catalog.Release(imageID, holder) }

// Pull fetches ref, unpacks it and lists it, or finds that the registry still serves what is
// listed; the registry is asked every time, so the answer is also one about the caller's right to
// the image. A caller that gives up leaves; the pull goes on for the others and is cancelled when
// nobody is left, keeping for a while what it has.
//
// Errors: ErrInvalidArgument for a bad reference, bad credentials or content that contradicts
// itself; ErrNotFound (with the list of platforms where that is why); ErrUnauthenticated;
// ErrPermissionDenied; ErrDataLoss when bytes do not have their digest; ErrResourceExhausted for a
// full disk and for content beyond the limits; ErrNotImplemented for formats we do not take; the
// context's error; and, without any class, one that begins with "RegistryUnavailable: ".
func (s *Images) Pull(ctx context.Context, ref string, auth *registry.Auth) (Image, error) {
	return s.puller.Pull(ctx, ref, auth)
}

// Remove deletes the image that ref (an id or any of its names) stands for: all its names, and
// every blob and layer that no other image and no pull under way needs. An absent image is no
// error. Errors: ErrInvalidArgument for what is no reference, ErrFailedPrecondition naming the
// holder while the image is held; then nothing has changed. A pinned image goes like any other: to
// pin is a recommendation (CRI Image.pinned).
//
// It needs no free space (I15). From the moment the record is gone it goes on whatever becomes of
// ctx.
func (s *Images) Remove(ctx context.Context, ref string) error { return s.garbage.Remove(ctx, ref) }
