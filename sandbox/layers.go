package sandbox

import (
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Layer is the size of a writable layer, and of the filesystem that it lies on, when they were last measured. Nil is not known (yet).
type Layer struct {
	At            time.Time // zero: never
	Bytes, Inodes *uint64
	Capacity      *uint64 // bytes of the filesystem
	InodesTotal   *uint64 // of the filesystem; 0 when it makes them as they are needed
	InodesFree    *uint64
}

const (
	// layerFor is how old a measured size may be.
	layerFor = time.Minute
	// firstWalk is how long the first question for layers waits for an answer; most layers are small.
	firstWalk = 100 * time.Millisecond
	// walkers is how many layers are walked at a time.
	walkers = 2
)

// layers remembers the sizes of writable layers, so that asking often walks seldom, and a walk that is slow keeps nobody waiting.
type layers struct {
	mu   sync.Mutex // guards what follows; not held while walking
	all  map[string]*layer
	free chan struct{} // has a place for each walker
}

type layer struct {
	last    Layer
	asked   time.Time
	walking chan struct{} // closed when the walk under way has ended; nil without one
}

// measure returns the sizes of layers as they were at most layerFor ago, or, while a slow walk is under way, before that.
func (l *layers) measure(dirs ...string) []Layer {
	all := make([]*layer, len(dirs))
	var walks []chan struct{} // of those that were never measured
	l.mu.Lock()
	for i, dir := range dirs {
		all[i] = l.of(dir)
		if walking := all[i].walking; walking != nil && all[i].last.At.IsZero() {
			walks = append(walks, walking)
		}
	}
	l.mu.Unlock()
	patience := time.After(firstWalk)
wait:
	for _, walk := range walks {
		select {
		case <-walk:
		case <-patience:
			break wait
		}
	}
	sizes := make([]Layer, len(dirs))
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, one := range all {
		sizes[i] = one.last
	}
	return sizes
}

// of returns what is known of a layer, and has it walked when that is too old. Called with mu held.
func (l *layers) of(dir string) *layer {
	one, known := l.all[dir]
	if !known {
		l.forget()
		one = &layer{}
		l.all[dir] = one
	}
	one.asked = time.Now()
	if one.walking == nil && time.Since(one.last.At) > layerFor {
		one.walking = make(chan struct{})
		go l.walk(dir, one)
	}
	return one
}

func (l *layers) walk(dir string, one *layer) {
	l.free <- struct{}{}
	now := measureLayer(dir)
	<-l.free
	l.mu.Lock()
	defer l.mu.Unlock()
	one.last = now
	close(one.walking)
	one.walking = nil
}

// forget drops the layers that nobody has asked about for long. Called with mu held.
func (l *layers) forget() {
	if l.all == nil {
		l.all, l.free = map[string]*layer{}, make(chan struct{}, walkers)
	}
	for dir, one := range l.all {
		if one.walking == nil && time.Since(one.asked) > forgetAfter {
			delete(l.all, dir)
		}
	}
}

// measureLayer walks a layer. What does not exist has no size.
func measureLayer(dir string) Layer {
	l := Layer{At: time.Now()}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return l
	}
	bytes, inodes := diskUsage(dir)
	l.Bytes, l.Inodes = &bytes, &inodes
	l.Capacity, l.InodesTotal, l.InodesFree = new(fs.Blocks*uint64(fs.Bsize)), &fs.Files, &fs.Ffree
	return l
}

// diskUsage counts the blocks and inodes of dir and below; what goes away meanwhile is not counted. What is in a layer is a container's doing:
// no link is followed, and however much there is, it is looked at in parts.
func diskUsage(dir string) (bytes, inodes uint64) {
	fd, err := unix.Open(dir, openFolder, 0)
	if err != nil {
		return 0, 0
	}
	var u diskCount
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		u.add(&st)
	}
	u.walk(os.NewFile(uintptr(fd), dir), 1)
	return uint64(math.Round(u.bytes)), uint64(math.Round(u.inodes))
}

const (
	openFolder  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	namesAtOnce = 1024
	// deepest is how many folders may lie in each other, and stay open on the way down. What is below is not counted.
	deepest = 1000
)

// diskCount adds up in parts: a file with several names, all of which are in the layer, counts once when all of them were seen.
type diskCount struct{ bytes, inodes float64 }

func (u *diskCount) add(st *unix.Stat_t) {
	names := 1.0
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		names = max(1, float64(st.Nlink))
	}
	u.bytes += float64(st.Blocks) * 512 / names
	u.inodes += 1 / names
}

// walk counts what is in dir, which it closes.
func (u *diskCount) walk(dir *os.File, depth int) {
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(namesAtOnce)
		for _, name := range names {
			u.look(int(dir.Fd()), name, depth)
		}
		if err != nil {
			return
		}
	}
}

func (u *diskCount) look(dir int, name string, depth int) {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	u.add(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth == deepest {
		return
	}
	if fd, err := unix.Openat(dir, name, openFolder, 0); err == nil {
		u.walk(os.NewFile(uintptr(fd), name), depth+1)
	}
}
