package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/overlay"
	"github.com/cribox/cribox/imageservice/writeback"
)

// extractor unpacks one layer's tar into a directory. One rule keeps it inside that directory
// (I19): names from the tar are never joined to a path. It opens parents with
// openat2(RESOLVE_IN_ROOT), so that symbolic links of the layer resolve within the layer. Each
// operation then uses the parent's descriptor and the last component, which contains no slash, and
// never follows a link.
//
// Whiteouts are written in the format of overlayfs: a character device 0/0 for a hidden name,
// trusted.overlay.opaque for a directory that hides those below.
type extractor struct {
	ctx     context.Context
	root    int // O_PATH descriptor of the layer's root
	most    caps
	entries int64
	names   int64 // bytes of the names that are kept until the end
	buf     []byte

	parentName  string // cached: the directory that parent refers to
	parent      int    // -1 for none
	parentPlain bool   // a new file in parent belongs to this process, not to the directory's group

	uid, gid int    // of this process
	umask    uint32 // of this process
	acl      bool   // some directory may have a default ACL, which changes the mode of new files

	dirs    []dirTime
	implied map[string]bool // directories that the tar has used without an entry (yet), as real paths below root
}

// caps limits what the tar of one layer can use.
type caps struct {
	entries int64
	names   int64  // bytes of names and times of directories, counted per entry, because they stay in memory
	files   *meter // counts the bytes written
}

// bytesOfTimes is the memory that a directory needs in addition to its name.
const bytesOfTimes = 64

// dirTime holds the times of a directory. They are set last, because adding files changes them.
type dirTime struct {
	name  string
	times [2]unix.Timespec
}

// entry is a tar header with its name split.
type entry struct {
	*tar.Header
	dir, base string // cleaned, relative; dir is "" for the root; base is "" if the entry is the root itself
}

// extract unpacks the tar r into the directory of the descriptor root (O_PATH is enough). It
// returns the directories that it created without an entry of the tar. Errors about the tar are
// ErrInvalidArgument or ErrResourceExhausted; after an error the caller must delete the partial
// tree.
func extract(ctx context.Context, r io.Reader, root int, most caps) (implied []string, err error) {
	x := &extractor{ctx: ctx, root: root, most: most, buf: make([]byte, 256<<10), parent: -1,
		uid: os.Geteuid(), gid: os.Getegid(), implied: map[string]bool{}}
	defer x.forget()
	if x.umask, err = umask(); err != nil {
		return nil, err
	}
	x.acl = hasDefaultACL(root)
	tr := tar.NewReader(r)
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, streamError(err)
		}
		if err := x.entry(h, tr); err != nil {
			return nil, fmt.Errorf("layer entry %q: %w", fault.Clip(h.Name), err)
		}
	}
	if err := x.settleTimes(); err != nil {
		return nil, err
	}
	return x.madeUpNames()
}

// streamError adds a class to errors of the tar format, and returns other errors of the stream
// unchanged.
func streamError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.Refuse(errdefs.ErrInvalidArgument, "layer is not a complete tar archive: %v", err)
	}
	return err
}

func (x *extractor) count() error {
	if x.entries++; x.entries > x.most.entries {
		return fault.Refuse(errdefs.ErrResourceExhausted, "more than %d entries in one layer (layer_files_max)",
			x.most.entries)
	}
	return x.most.files.entry()
}

// remember counts a name that stays in memory until the end. There may be as many names as entries,
// each as long as a path may be.
func (x *extractor) remember(name string) error {
	if x.names += int64(len(name)) + bytesOfTimes; x.names > x.most.names {
		return fault.Refuse(errdefs.ErrResourceExhausted, "more than %d bytes of directories' names and times in one layer",
			x.most.names)
	}
	return nil
}

