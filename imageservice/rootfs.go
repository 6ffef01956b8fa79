package imageservice

import (
	"context"
	"fmt"
	"os"

	"github.com/cribox/cribox/imageservice/overlay"
)

// Rootfs describes a root filesystem to mount.
type Rootfs struct {
	ImageID  string
	Dir      string // contains upper/ and work/ of the writable layer, created if missing; unused if ReadOnly
	Target   string // mountpoint, created if missing
	Label    string // SELinux context of all files in the mount; "" keeps their own
	ReadOnly bool   // no writable layer; the same image may be mounted any number of times

	// UserNS maps the owner IDs of the image's files to those of a user namespace: a file of root
	// belongs to the namespace's root. No file is copied. nil: IDs are not mapped.
	UserNS *os.File
}

// Layers returns the absolute paths of an image's lower directories, topmost first, at least one.
// It returns ErrNotFound if the image does not exist.
func (s *Images) Layers(imageID string) ([]string, error) {
	r, err := s.catalog.Record(imageID)
	if err != nil {
		return nil, err
	}
	names := r.Stack()
	for i := range names {
		names[i] = s.layers.Dir(names[i])
	}
	return names, nil
}

// Mount mounts an image's layers at r.Target, with a writable layer in r.Dir unless r.ReadOnly. The
// writable layer is volatile: the kernel never syncs it, so it can be mounted only once. Errors:
// ErrFailedPrecondition if the layer was mounted before, or if something is mounted at the target;
// ErrNotFound if the image does not exist. The caller must hold the image (Hold).
func (s *Images) Mount(ctx context.Context, r Rootfs) error {
	image, err := s.catalog.Record(r.ImageID)
	if err != nil {
		return fmt.Errorf("mount root filesystem: %w", err)
	}
	spec := overlay.Spec{Layers: s.layers.Root, Lower: image.Stack(), Dir: r.Dir, Target: r.Target, Label: r.Label,
		ReadOnly: r.ReadOnly, UserNS: r.UserNS}
	if err := overlay.Mount(spec); err != nil {
		return fmt.Errorf("mount root filesystem at %s: %w", r.Target, err)
	}
	s.cfg.Step.Pass("mount.mounted")
	return nil
}

// Unmount unmounts everything that is mounted at target. It returns nil if nothing is mounted or
// target does not exist. If the mount is busy, Unmount retries for a short time and then detaches
// it; the kernel unmounts it when its last user is gone.
func (s *Images) Unmount(ctx context.Context, target string) error {
	if err := overlay.Unmount(ctx, target); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	s.cfg.Step.Pass("mount.unmounted")
	return nil
}

// CheckIDMap checks whether images can be mounted with the IDs of a user namespace (Rootfs.UserNS).
// The error names what is missing. The test mount is never attached.
func (s *Images) CheckIDMap(userNS *os.File) error { return overlay.CheckIDMap(s.layers.Root, userNS) }

// CheckHostIDMap is CheckIDMap for a root that does not have images yet; see CheckHost.
func CheckHostIDMap(root string, userNS *os.File) error { return overlay.CheckHostIDMap(root, userNS) }

// CheckHost checks whether this machine can store and mount images below root, which it creates if
// needed: openat2, overlayfs with volatile writable layers, whiteout devices, and trusted extended
// attributes. The error names what is missing. It removes everything else that it has created.
func CheckHost(root string) error { return overlay.CheckHost(root) }
