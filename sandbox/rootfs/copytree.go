package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
	"github.com/cribox/cribox/sandbox/table"
)

// copyPiece is how much of a file is copied between two looks at the context.
const copyPiece = 64 << 20

// treeCopy copies a folder of an image: names, owners, modes, times, extended attributes, hard
// links and holes. It follows a walk of the source down and up again in the copy, with one
// descriptor, so that no path is longer than a name.
type treeCopy struct {
	ctx   context.Context
	at    *os.File // the folder of the copy that is being filled
	links string   // folder with a further name of each file that has several; "" while there is none
	to    string
}

// copyTree copies the folder from to the folder to, which it makes. Neither may change meanwhile.
// It ends with ctx, in the middle of a file too; what it has made then is the caller's to delete.
func copyTree(ctx context.Context, from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	t := &treeCopy{ctx: ctx, to: to}
	if t.at, err = os.Open(to); err != nil {
		return err
	}
	defer func() { t.at.Close() }()
	err = tree.Walk(int(src.Fd()), tree.Visitor{Entry: t.entry, Enter: t.enter, Leave: t.leave})
	if err == nil {
		err = t.dress(int(src.Fd()))
	}
	if t.links != "" {
		err = errors.Join(err, tree.Remove(context.WithoutCancel(ctx), t.links))
	}
	return err
}

// below is a path of a name in an open folder.
func below(dir int, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, name) }

func (t *treeCopy) entry(dir int, name string, st *unix.Stat_t) error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	if err := t.one(below(dir, name), below(int(t.at.Fd()), name), st); err != nil {
		return fmt.Errorf("copy %s: %w", table.Short(name), err)
	}
	return nil
}

func (t *treeCopy) enter(name string) error { return t.move(name) }

// leave gives a folder its metadata after its content: putting something into it changes its times.
func (t *treeCopy) leave(dir int) error {
	if err := t.dress(dir); err != nil {
		return err
	}
	return t.move("..")
}

func (t *treeCopy) move(name string) error {
	fd, err := unix.Openat(int(t.at.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s in the copy: %w", table.Short(name), err)
	}
	t.at.Close()
	t.at = os.NewFile(uintptr(fd), name)
	return nil
}

func (t *treeCopy) dress(dir int) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	return dressLike(below(dir, "."), below(int(t.at.Fd()), "."), &st)
}

func (t *treeCopy) one(from, to string, st *unix.Stat_t) error {
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return os.Mkdir(to, 0o700)
	case unix.S_IFREG:
		if t.linked(to, st) {
			return nil
		}
		err = t.file(from, to, st.Size)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	default:
		err = unix.Mknod(to, st.Mode&unix.S_IFMT|0o600, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	if err := dressLike(from, to, st); err != nil {
		return err
	}
	return t.remember(to, st)
}

func linkName(st *unix.Stat_t) string { return fmt.Sprintf("%d-%d", st.Dev, st.Ino) }

// linked makes a further name of a file that was copied already. When it cannot, the file is copied
// once more.
func (t *treeCopy) linked(to string, st *unix.Stat_t) bool {
	return st.Nlink > 1 && t.links != "" && os.Link(filepath.Join(t.links, linkName(st)), to) == nil
}

// remember keeps a name of a file that has several: the one that it has in the copy may be deeper
// than a path can say.
func (t *treeCopy) remember(to string, st *unix.Stat_t) error {
	if st.Nlink < 2 || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	if t.links == "" {
		if err := os.Mkdir(t.to+".links", 0o700); err != nil {
			return err
		}
		t.links = t.to + ".links"
	}
	if err := os.Link(to, filepath.Join(t.links, linkName(st))); err != nil && !errors.Is(err, unix.EMLINK) &&
		!errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// file copies what the source has between its holes.
func (t *treeCopy) file(from, to string, size int64) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = dst.Truncate(size)
	for at := int64(0); at < size && err == nil; {
		var end int64
		if at, end, err = nextData(src, at, size); err != nil || at == end {
			break
		}
		at, err = t.piece(dst, src, at, min(end, at+copyPiece))
	}
	return errors.Join(err, dst.Close())
}

// piece copies bytes, by copy_file_range where the filesystems can, and returns where it got to.
func (t *treeCopy) piece(dst, src *os.File, at, end int64) (int64, error) {
	if t.ctx.Err() != nil {
		return at, context.Cause(t.ctx)
	}
	for _, f := range []*os.File{src, dst} {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return at, err
		}
	}
	n, err := io.CopyN(dst, src, end-at)
	return at + n, err
}

// nextData returns the next bytes at or behind at that are not a hole, none at the end. A
// filesystem that knows nothing of holes has none.
func nextData(f *os.File, at, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP):
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	return start, min(end, size), err
}

// dressLike gives owner, mode, extended attributes and times, in this order: chown takes setuid
// bits and capabilities away.
func dressLike(from, to string, st *unix.Stat_t) error {
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return err
		}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return setTimes(to, st)
}

func setTimes(name string, st *unix.Stat_t) error {
	times := []unix.Timespec{unix.NsecToTimespec(st.Atim.Nano()), unix.NsecToTimespec(st.Mtim.Nano())}
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10) // the most that the kernel tells
	n, err := unix.Llistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
	}
	return nil
}
