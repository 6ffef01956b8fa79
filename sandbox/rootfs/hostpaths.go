package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/table"
)

// hostPath returns a mount's host path with its links resolved. One that does not exist is made, as
// every runtime does: add-ons count on it, and a kubelet has checked those whose volume has a type.
// ErrInvalidArgument, or ErrFailedPrecondition where it may not or cannot be made.
func (m *Mounts) hostPath(ctx context.Context, missing node.MissingPaths, path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		return real, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", node.BlameHost(err)
	}
	path = filepath.Clean(path)
	if missing.Refuse {
		return "", fmt.Errorf("%s does not exist, and host_path_missing in the configuration refuses such mounts: %w",
			path, errdefs.ErrInvalidArgument)
	}
	if never := missing.Forbids(path); never != "" {
		return "", fmt.Errorf("%s does not exist, and host_path_never_created in the configuration names %s: %w",
			path, never, errdefs.ErrInvalidArgument)
	}
	real, err = makeHostPath(path)
	if err != nil {
		return "", fmt.Errorf("%s does not exist and cannot be made: %w",
			path, node.Classify(err, errdefs.ErrFailedPrecondition))
	}
	log.G(ctx).Infof("made the folder %s: it is mounted into a container and did not exist", path)
	m.Step.Pass("container.hostpath")
	return real, nil
}

// makeHostPath makes the folders that are missing of a clean path. Links in the part that exists
// are what the path means; in the rest there is none, or nothing is made.
func makeHostPath(path string) (string, error) {
	base := path
	for {
		up := filepath.Dir(base)
		if up == base {
			return "", fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
		base = up
		real, err := filepath.EvalSymlinks(base)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(path, base), "/")
		dir, err := openReal(real)
		if err != nil {
			return "", err
		}
		return filepath.Join(real, rest), makeBelow(dir, rest)
	}
}

// openReal opens a folder whose links have been resolved. One that has become a link meanwhile is
// an error.
func openReal(path string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// makeBelow makes the folders of a clean relative path that are missing below dir, which it closes.
// Nothing is made through a link, and one on the way is an error.
func makeBelow(dir *os.File, rest string) error {
	for part := range strings.SplitSeq(rest, "/") {
		next, err := makeIn(dir, part)
		dir.Close()
		if err != nil {
			return err
		}
		dir = next
	}
	return dir.Close()
}

func makeIn(dir *os.File, name string) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("mkdir %s: %w", path, err)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		return os.NewFile(uintptr(fd), path), nil
	}
	if to, notALink := os.Readlink(path); notALink == nil {
		return nil, fmt.Errorf("%s is a link to %s", path, to)
	}
	return nil, fmt.Errorf("open %s: %w", path, err)
}

// MakeLogFolder makes the folders of a container's log that are missing below the log directory of
// its pod, where a kubelet has one for each container and others put logs deeper.
// ErrFailedPrecondition for a link on the way: who may write there would send the log, which root
// writes, to any file of the host.
func MakeLogFolder(p *table.PodEntry, c *table.ContainerEntry) error {
	path, directory := c.Config.GetLogPath(), p.Config.GetLogDirectory()
	folder := strings.TrimPrefix(filepath.Dir(filepath.Clean("/"+path)), "/")
	if path == "" || directory == "" || folder == "" {
		return nil
	}
	dir, err := openFolder(directory)
	if err != nil {
		return fmt.Errorf("log_path: log directory of the pod: %w", node.Classify(err, errdefs.ErrFailedPrecondition))
	}
	if err := makeBelow(dir, folder); err != nil {
		return fmt.Errorf("log_path: folder of %s: %w", path, node.Classify(err, errdefs.ErrFailedPrecondition))
	}
	return nil
}

// openFolder opens a folder and nothing else, not to wait for who writes into a FIFO.
func openFolder(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