func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := x.count(); err != nil {
		return err
	}
	e, err := split(h)
	if err != nil {
		return err
	}
	if e.base == "" {
		return x.rootEntry(e)
	}
	parent, err := x.openParent(e.dir)
	if err != nil {
		return err
	}
	if strings.HasPrefix(e.base, whiteoutPrefix) {
		return x.whiteout(parent, e.base)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.directory(parent, e)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return x.file(parent, e, r)
	case tar.TypeSymlink:
		return x.node(parent, e, func() error { return unix.Symlinkat(h.Linkname, parent, e.base) })
	case tar.TypeLink:
		return x.hardlink(parent, e)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.node(parent, e, func() error { return unix.Mknodat(parent, e.base, nodeType(h), nodeDevice(h)) })
	}
	return fault.Refuse(errdefs.ErrInvalidArgument, "entry of unknown type %q", h.Typeflag)
}

// split cleans a name as if the layer's root were "/". It returns an error for an invalid name or
// owner.
func split(h *tar.Header) (entry, error) {
	if len(h.Name) > maxName || len(h.Linkname) > maxName {
		return entry{}, fault.Refuse(errdefs.ErrInvalidArgument, "name of more than %d bytes", maxName)
	}
	if strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0) {
		return entry{}, fault.Refuse(errdefs.ErrInvalidArgument, "name with a NUL byte")
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= 1<<32-1 || h.Gid >= 1<<32-1 {
		return entry{}, fault.Refuse(errdefs.ErrInvalidArgument, "owner %d:%d", h.Uid, h.Gid)
	}
	dir, base := splitName(h.Name)
	return entry{Header: h, dir: dir, base: base}, nil
}

func splitName(name string) (dir, base string) {
	dir, base = path.Split(path.Clean("/" + name))
	return strings.Trim(dir, "/"), base
}

// rootEntry handles the entry "./", which sets owner, mode and times of the root. It makes the root
// readable and searchable for all, because some image builders use a folder that only they can
// access. It ignores an entry that is not a directory.
func (x *extractor) rootEntry(e entry) error {
	if e.Typeflag != tar.TypeDir {
		return nil
	}
	e.Mode |= overlay.RootMode
	fd, err := x.in(".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := x.remember("."); err != nil {
		return err
	}
	x.forget() // the root may be the cached parent, and gets another group or mode now
	x.dirs = append(x.dirs, dirTime{".", e.times()})
	return x.dress(fd, e)
}

func (x *extractor) directory(parent int, e entry) error {
	opaque := false
	err := unix.Mkdirat(parent, e.base, 0o700)
	if err == unix.EEXIST {
		st, serr := lstatAt(parent, e.base)
		if serr != nil {
			return serr
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = nil
		} else {
			opaque = isWhiteout(st) // a whiteout hides the directory below; keep that hidden
			if err = x.remove(parent, e.base); err == nil {
				err = unix.Mkdirat(parent, e.base, 0o700)
			}
		}
	}
	if err != nil {
		return fault.Disk(err)
	}
	fd, err := unix.Openat(parent, e.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if len(x.implied) > 0 {
		name, err := x.realName(fd)
		if err != nil {
			return err
		}
		delete(x.implied, name)
	}
	if opaque {
		if err := overlay.SetOpaque(fd); err != nil {
			return err
		}
	}
	name := path.Join(e.dir, e.base)
	if err := x.remember(name); err != nil {
		return err
	}
	x.dirs = append(x.dirs, dirTime{name, e.times()})
	return x.dress(fd, e)
}

// file creates a regular file. Most files of images cost four system calls: one to create the file
// with its mode, a write, one for its times, and a close.
func (x *extractor) file(parent int, e entry, r io.Reader) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	mode, finished := uint32(0o600), x.bornWith(e)
	if finished {
		mode = e.mode()
	}
	fd, err := unix.Openat(parent, e.base, flags, mode)
	if err == unix.EEXIST {
		if err = x.remove(parent, e.base); err == nil {
			fd, err = unix.Openat(parent, e.base, flags, mode)
		}
	}
	if err != nil {
		return fault.Disk(err)
	}
	err = x.copy(fd, r)
	if err == nil && finished {
		err = setXattrs(fd, e)
	} else if err == nil {
		err = x.dress(fd, e)
	}
	if err == nil {
		times := e.times()
		err = unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH)
	}
	if cerr := unix.Close(fd); err == nil {
		err = fault.Disk(cerr)
	}
	return err
}

