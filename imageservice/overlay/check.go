package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

// CheckHost checks whether this machine can store and mount images below root, which it creates if
// needed: openat2, overlayfs with volatile writable layers, whiteout devices, and trusted extended
// attributes. The error names what is missing. It removes everything else that it has created.
func CheckHost(root string) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("image root: %w", err)
	}
	dir, err := os.MkdirTemp(root, ".check-")
	if err != nil {
		return fmt.Errorf("image root %s: %w", root, err)
	}
	return errors.Join(checkIn(dir), tree.Remove(context.Background(), dir))
}

func checkIn(dir string) error {
	for _, d := range []string{"layers/1/fs", "layers/2/fs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	top := filepath.Join(dir, "layers/2/fs")
	root, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	fd, err := unix.Openat2(root, ".", &how)
	if err != nil {
		return fmt.Errorf("openat2(2), Linux 5.6: %w", err)
	}
	err = SetOpaque(fd)
	unix.Close(fd)
	if err != nil {
		return fmt.Errorf("trusted extended attributes on %s: %w", dir, err)
	}
	if err := unix.Mknod(filepath.Join(top, "gone"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("whiteout devices on %s: %w", dir, err)
	}
	target := filepath.Join(dir, "target")
	o := overlay{layers: filepath.Join(dir, "layers"), lower: []string{"2/fs", "1/fs"}, target: target}
	if err := o.prepare(Spec{Dir: filepath.Join(dir, "c"), Target: target}); err != nil {
		return err
	}
	if err := o.mount(); err != nil {
		return fmt.Errorf("overlayfs with volatile layers, Linux 5.10, on %s: %w", dir, err)
	}
	return Unmount(context.Background(), target)
}
