package layers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/internal/tree"
)

// MaxDifferences is how many differences of one layer are reported.
const MaxDifferences = 10

// Again unpacks the layer l once more, from its blob, and compares its folder with the result: this
// finds everything that the tar of the layer says, whatever its entries do to each other. It returns
// at most MaxDifferences differences, none for an undamaged layer. The caller deletes the folder of
// fresh, or uses it in the place of l.
func (u *Unpacker) Again(
	ctx context.Context, l *Layer, src Source, fixes []Fix, it *progress.Item,
) (fresh *Layer, differences []string, err error) {
	if FixesKey(fixes) != l.Fixes {
		return nil, nil, fmt.Errorf("the layers below have other directories than when layer %s was unpacked", l.DiffID)
	}
	fresh, err = u.Unpack(ctx, src, l.DiffID, fixes, it)
	if err != nil {
		return nil, nil, err
	}
	differences, err = u.compare(ctx, fresh, l)
	if err != nil {
		_ = u.store.Remove(fresh.Dir) // the next Open deletes what is left
		return nil, nil, fmt.Errorf("compare layer %s: %w", l.DiffID, err)
	}
	return fresh, differences, nil
}

// compare returns how the folder of a layer differs from that of a fresh copy.
func (u *Unpacker) compare(ctx context.Context, fresh, l *Layer) ([]string, error) {
	want, err := unix.Open(u.store.Files(fresh.Dir), folderFlags, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(want)
	got, err := unix.Open(u.store.Files(l.Dir), folderFlags, 0)
	if isMissing(err) {
		return []string{"its folder is missing"}, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(got)
	c := &comparison{ctx: ctx, prog: u.prog, got: got, dir: -1, a: make([]byte, 256<<10), b: make([]byte, 256<<10)}
	defer c.moved()
	if err := c.folder(want, got, "/"); err != nil {
		return nil, err
	}
	err = c.walk(want, c.entry)
	if err == nil {
		c.got = want
		err = c.walk(got, c.extra)
	}
	if err == errEnough {
		err = nil
	}
	return c.found, err
}

const folderFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// comparison walks one tree, and looks up each of its entries in the other.
type comparison struct {
	ctx   context.Context
	prog  *progress.Clock
	got   int    // root of the other tree
	path  string // of the folder in which the walk is
	dir   int    // the same folder in the other tree; -1 when it is not open
	a, b  []byte
	found []string
}

// errEnough ends a walk that has found MaxDifferences.
var errEnough = fmt.Errorf("more than %d differences", MaxDifferences)

func (c *comparison) walk(root int, entry func(dir int, name string, st *unix.Stat_t) error) error {
	c.path = ""
	c.moved()
	return tree.Walk(root, tree.Visitor{
		Entry: func(dir int, name string, st *unix.Stat_t) error {
			if c.ctx.Err() != nil {
				return context.Cause(c.ctx)
			}
			if err := entry(dir, name, st); err != errNoFolder {
				return err
			}
			return nil
		},
		Enter: func(name string) error {
			c.moved()
			c.path = path.Join(c.path, name)
			return nil
		},
		Leave: func(int) error {
			c.moved()
			if c.path = path.Dir(c.path); c.path == "." {
				c.path = ""
			}
			return nil
		},
	})
}

// moved closes the folder of the other tree.
func (c *comparison) moved() {
	if c.dir >= 0 {
		unix.Close(c.dir)
	}
	c.dir = -1
}

// errNoFolder means that the other tree has no such folder, which has been reported.
var errNoFolder = errors.New("the folder is missing")

// other returns the status of an entry of the same folder in the other tree.
func (c *comparison) other(name string) (st unix.Stat_t, missing bool, err error) {
	if c.dir < 0 {
		c.dir, err = openIn(c.got, orDot(c.path), unix.O_RDONLY|unix.O_DIRECTORY, insideNoLinks)
		if isMissing(err) {
			return st, true, errNoFolder
		}
	}
	if err == nil {
		st, err = lstatAt(c.dir, name)
	}
	if isMissing(err) {
		return st, true, nil
	}
	return st, false, err
}

func isMissing(err error) bool { return err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP }

func (c *comparison) differs(name, format string, args ...any) error {
	c.found = append(c.found, fmt.Sprintf("%q ", fault.Clip(name))+fmt.Sprintf(format, args...))
	if len(c.found) >= MaxDifferences {
		return errEnough
	}
	return nil
}

// extra reports what only the walked tree has.
func (c *comparison) extra(_ int, name string, _ *unix.Stat_t) error {
	_, missing, err := c.other(name)
	if err != nil || !missing {
		return err
	}
	return c.differs(path.Join("/", c.path, name), "is not in the image")
}

// entry compares one file or folder with that of the other tree.
func (c *comparison) entry(dir int, name string, want *unix.Stat_t) error {
	full := path.Join("/", c.path, name)
	got, missing, err := c.other(name)
	switch {
	case err != nil && err != errNoFolder:
		return c.unreadable(full, err)
	case err != nil:
		return err
	case missing:
		return c.differs(full, "is missing")
	}
	if what := statusDiffers(want, &got); what != "" {
		return c.differs(full, "has another %s", what)
	}
	switch want.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		a, err := readlinkAt(dir, name)
		if err != nil {
			return err
		}
		b, err := readlinkAt(c.dir, name)
		if err != nil {
			return c.unreadable(full, err)
		}
		if a != b {
			return c.differs(full, "links to another file")
		}
	case unix.S_IFREG, unix.S_IFDIR:
		return c.open(dir, name, full, want)
	}
	return nil
}

// unreadable reports an error of the disk as damage. Others end the comparison.
func (c *comparison) unreadable(name string, err error) error {
	if slices.Contains([]error{unix.EIO, unix.EUCLEAN, unix.EBADMSG, unix.ESTALE}, err) {
		return c.differs(name, "cannot be read: %v", err)
	}
	return err
}

// statusDiffers names the first difference of two statuses that the unpacking decides. The times of
// folders and devices are not such.
func statusDiffers(want, got *unix.Stat_t) string {
	kind := want.Mode & unix.S_IFMT
	switch {
	case kind != got.Mode&unix.S_IFMT:
		return "type"
	case want.Mode != got.Mode:
		return fmt.Sprintf("mode: %#o, not %#o", got.Mode&0o7777, want.Mode&0o7777)
	case want.Uid != got.Uid || want.Gid != got.Gid:
		return fmt.Sprintf("owner: %d:%d, not %d:%d", got.Uid, got.Gid, want.Uid, want.Gid)
	case want.Rdev != got.Rdev:
		return "device number"
	case kind == unix.S_IFREG && want.Size != got.Size:
		return fmt.Sprintf("size: %d bytes, not %d", got.Size, want.Size)
	case kind == unix.S_IFREG && want.Nlink != got.Nlink:
		return "number of hard links"
	case (kind == unix.S_IFREG || kind == unix.S_IFLNK) && want.Mtim != got.Mtim:
		return "time"
	}
	return ""
}

// open compares what is in a file or folder: extended attributes, and the content of a file.
func (c *comparison) open(dir int, name, full string, st *unix.Stat_t) error {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	a, err := unix.Openat(dir, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := unix.Openat(c.dir, name, flags, 0)
	if err != nil {
		return c.unreadable(full, err)
	}
	defer unix.Close(b)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.attributes(a, b, full)
	}
	if err := c.attributes(a, b, full); err != nil {
		return err
	}
	return c.content(a, b, full, st.Size)
}

// folder compares the two roots.
func (c *comparison) folder(a, b int, full string) error {
	var want, got unix.Stat_t
	if err := unix.Fstat(a, &want); err != nil {
		return err
	}
	if err := unix.Fstat(b, &got); err != nil {
		return err
	}
	if what := statusDiffers(&want, &got); what != "" {
		return c.differs(full, "has another %s", what)
	}
	return c.attributes(a, b, full)
}

// content compares two files. It reads the damaged one from the disk, not from the memory of the
// kernel.
func (c *comparison) content(a, b int, full string, size int64) error {
	_ = unix.Fadvise(b, 0, 0, unix.FADV_DONTNEED)
	for at := int64(0); at < size; {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		n, err := readAt(a, c.a, at)
		if err != nil {
			return err
		}
		m, err := readAt(b, c.b, at)
		if err != nil {
			return c.unreadable(full, err)
		}
		c.prog.Moved.Add(int64(n))
		if n == 0 || !bytes.Equal(c.a[:n], c.b[:m]) {
			return c.differs(full, "has other content")
		}
		at += int64(n)
	}
	return nil
}

// readAt fills b from the offset, as far as the file goes.
func readAt(fd int, b []byte, at int64) (n int, err error) {
	for n < len(b) {
		m, err := unix.Pread(fd, b[n:], at+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return n, err
		}
		n += m
	}
	return n, nil
}

// attributes compares the extended attributes that unpacking sets. Security modules of this machine
// set others.
func (c *comparison) attributes(a, b int, full string) error {
	want, err := attributesOf(a)
	if err != nil {
		return err
	}
	got, err := attributesOf(b)
	if err != nil {
		return c.unreadable(full, err)
	}
	for name, value := range want {
		if other, ok := got[name]; !ok || other != value {
			return c.differs(full, "has another attribute %s", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			return c.differs(full, "has an attribute %s that is not in the image", name)
		}
	}
	return nil
}

func attributesOf(fd int) (map[string]string, error) {
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]byte, n)
	if n, err = unix.Flistxattr(fd, list); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for raw := range bytes.SplitSeq(list[:n], []byte{0}) {
		name := string(raw)
		if name == "" || name != "trusted.overlay.opaque" && !xattrAllowed(name) {
			continue
		}
		size, err := unix.Fgetxattr(fd, name, nil)
		if err != nil {
			return nil, err
		}
		value := make([]byte, size)
		if size > 0 {
			if size, err = unix.Fgetxattr(fd, name, value); err != nil {
				return nil, err
			}
		}
		all[name] = string(value[:size])
	}
	return all, nil
}