// bornWith reports whether open(2) gives a new file in the cached parent the owner and mode of the
// entry. A directory with the setgid bit, or one on a file system that is mounted with grpid, gives
// its group to new files, a default ACL changes their mode, and a write clears the setuid bit of a
// process without CAP_FSETID.
func (x *extractor) bornWith(e entry) bool {
	return x.parentPlain && !x.acl && e.Uid == x.uid && e.Gid == x.gid && e.mode()&(x.umask|unix.S_ISUID|unix.S_ISGID) == 0
}

// umask returns the umask of this process. Only /proc tells it without setting another one.
func umask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(status), "\nUmask:\t")
	line, _, _ := strings.Cut(after, "\n")
	mask, err := strconv.ParseUint(line, 8, 32)
	if err != nil {
		return 0o777, nil // Linux before 4.7: every file needs a chmod
	}
	return uint32(mask), nil
}

// holeSize is the size of an all-zero block that becomes a hole. Smaller holes would only fragment
// the file.
const holeSize = 64 << 10

var zeros [holeSize]byte

// copy writes the content of r to the file. Long runs of zeros become holes, because disk images
// and login databases consist mostly of them.
func (x *extractor) copy(fd int, r io.Reader) error {
	var at, end int64 // number of bytes read, and end of the last bytes written
	onDisk := writeback.File{FD: fd}
	for {
		if x.ctx.Err() != nil {
			return context.Cause(x.ctx)
		}
		n, err := fill(r, x.buf)
		// The tar may itself be sparse: then a few of its bytes are many bytes of the file.
		if over := x.most.files.add(int64(n)); over != nil {
			return over
		}
		for b := x.buf[:n]; len(b) > 0; {
			piece := b[:min(len(b), holeSize)]
			b = b[len(piece):]
			if !bytes.Equal(piece, zeros[:len(piece)]) {
				if werr := x.write(fd, piece, at); werr != nil {
					return werr
				}
				end = at + int64(len(piece))
			}
			at += int64(len(piece))
		}
		onDisk.Grown(end)
		switch {
		case err == io.EOF && end < at:
			return fault.Disk(unix.Ftruncate(fd, at))
		case err == io.EOF:
			return nil
		case err != nil:
			return streamError(err)
		}
	}
}

// fill reads until b is full. Unlike io.ReadFull it returns every error unchanged.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = r.Read(b[n:])
		n += more
	}
	return n, err
}

