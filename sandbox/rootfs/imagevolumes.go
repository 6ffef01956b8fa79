package rootfs

import (
	"context"
	"fmt"
	"os"
	"slices"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox/table"
)

// VolumeImages finds the images that the mounts of a request name (Mount.image): by the index of the
// mount, "" for a host path; nil when there is none. An image must be here, whoever asks for it
// pulls it first: ErrNotFound.
func (m *Mounts) VolumeImages(mounts []*runtimeapi.Mount) ([]string, error) {
	var ids []string
	for i, asked := range mounts {
		if asked.GetImage() == nil {
			continue
		}
		img, err := m.Images.Lookup(asked.GetImage().GetImage())
		if err != nil {
			return nil, volumeFailed(asked, err)
		}
		if ids == nil {
			ids = make([]string, len(mounts))
		}
		ids[i] = img.ID
	}
	return ids, nil
}

// volumeFailed begins with the word that a kubelet looks for.
func volumeFailed(asked *runtimeapi.Mount, err error) error {
	return fmt.Errorf("ImageVolumeMountFailed: mount %s: %w", asked.GetContainerPath(), err)
}

// Hold keeps the images of the container from being removed, or none of them.
func (m *Mounts) Hold(c *table.ContainerEntry) error {
	for i, id := range append([]string{c.ImageID}, c.MountImages...) {
		if id == "" {
			continue
		}
		err := m.Images.Hold(id, c.ID)
		if err == nil {
			continue
		}
		m.Release(c)
		if i > 0 {
			err = volumeFailed(c.Config.GetMounts()[i-1], err)
		}
		return err
	}
	return nil
}

// Release undoes Hold.
func (m *Mounts) Release(c *table.ContainerEntry) {
	for _, id := range append([]string{c.ImageID}, c.MountImages...) {
		m.Images.Release(id, c.ID)
	}
}

// MountVolumes mounts every image that the container's mounts name once, read-only and without a
// writable layer, with the ids of the pod's user namespace. Two containers have a mount each: none
// depends on what becomes of the other.
func (m *Mounts) MountVolumes(ctx context.Context, p *table.PodEntry, c *table.ContainerEntry, label string) error {
	for i, id := range c.MountImages {
		if id == "" || slices.Index(c.MountImages, id) < i {
			continue
		}
		if err := m.mountVolume(ctx, p, imageservice.Rootfs{ImageID: id, Target: m.Layout.VolumePlace(c.ID, c.MountImages, i),
			ReadOnly: true, Label: label}); err != nil {
			return volumeFailed(c.Config.GetMounts()[i], err)
		}
		m.Step.Pass("container.volume")
	}
	return nil
}

func (m *Mounts) mountVolume(ctx context.Context, p *table.PodEntry, r imageservice.Rootfs) error {
	var err error
	if r.UserNS, err = m.openUserNS(p); err != nil {
		return err
	}
	if r.UserNS != nil {
		defer r.UserNS.Close()
	}
	return m.Images.Mount(ctx, r)
}

// volumeSource returns what mount i binds: the mounted image, or what image_sub_path names in it, a
// folder or a file. The kernel resolves the path without leaving the image, and nobody can change
// the image afterwards: the path that is returned has no links.
func (m *Mounts) volumeSource(c *table.ContainerEntry, i int) (string, error) {
	asked := c.Config.GetMounts()[i]
	path, err := resolveInVolume(m.Layout.VolumePlace(c.ID, c.MountImages, i), asked.GetImageSubPath())
	if err != nil {
		return "", volumeFailed(asked, fmt.Errorf("image_sub_path %q: %w", table.Short(asked.GetImageSubPath()), err))
	}
	return path, nil
}

func resolveInVolume(root, sub string) (string, error) {
	if sub == "" {
		sub = "/"
	}
	handle, err := openInRoot(root, sub)
	if err != nil {
		return "", blamePath(err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return "", err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return "", fmt.Errorf("is neither a folder nor a file: %w", errdefs.ErrInvalidArgument)
	}
	path, err := os.Readlink(handlePath(handle))
	if err != nil {
		return "", err
	}
	if !utf8.ValidString(path) {
		return "", fmt.Errorf("leads to a name that is not UTF-8, which an OCI spec cannot contain: %w",
			errdefs.ErrInvalidArgument)
	}
	return path, nil
}
