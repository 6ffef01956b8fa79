package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

// CheckIDMap checks whether the layers of a folder can be mounted with the IDs of a user namespace.
// The error names what is missing. The test mount is never attached.
func CheckIDMap(layers string, userNS *os.File) error {
	o := overlay{layers: layers, lower: []string{"empty", "none"}, target: layers}
	var err error
	if o.mapped, err = idMapped(o.layers, userNS); err != nil {
		return err
	}
	defer o.mapped.Close()
	mnt, err := o.detached()
	if err != nil {
		return fmt.Errorf("overlayfs on id-mapped layers, Linux 5.19: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return mnt.Close()
}

// CheckHostIDMap is CheckIDMap for a root that does not have images yet; see CheckHost.
func CheckHostIDMap(root string, userNS *os.File) error {
	dir, err := os.MkdirTemp(root, ".check-")
	if err != nil {
		return fmt.Errorf("image root %s: %w", root, err)
	}
	for _, layer := range []string{"empty", "none"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, "layers", layer), 0o755))
	}
	if err == nil {
		err = CheckIDMap(filepath.Join(dir, "layers"), userNS)
	}
	return errors.Join(err, tree.Remove(context.Background(), dir))
}

// idMapped returns a detached clone of the mount of dir, in which the owner IDs of files are mapped
// as in userNS.
func idMapped(dir string, userNS *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %s: %w", dir, err)
	}
	tree := os.NewFile(uintptr(fd), dir)
	// The clone of a shared mount shares what is mounted in it, even from another mount namespace.
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(userNS.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		tree.Close()
		return nil, fmt.Errorf("the file system of %s has no id-mapped mounts: %w: %w",
			dir, err, errdefs.ErrFailedPrecondition)
	}
	return tree, nil
}

// overMapped mounts over the id-mapped layers. Overlayfs opens layers by path, and before Linux
// 6.15 the path must be in an attached mount. So the id-mapped layers are attached over the real
// ones, in a private mount namespace of one thread, which ends with the thread.
func (o *overlay) overMapped() (*os.File, error) {
	var mnt *os.File
	err := apart(func() (err error) {
		if err = o.hideLayers(); err != nil {
			return err
		}
		if mnt, err = o.mountNew(); errors.Is(err, errOldKernel) {
			mnt, err = o.cloneOld()
		}
		return err
	})
	return mnt, err
}

// cloneOld mounts at the target in the thread's mount namespace, and returns a detached clone of
// that mount.
func (o *overlay) cloneOld() (*os.File, error) {
	if err := o.mountHere(); err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, o.target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %s: %w", o.target, err)
	}
	return os.NewFile(uintptr(fd), o.target), nil
}

// hideLayers moves the calling thread to a new mount namespace in which the id-mapped layers cover
// the real ones.
func (o *overlay) hideLayers() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach mounts from the host's: %w", err)
	}
	if err := unix.MoveMount(int(o.mapped.Fd()), "", unix.AT_FDCWD, o.layers, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach id-mapped layers: %w", err)
	}
	return nil
}
