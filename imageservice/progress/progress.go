// Package progress knows how far a pull is, and notices when it stalls.
package progress

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Clock knows how far a pull is. A pull that moves (nearly) nothing for the stall time is
// cancelled; waiting on purpose (for another pull, a slot, or the time a registry asked us to wait)
// does not count.
type Clock struct {
	Moved atomic.Int64 // bytes read from the network or out of a decompressor
	busy  atomic.Int32 // parts of the pull that ought to move; the stall clock stands only while there are none

	mu    sync.Mutex
	items map[string]*Item
	order []*Item
}

type Item struct {
	name        string
	Done, total atomic.Int64
}

func (p *Clock) Item(name string, total int64) *Item {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.items == nil {
		p.items = map[string]*Item{}
	}
	it := p.items[name]
	if it == nil {
		it = &Item{name: name}
		p.items[name] = it
		p.order = append(p.order, it)
	}
	it.total.Store(total)
	return it
}

// Finish drops an item: where() no longer speaks of it.
func (p *Clock) Finish(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.items, name)
}

// Where names the first unfinished item, for the error of a pull that stalled.
func (p *Clock) Where() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range p.order {
		if p.items[it.name] == it {
			if it.total.Load() == 0 {
				return fmt.Sprintf("%s, %d bytes", it.name, it.Done.Load())
			}
			return fmt.Sprintf("%s, %d of %d bytes", it.name, it.Done.Load(), it.total.Load())
		}
	}
	return "resolving the reference"
}

// Working runs a part of the pull.
func (p *Clock) Working(f func() error) error {
	p.busy.Add(1)
	defer p.busy.Add(-1)
	return f()
}

// Waiting runs f, of a part that waits on purpose. The stall clock stands while all parts do.
func (p *Clock) Waiting(f func() error) error {
	p.busy.Add(-1)
	defer p.busy.Add(1)
	return f()
}

// minMove is what counts as moving within the stall time: a peer that sends a byte now and then
// does not keep a pull alive for ever.
const minMove = 1024

// Watch calls stalled once when less than minMove bytes moved within limit, and returns then or
// when ctx ends.
func (p *Clock) Watch(ctx context.Context, limit time.Duration, stalled func()) {
	tick := time.NewTicker(max(limit/8, time.Millisecond))
	defer tick.Stop()
	seen, last := p.Moved.Load(), time.Now()
	var idle time.Duration // without the time spent waiting on purpose
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, moved := time.Now(), p.Moved.Load()
		switch {
		case moved-seen >= minMove:
			seen, idle = moved, 0
		case p.busy.Load() > 0:
			idle += now.Sub(last)
		}
		last = now
		if idle >= limit {
			stalled()
			return
		}
	}
}
