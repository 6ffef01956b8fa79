package tree

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxOpen is the largest number of folders that a walk or a removal holds open at once.
const maxOpen = 32

// openFlags opens a folder, and fails for a link.
const openFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// errMoved is returned if a folder was moved while the walk was below it.
var errMoved = errors.New("a folder was moved while it was being walked")

// Visitor holds the functions that Walk calls. An error of any of them ends the walk. Nil functions
// are not called.
type Visitor struct {
	// Entry is called for every file and folder below the root; for a folder, before Enter. dir is
	// a descriptor of the folder that contains it.
	Entry func(dir int, name string, st *unix.Stat_t) error
	// Enter is called when the walk enters a folder. name is the folder's name in its parent.
	Enter func(name string) error
	// Leave is called when the walk leaves a folder. dir is a descriptor of that folder.
	Leave func(dir int) error
	// Mounts makes the walk enter folders on which something is mounted.
	Mounts bool
	// Folders makes the walk visit only folders, which saves a stat of each file.
	Folders bool
}

// Walk visits everything below the folder that the descriptor root refers to; it does not close
// root. It follows no links, and enters mounts only if v.Mounts is set. Files that are deleted
// meanwhile are skipped. If folders are moved meanwhile, Walk may skip some and continue with the
// rest; if v.Leave is set, it returns an error instead.
func Walk(root int, v Visitor) error {
	w := walk{visit: v}
	defer w.close()
	fd, err := unix.Openat(root, ".", openFlags, 0)
	if err != nil {
		return err
	}
	if err := w.push(fd); err != nil {
		return err
	}
	w.dev = w.levels[0].dev
	for len(w.levels) > 0 {
		if err := w.step(); err != nil {
			return err
		}
	}
	return nil
}

type walk struct {
	visit  Visitor
	dev    uint64
	levels []level
	closed int // number of closed levels; the first one has the index fixed
	spare  []*listing
}

// level is one folder between the root and the current position. The shallowest and the deepest
// levels are open; those between are closed. A closed level is opened again through the ".." of the
// folder below it, and read further from its position.
type level struct {
	dev, ino uint64
	at       int64    // position of the next name
	fd       int      // -1 while closed
	names    *listing // nil while closed
}

// fixed is the number of levels at the top that are never closed. If a folder is moved during the
// walk, the walk continues at the deepest of these levels at the latest.
const fixed = maxOpen / 2

// step visits the next entry of the deepest level, or leaves the level after its last entry.
func (w *walk) step() error {
	l := &w.levels[len(w.levels)-1]
	name, at, err := l.names.next(l.fd)
	if err != nil || name == "" {
		return errors.Join(ignoreGone(err), w.leave())
	}
	l.at = at
	if w.visit.Folders && l.names.kind != unix.DT_DIR && l.names.kind != unix.DT_UNKNOWN {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(l.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(err)
	}
	if w.visit.Folders && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if w.visit.Entry != nil {
		if err := w.visit.Entry(l.fd, name, &st); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Dev != w.dev && !w.visit.Mounts {
		return nil
	}
	return w.enter(l.fd, name)
}

func (w *walk) enter(dir int, name string) error {
	fd, err := unix.Openat(dir, name, openFlags, 0)
	if err != nil {
		return ignoreGone(err)
	}
	if w.visit.Enter != nil {
		if err := w.visit.Enter(name); err != nil {
			unix.Close(fd)
			return err
		}
	}
	return w.push(fd)
}

// push makes fd the deepest level. If more than maxOpen levels are open, it closes one in the
// middle.
func (w *walk) push(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	w.levels = append(w.levels, level{dev: st.Dev, ino: st.Ino, fd: fd, names: w.listing()})
	if open := len(w.levels) - w.closed; open > maxOpen {
		w.closeLevel(&w.levels[fixed+w.closed])
		w.closed++
	}
	return nil
}

func (w *walk) closeLevel(l *level) {
	if l.fd >= 0 {
		unix.Close(l.fd)
		w.spare = append(w.spare, l.names)
	}
	l.fd, l.names = -1, nil
}

func (w *walk) listing() *listing {
	if len(w.spare) == 0 {
		return newListing()
	}
	l := w.spare[len(w.spare)-1]
	w.spare = w.spare[:len(w.spare)-1]
	l.rest = nil
	return l
}

// leave returns to the level above. If that level was moved and cannot be opened again, leave skips
// it and all closed levels above it.
func (w *walk) leave() error {
	last := len(w.levels) - 1
	left := w.levels[last]
	w.levels = w.levels[:last]
	defer w.closeLevel(&left)
	if w.visit.Leave != nil && last > 0 {
		if err := w.visit.Leave(left.fd); err != nil {
			return err
		}
	}
	if last == 0 || w.levels[last-1].fd >= 0 {
		return nil
	}
	return w.reopen(left.fd)
}

func (w *walk) reopen(below int) error {
	l := &w.levels[len(w.levels)-1]
	fd, err := unix.Openat(below, "..", openFlags, 0)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && (st.Dev != l.dev || st.Ino != l.ino) {
			err = errMoved
		}
		if err == nil {
			_, err = unix.Seek(fd, l.at, unix.SEEK_SET)
		}
		if err == nil {
			l.fd, l.names = fd, w.listing()
			w.closed--
			return nil
		}
		unix.Close(fd)
	}
	if w.visit.Leave != nil {
		return fmt.Errorf("go back up: %w", err) // a caller that tracks the position would be wrong from here on
	}
	w.levels, w.closed = w.levels[:len(w.levels)-w.closed], 0
	return nil
}

func (w *walk) close() {
	for i := range w.levels {
		w.closeLevel(&w.levels[i])
	}
}

// Usage returns the disk space in bytes and the number of inodes of a folder and everything below
// it, as du(1) counts them. A file with several names counts once if all of them are in the tree,
// and otherwise in proportion. A missing folder counts as 0.
func Usage(dir string) (bytes, inodes uint64, err error) { return Count(dir, nil) }

// lookEvery is the number of entries between two calls of look by Count.
const lookEvery = 64

// Count is Usage with progress: every lookEvery entries it calls look with the sums so far. An
// error of look ends the count and is returned. look may block; the walk holds up to maxOpen
// descriptors meanwhile. A nil look is not called.
func Count(dir string, look func(bytes, inodes uint64) error) (bytes, inodes uint64, err error) {
	root, err := unix.Open(dir, openFlags, 0)
	if err != nil {
		return 0, 0, ignoreGone(err)
	}
	defer unix.Close(root)
	var u usage
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return 0, 0, err
	}
	u.add(&st)
	entries := 0
	err = Walk(root, Visitor{Entry: func(_ int, _ string, st *unix.Stat_t) error {
		u.add(st)
		if entries++; look == nil || entries%lookEvery != 0 {
			return nil
		}
		return look(u.sum())
	}})
	bytes, inodes = u.sum()
	return bytes, inodes, err
}

// usage adds the share of each name, so that Usage need not remember files with several names.
type usage struct{ bytes, inodes float64 }

func (u *usage) sum() (bytes, inodes uint64) { return uint64(u.bytes + 0.5), uint64(u.inodes + 0.5) }

func (u *usage) add(st *unix.Stat_t) {
	names := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		names = max(1, float64(st.Nlink))
	}
	u.bytes += float64(st.Blocks) * 512 / names
	u.inodes += 1 / names
}

func ignoreGone(err error) error {
	for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ESTALE} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	if err != nil {
		return os.NewSyscallError("walk a folder", err)
	}
	return nil
}
