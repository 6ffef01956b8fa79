// Package progress tracks the progress of a pull, and detects a stalled pull.
package progress

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Clock tracks the progress of a pull. A pull that moves less than minMove bytes during the stall
// time is cancelled. Intentional waiting (for another pull, a slot, or as long as a registry asks)
// does not count as stall time.
type Clock struct {
	Moved atomic.Int64 // bytes read from the network or from a decompressor
	busy  atomic.Int32 // parts of the pull that are not waiting intentionally; while 0, stall time does not count

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

// Finish removes an item, so that Where no longer names it.
func (p *Clock) Finish(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.items, name)
}

// Step is how far one part of a pull is: the download of a layer, or unpacking it.
type Step struct {
	Name        string
	Done, Total int64 // bytes; Total is 0 where it is not known
	Finished    bool
}

// Steps returns all parts of the pull that have begun, in their order.
func (p *Clock) Steps() []Step {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Step, 0, len(p.order))
	for _, it := range p.order {
		all = append(all, Step{it.name, it.Done.Load(), it.total.Load(), p.items[it.name] != it})
	}
	return all
}

// Where describes the first unfinished item, for the error of a stalled pull.
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

// Working runs a part of the pull, during which stall time counts.
func (p *Clock) Working(f func() error) error {
	p.busy.Add(1)
	defer p.busy.Add(-1)
	return f()
}

// Waiting runs f, which waits intentionally. While all parts of the pull wait, stall time does not
// count.
func (p *Clock) Waiting(f func() error) error {
	p.busy.Add(-1)
	defer p.busy.Add(1)
	return f()
}

// minMove is the number of bytes that must move within the stall time. Without it, a peer could
// keep a pull alive forever with a byte now and then.
const minMove = 1024

// Watch calls stalled once if less than minMove bytes move within limit. It returns after that, or
// when ctx ends.
func (p *Clock) Watch(ctx context.Context, limit time.Duration, stalled func()) {
	tick := time.NewTicker(max(limit/8, time.Millisecond))
	defer tick.Stop()
	seen, last := p.Moved.Load(), time.Now()
	var idle time.Duration // without the time of intentional waiting
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
