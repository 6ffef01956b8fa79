package selinux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const attribute = "security.selinux"

const (
	// deepest is how many folders may lie in one another: each has an open descriptor while the walk is in it.
	deepest = 1000
	// atOnce is how many names of a folder are read together.
	atOnce = 256
)

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

// Relabel gives a folder or file, and everything below it, the label. One that has it already is left alone as a whole: the top gets its label
// last, so it has it when all have. No link is followed, and every name is opened in the folder it was found in: a container that moves things
// about meanwhile can lead the walk nowhere else. A file system that has no labels is no error.
//
// ErrInvalidArgument for folders that the host itself needs, and ones in one another deeper than any descriptor table. When ctx ends, what is
// done stays done, and another call goes on.
func Relabel(ctx context.Context, path, label string) error {
	if label == "" {
		return nil
	}
	if isSystem(path) {
		return fmt.Errorf("relabel %s: the host needs its label: %w", path, errdefs.ErrInvalidArgument)
	}
	have := make([]byte, len(label)+2)
	n, err := unix.Lgetxattr(path, attribute, have)
	if err == nil && strings.TrimRight(string(have[:n]), "\x00") == label {
		return nil
	}
	w := walk{ctx: ctx, label: []byte(label)}
	if err := w.visit(unix.AT_FDCWD, path, 0); err != nil {
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

// visit labels what has this name in the folder at, what is in it first.
func (w *walk) visit(at int, name string, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) && depth > 0 {
		return nil // it went away
	}
	if err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := w.visitAll(fd, depth+1); err != nil {
			return err
		}
	}
	// A descriptor that was opened to name a file cannot set attributes; its path in /proc is that file and no other.
	err = unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", fd), attribute, w.label, 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("label %q: %w", name, err)
	}
	return nil
}

func (w *walk) visitAll(dir, depth int) error {
	if depth > deepest {
		return fmt.Errorf("folders lie in one another deeper than %d: %w", deepest, errdefs.ErrInvalidArgument)
	}
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	for {
		names, err := f.Readdirnames(atOnce)
		for _, name := range names {
			if err := w.visit(fd, name, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
