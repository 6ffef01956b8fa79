package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/users"
)

// LookupUser returns who the container's first process is, by the request, the image and the
// image's own user files.
func LookupUser(rootfs, imageUser string, sc *runtimeapi.LinuxContainerSecurityContext) (users.User, error) {
	passwd, err := readInRoot(rootfs, "/etc/passwd")
	if err != nil {
		return users.User{}, err
	}
	group, err := readInRoot(rootfs, "/etc/group")
	if err != nil {
		return users.User{}, err
	}
	return users.Resolve(imageUser, sc, passwd, group)
}

// readInRoot reads a regular file of an image with every link resolved inside root; a missing one
// is empty. What is no regular file (a FIFO would block, a device would never end) or too large is
// ErrInvalidArgument.
func readInRoot(root, name string) ([]byte, error) {
	handle, err := openInRoot(root, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s of the image: %w", name, blamePath(err))
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s of the image is not a regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	if info.Size() > users.MaxFile {
		return nil, fmt.Errorf("%s of the image has %d bytes; the limit is %d: %w",
			name, info.Size(), users.MaxFile, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(handlePath(handle))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, users.MaxFile))
}

// openInRoot finds name below root, every link on the way taken as one inside root, and opens
// nothing of it: the handle only names it, so that a device or a FIFO notices nothing. handlePath
// is its name for a second look.
func openInRoot(root, name string) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 128 { // the kernel gives up on ".." whenever anything on the host is mounted or renamed meanwhile
		fd, err := unix.Openat2(int(dir.Fd()), name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("resolve %s: %w: %w", name, unix.EAGAIN, errdefs.ErrUnavailable)
}

// blamePath makes ErrInvalidArgument of what a path itself can cause. A want of descriptors or
// memory, or a bad disk, is not its fault.
func blamePath(err error) error {
	for _, fault := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG} {
		if errors.Is(err, fault) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return err
}

func handlePath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
