package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox/pause"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// PauseRoot returns the root of the pause container: the built-in program in a folder that all pods
// share read-only; or the configured image's, and the arguments that start it.
func (m *Mounts) PauseRoot(
	ctx context.Context, p *table.PodEntry, image, label string,
) (root string, args []string, err error) {
	if image == "" {
		root, err := m.builtinPause()
		if err == nil {
			err = selinux.Relabel(ctx, root, selinux.Shared(label))
		}
		if err == nil {
			root, err = m.executable(ctx, p, root)
		}
		return root, nil, err
	}
	if err := m.Images.Hold(image, p.ID); err != nil {
		return "", nil, fmt.Errorf("pause_image: %w", err)
	}
	img, err := m.Images.Lookup(image)
	if err != nil {
		return "", nil, fmt.Errorf("pause_image: %w", err)
	}
	args = spec.Command(img.Config.Config, nil, nil)
	root, err = m.Mount(ctx, p, p.ID, imageservice.Rootfs{ImageID: image, Label: label})
	return root, args, err
}

// executable returns root, or where it is mounted once more without noexec: /run is often mounted
// so, and an OCI runtime keeps the flag (runc since 1.5.3; inside a user namespace none may take it
// off).
func (m *Mounts) executable(ctx context.Context, p *table.PodEntry, root string) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return "", err
	}
	if fs.Flags&unix.ST_NOEXEC == 0 {
		return root, nil
	}
	target := m.place(p, p.ID)
	if err := errors.Join(m.Images.Unmount(ctx, target), m.makePassage(p, filepath.Dir(target)),
		os.MkdirAll(target, 0o700)); err != nil {
		return "", err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("clone mount of %s: %w", root, err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Attr_clr: unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return "", fmt.Errorf("mount %s without noexec: %w", root, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("mount %s: %w", target, err)
	}
	return target, nil
}

// PauseImage returns the id of the configured pause image, or nothing when there is none.
func (m *Mounts) PauseImage() (string, error) {
	if m.Pause == "" {
		return "", nil
	}
	img, err := m.Images.Lookup(m.Pause)
	if err != nil {
		return "", fmt.Errorf("pause_image: %w", err)
	}
	return img.ID, nil
}

// builtinPause writes the pause program and the empty folders that its mounts need, once for each
// daemon.
func (m *Mounts) builtinPause() (string, error) {
	dir := m.Layout.StatePath("pause")
	if _, err := os.Stat(filepath.Join(dir, "pause")); err == nil {
		return dir, nil
	}
	for _, d := range spec.PodRootfsDirs {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	name, err := writeProgram(dir, pause.Binary())
	if err == nil {
		err = os.Rename(name, filepath.Join(dir, "pause"))
	}
	if err != nil {
		return "", errors.Join(err, removeDir(name))
	}
	return dir, nil
}

// writeProgram writes a file that can be executed. A child that inherits the writable descriptor,
// if only until it executes something, would make it busy.
func writeProgram(dir string, program []byte) (name string, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.CreateTemp(dir, ".pause-")
	if err != nil {
		return "", err
	}
	_, err = f.Write(program)
	return f.Name(), errors.Join(err, f.Chmod(0o755), f.Close())
}

// DropPauseRoot is the opposite of PauseRoot, and may be called at any time.
func (m *Mounts) DropPauseRoot(ctx context.Context, id, image string) error {
	if err := m.Remove(ctx, id); err != nil || image == "" {
		return err
	}
	m.Images.Release(image, id)
	return m.Discard(ctx, id)
}
