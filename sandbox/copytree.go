package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyPiece is how much of a file is copied between two looks at the context.
const copyPiece = 64 << 20

// treeCopy copies a folder of an image: names, owners, modes, times, extended attributes, hard links and holes.
type treeCopy struct {
	ctx    context.Context
	linked map[[2]uint64]string // first name of each file that has several
	dirs   []copied             // whose times are set last: putting something into a directory changes them
}

type copied struct {
	name string
	st   *syscall.Stat_t
}

// copyTree copies the folder from to the folder to, which it makes. Neither may change meanwhile. It ends with ctx, in the middle of a file
// too; what it has made then is the caller's to delete.
func copyTree(ctx context.Context, from, to string) error {
	t := &treeCopy{ctx: ctx, linked: map[[2]uint64]string{}}
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no status of %s", name)
		}
		if err := t.one(path, filepath.Join(to, name), st); err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
		return nil
	})
	for i := len(t.dirs) - 1; i >= 0 && err == nil; i-- {
		err = setTimes(t.dirs[i].name, t.dirs[i].st)
	}
	return err
}

func (t *treeCopy) one(from, to string, st *syscall.Stat_t) error {
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(to, 0o700)
		t.dirs = append(t.dirs, copied{to, st})
	case unix.S_IFREG:
		id := [2]uint64{st.Dev, st.Ino}
		if first := t.linked[id]; first != "" {
			return os.Link(first, to)
		}
		if st.Nlink > 1 {
			t.linked[id] = to
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
	return dressLike(from, to, st)
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

// nextData returns the next bytes at or behind at that are not a hole, none at the end. A filesystem that knows nothing of holes has none.
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

// dressLike gives owner, mode, extended attributes and times, in this order: chown takes setuid bits and capabilities away.
func dressLike(from, to string, st *syscall.Stat_t) error {
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

func setTimes(name string, st *syscall.Stat_t) error {
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
