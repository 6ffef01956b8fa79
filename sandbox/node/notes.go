package node

import (
	"context"
	"maps"
	"sync"

	"github.com/containerd/log"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// mostNotes bounds what is remembered: the words of some are made of numbers in a request.
const mostNotes = 200

// notes counts what was asked for and could not be given whole. The same lack of a machine meets
// every container: it is warned of once.
type notes struct {
	mu    sync.Mutex
	count map[string]int
}

// add returns whether the note is new.
func (n *notes) add(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count == nil {
		n.count = map[string]int{}
	}
	if _, known := n.count[text]; !known && len(n.count) >= mostNotes {
		return false
	}
	n.count[text]++
	return n.count[text] == 1
}

// Note logs what could not be given: as a warning the first time, then for those who look closely.
func (n *Node) Note(ctx context.Context, all []check.Note) {
	for _, one := range all {
		if n.notes.add(one.String()) {
			log.G(ctx).Warn(one)
		} else {
			log.G(ctx).Debug(one)
		}
	}
}

// Notes returns what could not be given whole since the start, and how often: a copy.
func (n *Node) Notes() map[string]int {
	n.notes.mu.Lock()
	defer n.notes.mu.Unlock()
	return maps.Clone(n.notes.count)
}
