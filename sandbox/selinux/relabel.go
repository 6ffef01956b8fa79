package selinux

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

const attribute = "security.selinux"

// SetLabel gives one file its label; a link is not followed. Nothing is done for label "".
func SetLabel(path, label string) error {
	if label == "" {
		return nil
	}
	if err := unix.Lsetxattr(path, attribute, []byte(label), 0); err != nil {
		return fmt.Errorf("label %s: %w", path, err)
	}
	return nil
}

// Relabel gives a folder or file, and everything below it, the label. One that has it already is
// left alone as a whole: the top gets its label last, so it has it when all have. No link is
// followed, and every name is opened in the folder it was found in: a container that moves things
// about meanwhile can lead the walk nowhere else. A file system that has no labels is no error.
//
// ErrInvalidArgument for folders that the host itself needs. When ctx ends, or folders are moved
// meanwhile, what is done stays done, and another call goes on.
func Relabel(ctx context.Context, path, label string) error {
	if label == "" {
		return nil
	}
	if isSystem(path) {
		return fmt.Errorf("relabel %s: processes of the host need its present label: %w", path, errdefs.ErrInvalidArgument)
	}
	have := make([]byte, len(label)+2)
	n, err := unix.Lgetxattr(path, attribute, have)
	if err == nil && strings.TrimRight(string(have[:n]), "\x00") == label {
		return nil
	}
	w := walk{ctx: ctx, label: []byte(label)}
	if err := w.top(path); err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}

// systemFolders are not relabelled themselves: whatever else runs here would lose them.
var systemFolders = strings.Fields(`/ /bin /boot /dev /etc /home /lib /lib64 /media /mnt /opt /proc /root /run /sbin
	/srv /sys /tmp /usr /var /var/lib /var/log /var/run /var/tmp`)

// systemTrees are not relabelled, nor is anything in them.
var systemTrees = []string{"/boot", "/dev", "/proc", "/sys", "/usr"}

func isSystem(path string) bool {
	path = filepath.Clean(path)
	if slices.Contains(systemFolders, path) {
		return true
	}
	return slices.ContainsFunc(systemTrees, func(tree string) bool { return strings.HasPrefix(path, tree+"/") })
}

type walk struct {
	ctx   context.Context
	label []byte
}

// all labels what is in the folder that root is open on, with what is mounted there.
func (w *walk) all(root int) error {
	return tree.Walk(root, tree.Visitor{
		Mounts: true,
		Entry:  func(dir int, name string, _ *unix.Stat_t) error { return w.entry(dir, name) },
		Leave:  func(int) error { return nil }, // nothing is left out when folders are moved: that is an error
	})
}

// entry labels what has this name in the folder dir.
func (w *walk) entry(dir int, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // it went away
	}
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	defer unix.Close(fd)
	return w.set(fd, name)
}

// set labels what fd is open on.
func (w *walk) set(fd int, name string) error {
	// A descriptor that was opened to name a file cannot set attributes; its path in /proc is that
	// file and no other.
	err := unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", fd), attribute, w.label, 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("label %q: %w", name, err)
	}
	return nil
}

// top labels path and all below it.
func (w *walk) top(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := w.all(fd); err != nil {
			return err
		}
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return w.set(fd, path)
}
