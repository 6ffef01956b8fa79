package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// maxVolumes is how many VOLUMEs of an image are made. Each is copied by itself, and they may lead
// to one folder or lie in each other.
const maxVolumes = 128

// MakeVolumes gives every VOLUME of the image that the request mounts nothing on a folder beside
// the container's writable layer, filled with what the image has there: it can be written even when
// the root filesystem cannot. It ends with the container. A copy that takes longer than ctx lasts
// is given up. ErrInvalidArgument when there are too many.
func (m *Mounts) MakeVolumes(
	ctx context.Context, p *table.PodEntry, c *table.ContainerEntry, root string, img imageservice.Image,
) ([]spec.Volume, error) {
	asked := spec.ImageVolumes(img.Config, c.Config)
	if len(asked) > maxVolumes {
		return nil, fmt.Errorf("the image has %d volumes that nothing is mounted on; the limit is %d: %w",
			len(asked), maxVolumes, errdefs.ErrInvalidArgument)
	}
	var all []spec.Volume
	for i, inside := range asked {
		dir := m.Layout.RootPath("containers", c.ID, layout.Volumes, strconv.Itoa(i))
		if err := copyFromRoot(ctx, p.Config, root, inside, dir); err != nil {
			return nil, fmt.Errorf("volume %s of the image: %w", inside, err)
		}
		all = append(all, spec.Volume{ContainerPath: inside, Source: dir})
	}
	return all, nil
}

// copyFromRoot copies a folder of an image, found without leaving root, to dir. A missing one
// leaves dir empty, and root in the pod its owner.
func copyFromRoot(ctx context.Context, c *runtimeapi.PodSandboxConfig, root, inside, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	handle, err := openInRoot(root, inside)
	if errors.Is(err, unix.ENOENT) {
		return makeFor(c, dir)
	}
	if err != nil {
		return blamePath(err)
	}
	defer handle.Close()
	if info, err := handle.Stat(); err != nil || !info.IsDir() {
		return errors.Join(err, makeFor(c, dir))
	}
	return copyTree(ctx, handlePath(handle)+"/.", dir)
}

func makeFor(c *runtimeapi.PodSandboxConfig, dir string) error {
	root := spec.RootOf(c)
	return errors.Join(os.Mkdir(dir, 0o755), os.Lchown(dir, root.UID, root.GID))
}
