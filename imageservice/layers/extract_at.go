package layers

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/overlay"
	"github.com/cribox/cribox/internal/tree"
)

const whiteoutPrefix = ".wh."

// whiteout handles whiteout entries, strictly: ".wh.<name>" hides a name of the layers below,
// ".wh..wh..opq" hides all names of the directory; other ".wh..wh." names belong to AUFS and are
// ignored. It refuses a whiteout of "", "." or "..".
func (x *extractor) whiteout(parent int, base string) error {
	if base == ".wh..wh..opq" {
		fd, err := unix.Openat(parent, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return overlay.SetOpaque(fd)
	}
	if strings.HasPrefix(base, ".wh..wh.") {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fault.Refuse(errdefs.ErrInvalidArgument, "whiteout without a name")
	}
	err := unix.Mknodat(parent, name, unix.S_IFCHR, 0)
	if err != unix.EEXIST {
		return fault.Disk(err)
	}
	// If this layer has an earlier entry of that name, the entry stays, because a whiteout hides
	// only the layers below. If it is a directory, it becomes opaque, so that it does not show
	// their files.
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		defer unix.Close(fd)
		return overlay.SetOpaque(fd)
	case unix.ENOTDIR, unix.ELOOP, unix.ENXIO:
		return nil
	}
	return err
}

func isWhiteout(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

func lstatAt(dir int, base string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// in opens a name below the root. Links resolve as if the root were "/"; magic links and
// mountpoints are errors.
func (x *extractor) in(name string, flags uint64) (int, error) {
	return openIn(x.root, name, flags, unix.RESOLVE_IN_ROOT)
}

func openIn(root int, name string, flags, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC,
		Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, name, &how)
		// EAGAIN: something on this machine was renamed or mounted while the kernel resolved "..".
		if err == unix.EINTR || err == unix.EAGAIN && try < 1000 {
			continue
		}
		return fd, err
	}
}

// openParent returns a descriptor of the directory dir ("" is the root), and creates the directory
// and its parents if needed. The extractor owns the descriptor, which is valid until the next call.
func (x *extractor) openParent(dir string) (int, error) {
	if x.parent >= 0 && x.parentName == dir {
		return x.parent, nil
	}
	x.forget()
	fd, err := x.openOrMake(dir, 0)
	if err != nil {
		return -1, err
	}
	// The length of dir does not matter: links may have made the real path longer.
	if _, err := x.realName(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	x.parentName, x.parent = dir, fd
	x.parentPlain = st.Mode&unix.S_ISGID == 0 && int(st.Gid) == x.gid
	return fd, nil
}

// forget closes the cached parent, because its name may now refer to another directory.
func (x *extractor) forget() {
	if x.parent >= 0 {
		unix.Close(x.parent)
	}
	x.parent = -1
}

const maxLinks = 40

func tooDeep() error {
	return fault.Refuse(errdefs.ErrResourceExhausted,
		"directories are nested so deeply that their path is longer than %d bytes, the kernel's limit", maxName)
}

// openOrMake opens the directory dir and creates its missing parents, topmost first. It holds two
// descriptors at most, however deep dir is.
func (x *extractor) openOrMake(dir string, links int) (int, error) {
	fd, err := x.in(orDot(dir), unix.O_PATH|unix.O_DIRECTORY)
	var missing []string // deepest first
	for up := dir; err == unix.ENOENT && up != ""; {
		var base string
		up, base = splitName(up)
		missing = append(missing, base)
		fd, err = x.in(orDot(up), unix.O_PATH|unix.O_DIRECTORY)
	}
	for len(missing) > 0 && err == nil {
		above := fd
		fd, err = x.make(above, missing[len(missing)-1], links)
		unix.Close(above)
		missing = missing[:len(missing)-1]
	}
	if err != nil {
		return -1, parentError(dir, err)
	}
	return fd, nil
}

// make creates the directory base. If base is a link to something that this layer does not have, it
// creates the target instead: the layers below may have it.
func (x *extractor) make(above int, base string, links int) (int, error) {
	err := unix.Mkdirat(above, base, 0o755)
	if err == nil {
		return x.madeUp(above, base)
	}
	if err != unix.EEXIST {
		return -1, err
	}
	if links == maxLinks {
		return -1, fault.Refuse(errdefs.ErrInvalidArgument, "too many symbolic links in parent %q", fault.Clip(base))
	}
	to, err := readlinkAt(above, base)
	if err != nil {
		return -1, err
	}
	if !path.IsAbs(to) {
		name, err := x.realName(above)
		if err != nil {
			return -1, err
		}
		to = path.Join("/", name, to)
	}
	to = strings.Trim(path.Clean(to), "/")
	if len(to) > maxName {
		return -1, tooDeep()
	}
	return x.openOrMake(to, links+1)
}

// madeUp opens a directory for which the tar had no entry so far, and remembers it.
func (x *extractor) madeUp(above int, base string) (int, error) {
	if err := x.count(); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(above, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	name, err := x.realName(fd)
	if err == nil {
		err = x.remember(name)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	x.implied[name] = true
	return fd, nil
}

func parentError(dir string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.EXDEV, unix.ENOENT:
		return fault.Refuse(errdefs.ErrInvalidArgument, "parent %q: %v", fault.Clip(dir), err)
	}
	return fault.Disk(err)
}

func readlinkAt(dir int, base string) (string, error) {
	b := make([]byte, maxName+1)
	n, err := unix.Readlinkat(dir, base, b)
	return string(b[:max(n, 0)]), err
}

// realName returns the real path of an open directory below the root, "" for the root. It returns
// ErrResourceExhausted if the path is longer than the kernel permits.
func (x *extractor) realName(fd int) (string, error) {
	root, err := os.Readlink(fdPath(x.root))
	if err != nil {
		return "", err
	}
	name, err := os.Readlink(fdPath(fd))
	if errors.Is(err, unix.ENAMETOOLONG) {
		return "", tooDeep()
	}
	if err != nil {
		return "", err
	}
	return strings.Trim(strings.TrimPrefix(name, root), "/"), nil
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// remove deletes a file or tree that a later entry replaces. It does not update x.implied; see
// madeUpNames.
func (x *extractor) remove(parent int, base string) error {
	x.parentName = "\x00" // the cached name may lead through what is removed; the caller still uses the descriptor
	return tree.RemoveAt(x.ctx, parent, base)
}

// madeUpNames returns the implied directories that still exist: later entries may have replaced
// some.
func (x *extractor) madeUpNames() (names []string, err error) {
	for name := range x.implied {
		fd, err := openIn(x.root, name, unix.O_PATH|unix.O_DIRECTORY, insideNoLinks)
		switch err {
		case nil:
			unix.Close(fd)
			names = append(names, name)
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		default:
			return nil, err
		}
	}
	return names, nil
}
