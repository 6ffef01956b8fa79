package imageservice

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// progress knows how far a pull is. A pull that moves (nearly) nothing for the stall time is cancelled; waiting on purpose (for another
// pull, a slot, or the time a registry asked us to wait) does not count.
type progress struct {
	moved atomic.Int64 // bytes read from the network or out of a decompressor
	busy  atomic.Int32 // parts of the pull that ought to move; the stall clock stands only while there are none

	mu    sync.Mutex
	items map[string]*item
	order []*item
}

type item struct {
	name        string
	done, total atomic.Int64
}

func (p *progress) item(name string, total int64) *item {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.items == nil {
		p.items = map[string]*item{}
	}
	it := p.items[name]
	if it == nil {
		it = &item{name: name}
		p.items[name] = it
		p.order = append(p.order, it)
	}
	it.total.Store(total)
	return it
}

// finish drops an item: where() no longer speaks of it.
func (p *progress) finish(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.items, name)
}

// where names the first unfinished item, for the error of a pull that stalled.
func (p *progress) where() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range p.order {
		if p.items[it.name] == it {
			if it.total.Load() == 0 {
				return fmt.Sprintf("%s, %d bytes", it.name, it.done.Load())
			}
			return fmt.Sprintf("%s, %d of %d bytes", it.name, it.done.Load(), it.total.Load())
		}
	}
	return "resolving the reference"
}

// working runs a part of the pull.
func (p *progress) working(f func() error) error {
	p.busy.Add(1)
	defer p.busy.Add(-1)
	return f()
}

// waiting runs f, of a part that waits on purpose. The stall clock stands while all parts do.
func (p *progress) waiting(f func() error) error {
	p.busy.Add(-1)
	defer p.busy.Add(1)
	return f()
}

// minMove is what counts as moving within the stall time: a peer that sends a byte now and then does not keep a pull alive for ever.
const minMove = 1024

// watch calls stalled once when less than minMove bytes moved within limit, and returns then or when ctx ends.
func (p *progress) watch(ctx context.Context, limit time.Duration, stalled func()) {
	tick := time.NewTicker(max(limit/8, time.Millisecond))
	defer tick.Stop()
	seen, last := p.moved.Load(), time.Now()
	var idle time.Duration // without the time spent waiting on purpose
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, moved := time.Now(), p.moved.Load()
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
