package imageservice

import (
	"context"
	"fmt"
	"os"

	"github.com/cribox/cribox/imageservice/overlay"
)

// Rootfs is a root filesystem to mount.
type Rootfs struct {
	ImageID  string
	Dir      string // holds upper/ and work/ of the writable layer, created when missing; unused when ReadOnly
	Target   string // mountpoint, created when missing
	Label    string // SELinux context of all files as the mount shows them; "" leaves them theirs
	ReadOnly bool   // no writable layer: the image's files as they are, any number of times

	// UserNS, when not nil, is a user namespace as whose ids those of the image's files are taken:
	// a file of root belongs to the namespace's root. Nothing is copied for that.
	UserNS *os.File
}

// Layers returns the lower directories of an image, topmost first: absolute paths, at least one.
// ErrNotFound when there is no such image.
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
// writable layer is volatile: nothing of it is synced, so it is good for one mount only, and
// mounting it again, or over a mounted target, is ErrFailedPrecondition. ErrNotFound when there is
// no such image. The caller holds the image.
func (s *Images) Mount(ctx context.Context, r Rootfs) error {
	image, err := s.catalog.Record(r.ImageID)
	if err != nil {
		return fmt.Errorf("mount root filesystem: %w", err)
	}
	spec := overlay.Spec{Layers: s.layers.Root, Lower: image.Stack(), Dir: r.Dir, Target: r.Target, Label: r.Label, ReadOnly: r.ReadOnly, UserNS: r.UserNS}
	if err := overlay.Mount(spec); err != nil {
		return fmt.Errorf("mount root filesystem at %s: %w", r.Target, err)
	}
	s.cfg.Step("mount.mounted")
	return nil
}

// Unmount unmounts whatever is mounted at target; nothing mounted, or no target, is no error. A
// busy mount is tried for a short time and then detached: it goes away when its last user does.
func (s *Images) Unmount(ctx context.Context, target string) error {
	if err := overlay.Unmount(ctx, target); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	s.cfg.Step("mount.unmounted")
	return nil
}

// CheckIDMap tells whether images can be mounted with the ids of a user namespace (Rootfs.UserNS):
// the error names what is missing. Nothing becomes visible, and nothing is left.
func (s *Images) CheckIDMap(userNS *os.File) error { return overlay.CheckIDMap(s.layers.Root, userNS) }

// CheckHostIDMap is CheckIDMap for a root where no images are yet; see CheckHost.
func CheckHostIDMap(root string, userNS *os.File) error { return overlay.CheckHostIDMap(root, userNS) }

// CheckHost tells whether this machine can keep and mount images below root, which is created if
// need be: openat2, overlayfs with volatile writable layers, whiteout devices, and trusted extended
// attributes. The error names what is missing. Nothing is left behind.
func CheckHost(root string) error { return overlay.CheckHost(root) }
