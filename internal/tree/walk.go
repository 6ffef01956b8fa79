package tree

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxOpen is how many folders a walk and a removal hold open at the same time.
const maxOpen = 32

// openFlags opens a folder, and nothing that a link leads to.
const openFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// errMoved: somebody moved a folder while the walk was below it.
var errMoved = errors.New("a folder was moved while it was being walked")

// Visitor is called for what is in a tree. An error of Entry or Enter ends the walk. A nil function
// is not called.
type Visitor struct {
	// Entry is called for everything below the root, folders included, before Enter. dir is open on
	// the folder that holds it.
	Entry func(dir int, name string, st *unix.Stat_t) error
	// Enter is called when the walk goes into a folder, with its name in the folder above.
	Enter func(name string) error
	// Leave is called when the walk comes back out of it. dir is open on the folder that was left.
	Leave func(dir int) error
	// Mounts: the walk goes into what is mounted in the tree.
	Mounts bool
	// Folders: nothing but folders is visited, which saves a look at each file.
	Folders bool
}

// Walk visits everything below the folder that root is open on, which stays the caller's. It
// crosses no mount, unless Mounts says so, and follows no link. What goes away meanwhile is left
// out. When somebody moves folders meanwhile, some may be left out; Walk then goes on with the
// rest.
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
	closed int // so many levels, from fixed on, are closed
	spare  []*listing
}

// level is one folder on the way down. The shallowest ones and the deepest ones are open, those
// between are closed: they are opened again by the ".." of the folder below, and read on from where
// they were.
type level struct {
	dev, ino uint64
	at       int64    // where the next names are read from
	fd       int      // -1 while it is closed
	names    *listing // nil while it is closed
}

// fixed levels at the top are never closed: a folder that is moved loses the walk only what is
// below them.
const fixed = maxOpen / 2

// step handles the next entry of the deepest level, or leaves the level when there is none.
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

// push makes fd the deepest level and closes the one that is open without need.
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

// leave goes back to the level above. One that cannot be found again is skipped, and so are those
// above it up to one that is open.
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
		return fmt.Errorf("go back up: %w", err) // whoever keeps pace with the walk would be in another folder
	}
	w.levels, w.closed = w.levels[:len(w.levels)-w.closed], 0
	return nil
}

func (w *walk) close() {
	for i := range w.levels {
		w.closeLevel(&w.levels[i])
	}
}

// Usage counts the blocks, in bytes, and the inodes of a folder and of what is below, as du(1)
// does. A file with several names counts once when all of them are in the tree, else for its share.
// A folder that is not there takes nothing.
func Usage(dir string) (bytes, inodes uint64, err error) { return Count(dir, nil) }

// lookEvery is after how many entries Count calls look.
const lookEvery = 64

// Count is Usage that calls look now and then with what it has counted so far, and ends with its
// error. look may wait; a walk holds maxOpen descriptors meanwhile. A nil look is not called.
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

// usage adds up shares, so that no list of the files with several names is needed.
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
