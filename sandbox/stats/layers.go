package stats

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/tree"
	"github.com/cribox/cribox/sandbox/layout"
)

// Layer is the size of a writable layer, and of the filesystem that it lies on, when they were last
// measured. Nil is not known (yet). While a layer of very many files is being walked it is the
// larger of the size before and of what was counted so far: a limit that it exceeds is exceeded.
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
	// firstWalk is how long the first question for layers waits for an answer; most layers are
	// small.
	firstWalk = 100 * time.Millisecond
	// walkers is how many layers are walked at a time.
	walkers = 2
	// walkTurn is how long one is walked while others wait.
	walkTurn = 200 * time.Millisecond
)

// errNotAsked ends the walk of a layer that nobody has asked about for long.
var errNotAsked = errors.New("nobody asks for it")

// layers remembers the sizes of writable layers, so that asking often walks seldom, and a walk that
// is slow keeps nobody waiting.
type layers struct {
	mu   sync.Mutex // guards what follows; not held while walking
	all  map[string]*layer
	free chan struct{} // has a place for each walker; who waits for one gets it in turn

	count func(dir string, look func(bytes, inodes uint64) error) (bytes, inodes uint64, err error) // nil: tree.Count
}

type layer struct {
	last    Layer
	asked   time.Time
	walking chan struct{} // closed when the walk under way has ended; nil without one
}

// measure returns the sizes of layers as they were at most layerFor ago, or, while a slow walk is
// under way, before that.
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
	w := layerWalk{layers: l, one: one, turn: time.Now(), now: Layer{At: time.Now()}}
	guard.Run(context.Background(), "measuring a layer", func() { w.measure(dir) })
	<-l.free
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Stat(dir); !w.done && one.last.Bytes != nil && err == nil {
		w.now = one.last
		w.now.At = time.Now()
	}
	one.last = w.now
	close(one.walking)
	one.walking = nil
}

// layerWalk measures one layer, in turns with the walks of others.
type layerWalk struct {
	layers *layers
	one    *layer
	turn   time.Time // when its turn began
	now    Layer
	done   bool // now is the size of all of it
}

// measure walks a layer, and the volumes beside it, which are as much the container's. What does
// not exist has no size.
func (w *layerWalk) measure(dir string) {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return
	}
	known := Layer{Capacity: new(fs.Blocks * uint64(fs.Bsize)), InodesTotal: &fs.Files, InodesFree: &fs.Ffree}
	count := w.layers.count
	if count == nil {
		count = tree.Count
	}
	var bytes, inodes uint64
	for _, dir := range []string{dir, filepath.Join(filepath.Dir(dir), layout.Volumes)} { // most have no volumes
		b, i, err := count(dir, func(b, i uint64) error { return w.look(known, bytes+b, inodes+i) })
		for _, missing := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, errNotAsked} {
			if errors.Is(err, missing) {
				return // nothing is known of what was not looked at
			}
		}
		bytes, inodes = bytes+b, inodes+i // of what cannot be read, the rest
	}
	w.now.Bytes, w.now.Inodes = &bytes, &inodes
	w.now.Capacity, w.now.InodesTotal, w.now.InodesFree = known.Capacity, known.InodesTotal, known.InodesFree
	w.done = true
}

// look is called in the middle of a walk with what was counted so far. It shows that, and lets
// others walk, at the end of each turn.
func (w *layerWalk) look(known Layer, bytes, inodes uint64) error {
	if time.Since(w.turn) < walkTurn {
		return nil
	}
	if !w.show(known, bytes, inodes) {
		return errNotAsked
	}
	<-w.layers.free
	w.layers.free <- struct{}{}
	w.turn = time.Now()
	return nil
}

// show says whether anybody still asks.
func (w *layerWalk) show(known Layer, bytes, inodes uint64) bool {
	w.layers.mu.Lock()
	defer w.layers.mu.Unlock()
	last := &w.one.last
	known.At, known.Bytes, known.Inodes = time.Now(), &bytes, &inodes
	if last.Bytes != nil {
		known.Bytes, known.Inodes = new(max(bytes, *last.Bytes)), new(max(inodes, *last.Inodes))
	}
	*last = known
	return time.Since(w.one.asked) <= forgetAfter
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
