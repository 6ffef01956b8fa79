package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/internal/tree"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// mounts makes and takes away the root filesystems and volumes of containers. It knows no state:
// everything that it takes away it takes away wherever it is, any number of times.
type mounts struct {
	layout layout.Layout
	states *table.States
	images Images
	trash  *tree.Trash // of what containers wrote
	pause  string      // Config.Pause
	step   func(string)
}

// rootfs is where the root filesystem of a container, or of a pod's pause image, is mounted. For a
// pod with a user namespace the OCI runtime looks for it as root of that namespace, who is nobody
// here: the mountpoint lies in a folder that this root alone can pass through besides the real one,
// out of which no other user of the host reaches the image's files.
func (m *mounts) rootfs(p *table.PodEntry, id string) string {
	if _, _, ok := spec.UserNamespace(p.Config); ok {
		return filepath.Join(m.layout.StatePath("userns", id), "root")
	}
	return m.layout.StatePath("rootfs", id)
}

// mountRoot mounts a root filesystem and returns where; of r the image and the label are given.
func (m *mounts) mountRoot(ctx context.Context, p *table.PodEntry, id string, r imageservice.Rootfs) (string, error) {
	r.Dir, r.Target = m.layout.RootPath("containers", id), m.rootfs(p, id)
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
	return r.Target, m.images.Mount(ctx, r)
}

// makePassage makes a folder that root in the pod can pass through.
func (m *mounts) makePassage(p *table.PodEntry, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return errors.Join(os.Lchown(dir, 0, spec.RootOf(p.Config).GID), os.Chmod(dir, 0o710))
}

// unmountRoot unmounts the root filesystem, wherever it is, and the image volumes, and may be
// called at any time.
func (m *mounts) unmountRoot(ctx context.Context, id string) error {
	var errs []error
	for _, target := range append(m.layout.RootPlaces(id), m.volumePlaces(id)...) {
		errs = append(errs, m.images.Unmount(ctx, target))
	}
	return errors.Join(errs...)
}

// removeRoot is unmountRoot and takes the mountpoints away. One that is still mounted is an error
// and is not emptied.
func (m *mounts) removeRoot(ctx context.Context, id string) error {
	if err := m.unmountRoot(ctx, id); err != nil {
		return err
	}
	var errs []error
	for _, target := range append(m.layout.RootPlaces(id), m.volumePlaces(id)...) {
		errs = append(errs, removeDir(target))
	}
	return errors.Join(append(errs, removeDir(m.layout.StatePath("userns", id)), removeDir(m.layout.StatePath("volumes", id)))...)
}

// mounted says whether the root filesystem is there. An error means that it cannot be told now.
func (m *mounts) mounted(id string) (bool, error) {
	for _, target := range m.layout.RootPlaces(id) {
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
func (m *mounts) volumePlaces(id string) []string {
	var places []string
	for _, name := range namesIn(m.layout.StatePath("volumes", id)) {
		places = append(places, m.layout.StatePath("volumes", id, name))
	}
	return places
}
