package sandbox

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/tree"
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
	now := Layer{At: time.Now()}
	guard.Run(context.Background(), "measuring a layer", func() { now = measureLayer(dir) })
	<-l.free
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Bytes == nil && one.last.Bytes != nil && exists(dir) {
		at := now.At
		now = one.last
		now.At = at
	}
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

// measureLayer walks a layer, and the volumes beside it, which are as much the container's. What does not exist has no size.
func measureLayer(dir string) Layer {
	l := Layer{At: time.Now()}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return l
	}
	bytes, inodes, err := tree.Usage(dir)                                              // of what cannot be read, the rest
	volumes, more, err2 := tree.Usage(filepath.Join(filepath.Dir(dir), volumesFolder)) // none, for most
	for _, want := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if err := errors.Join(err, err2); errors.Is(err, want) {
			return l // nothing is known of what was not looked at for want of descriptors
		}
	}
	bytes, inodes = bytes+volumes, inodes+more
	l.Bytes, l.Inodes = &bytes, &inodes
	l.Capacity, l.InodesTotal, l.InodesFree = new(fs.Blocks*uint64(fs.Bsize)), &fs.Files, &fs.Ffree
	return l
}