func (x *extractor) write(fd int, b []byte, at int64) error {
	if over := x.most.files.wrote(int64(len(b)), fd); over != nil {
		return over
	}
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fault.Disk(err)
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// node creates a file without content by calling mk.
func (x *extractor) node(parent int, e entry, mk func() error) error {
	err := mk()
	if err == unix.EEXIST {
		if err = x.remove(parent, e.base); err == nil {
			err = mk()
		}
	}
	if err != nil {
		return fault.Disk(err)
	}
	if err := unix.Fchownat(parent, e.base, e.Uid, e.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.Typeflag != tar.TypeSymlink {
		// The name was just created and is not a link, and no other process knows the directory.
		if err := unix.Fchmodat(parent, e.base, e.mode(), 0); err != nil {
			return err
		}
	}
	times := e.times()
	return unix.UtimesNanoAt(parent, e.base, times[:], unix.AT_SYMLINK_NOFOLLOW)
}

// hardlink adds a name to a file of this layer. The file keeps the metadata of its first name.
func (x *extractor) hardlink(parent int, e entry) error {
	dir, base := splitName(e.Linkname)
	if dir == e.dir && base == e.base {
		return nil
	}
	from, err := x.in(orDot(dir), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fault.Refuse(errdefs.ErrInvalidArgument, "hard link to %q: %v", fault.Clip(e.Linkname), err)
	}
	defer unix.Close(from)
	err = unix.Linkat(from, base, parent, e.base, 0)
	if err == unix.EEXIST {
		if err = x.remove(parent, e.base); err == nil {
			err = unix.Linkat(from, base, parent, e.base, 0)
		}
	}
	switch {
	case err == unix.ENOENT || err == unix.EPERM || err == unix.ENOTDIR:
		return fault.Refuse(errdefs.ErrInvalidArgument, "hard link to %q: %v", fault.Clip(e.Linkname), err)
	case err != nil:
		return fault.Disk(err)
	}
	return nil
}

func nodeType(h *tar.Header) uint32 {
	switch h.Typeflag {
	case tar.TypeChar:
		return unix.S_IFCHR
	case tar.TypeBlock:
		return unix.S_IFBLK
	default:
		return unix.S_IFIFO
	}
}

func nodeDevice(h *tar.Header) int {
	if h.Typeflag == tar.TypeFifo {
		return 0
	}
	return int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
}

// mode returns the permission bits with setuid, setgid and sticky. Users of the node cannot reach
// setuid files of images, because layers/ has mode 0700.
func (e entry) mode() uint32 { return uint32(e.Mode) & 0o7777 }

func (e entry) times() [2]unix.Timespec {
	access := e.AccessTime
	if access.IsZero() {
		access = e.ModTime
	}
	return [2]unix.Timespec{timespec(access), timespec(e.ModTime)}
}

func timespec(t time.Time) unix.Timespec {
	ts, err := unix.TimeToTimespec(t)
	if err != nil || t.IsZero() {
		return unix.Timespec{}
	}
	return ts
}

// dress sets owner, mode and extended attributes of an open file or directory, in this order,
// because chown clears setuid bits and capabilities.
func (x *extractor) dress(fd int, e entry) error {
	if err := unix.Fchown(fd, e.Uid, e.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.mode()); err != nil {
		return err
	}
	x.acl = x.acl || e.PAXRecords["SCHILY.xattr."+defaultACL] != ""
	return setXattrs(fd, e)
}

// defaultACL is the extended attribute of a directory that new files in it get as their ACL.
const defaultACL = "system.posix_acl_default"

// hasDefaultACL reports whether a directory has, or may have, a default ACL. dir may be an O_PATH
// descriptor.
func hasDefaultACL(dir int) bool {
	_, err := unix.Getxattr(fdPath(dir), defaultACL, nil)
	return err != unix.ENODATA && err != unix.ENOTSUP
}

// setXattrs sets the extended attributes of an entry that a layer may set.
func setXattrs(fd int, e entry) error {
	for record, v := range e.PAXRecords {
		k, ok := strings.CutPrefix(record, "SCHILY.xattr.")
		if !ok || !xattrAllowed(k) {
			continue
		}
		switch err := unix.Fsetxattr(fd, k, []byte(v), 0); err {
		case nil, unix.ENOTSUP:
		case unix.ENOSPC, unix.E2BIG, unix.ERANGE:
			return fault.Refuse(errdefs.ErrResourceExhausted, "extended attribute %q: %v", fault.Clip(k), err)
		case unix.EINVAL, unix.EPERM:
			return fault.Refuse(errdefs.ErrInvalidArgument, "extended attribute %q: %v", fault.Clip(k), err)
		default:
			return fault.Disk(err)
		}
	}
	return nil
}

// xattrAllowed reports whether a layer may set an extended attribute. Overlayfs interprets
// trusted.overlay.* and user.overlay.* (for example as redirects to other directories), and the
// other security and trusted attributes belong to security modules of this machine.
func xattrAllowed(k string) bool {
	switch k {
	case "security.capability", "system.posix_acl_access", defaultACL:
		return true
	}
	return strings.HasPrefix(k, "user.") && !strings.HasPrefix(k, "user.overlay.")
}

// settleTimes sets the times of directories in the order of the tar, so that the last entry of a
// name wins, as for mode and owner. It skips names that are no longer directories.
func (x *extractor) settleTimes() error {
	for _, d := range x.dirs {
		if x.ctx.Err() != nil {
			return context.Cause(x.ctx)
		}
		fd, err := x.in(d.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		err = unix.UtimesNanoAt(fd, "", d.times[:], unix.AT_EMPTY_PATH)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func orDot(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}
