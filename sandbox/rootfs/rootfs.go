package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/tree"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// Mounts makes and removes the root filesystems and volumes of containers.
type Mounts struct {
	Layout layout.Layout
	Images Images
	Trash  *tree.Trash // of what containers wrote
	Pause  string      // image of the pause container; empty is the built-in program
	Step   step.Hook
}

// place is where the root filesystem of a container, or of a pod's pause image, is mounted. For a
// pod with a user namespace the OCI runtime looks for it as root of that namespace, who is nobody
// here: the mountpoint lies in a folder that this root alone can pass through besides the real one,
// out of which no other user of the host reaches the image's files.
func (m *Mounts) place(p *table.PodEntry, id string) string {
	if _, _, ok := spec.UserNamespace(p.Config); ok {
		return filepath.Join(m.Layout.StatePath("userns", id), "root")
	}
	return m.Layout.StatePath("rootfs", id)
}

// Mount mounts a root filesystem and returns where; of r the image and the label are given.
func (m *Mounts) Mount(ctx context.Context, p *table.PodEntry, id string, r imageservice.Rootfs) (string, error) {
	r.Dir, r.Target = m.Layout.RootPath("containers", id), m.place(p, id)
	var err error
	if r.UserNS, err = m.openUserNS(p); err != nil {
		return "", err
	}
	if r.UserNS != nil {
		defer r.UserNS.Close()
		if err := m.makePassage(p, filepath.Dir(r.Target)); err != nil {
			return "", err
		}
	}
	return r.Target, m.Images.Mount(ctx, r)
}

// makePassage makes a folder that root in the pod can pass through.
func (m *Mounts) makePassage(p *table.PodEntry, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return errors.Join(os.Lchown(dir, 0, spec.RootOf(p.Config).GID), os.Chmod(dir, 0o710))
}

// Unmount unmounts the root filesystem, wherever it is, and the image volumes, and may be
// called at any time.
func (m *Mounts) Unmount(ctx context.Context, id string) error {
	var errs []error
	for _, target := range append(m.Layout.RootPlaces(id), m.volumePlaces(id)...) {
		errs = append(errs, m.Images.Unmount(ctx, target))
	}
	return errors.Join(errs...)
}

// Remove unmounts like Unmount and takes the mountpoints away. One that is still mounted is an error
// and is not emptied.
func (m *Mounts) Remove(ctx context.Context, id string) error {
	if err := m.Unmount(ctx, id); err != nil {
		return err
	}
	var errs []error
	for _, target := range append(m.Layout.RootPlaces(id), m.volumePlaces(id)...) {
		errs = append(errs, removeDir(target))
	}
	return errors.Join(append(errs, removeDir(m.Layout.StatePath("userns", id)),
		removeDir(m.Layout.StatePath("volumes", id)))...)
}

// Mounted says whether the root filesystem is there. An error means that it cannot be told now.
func (m *Mounts) Mounted(id string) (bool, error) {
	for _, target := range m.Layout.RootPlaces(id) {
		is, err := mountinfo.Mounted(target)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		if is {
			return true, nil
		}
	}
	return false, nil
}

// volumePlaces returns where images are mounted for a container, by what is there.
func (m *Mounts) volumePlaces(id string) []string {
	var places []string
	entries, _ := os.ReadDir(m.Layout.StatePath("volumes", id))
	for _, e := range entries {
		places = append(places, m.Layout.StatePath("volumes", id, e.Name()))
	}
	return places
}

// openUserNS opens the pod's user namespace; nil for a pod that has none.
func (m *Mounts) openUserNS(p *table.PodEntry) (*os.File, error) {
	if _, _, ok := spec.UserNamespace(p.Config); !ok {
		return nil, nil
	}
	f, err := os.Open(m.Layout.UserNS(p.ID))
	if err != nil {
		return nil, fmt.Errorf("user namespace of pod %s: %w", p.ID, err)
	}
	return f, nil
}

// Discard deletes the writable layer and the volumes of a container, in the background.
func (m *Mounts) Discard(ctx context.Context, id string) error {
	return m.Trash.Put(ctx, m.Layout.RootPath("containers", id))
}

// removeDir removes an empty folder: a mountpoint, which must not be emptied should it still be
// one.
func removeDir(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Images has images and mounts them. An image that is held is not removed.
type Images interface {
	Lookup(ref string) (imageservice.Image, error)
	Hold(imageID, holder string) error
	Release(imageID, holder string)
	Mount(ctx context.Context, r imageservice.Rootfs) error
	Unmount(ctx context.Context, target string) error
	CheckIDMap(userNS *os.File) error
}
