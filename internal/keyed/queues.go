package keyed

import (
	"sync"
	"time"
)

// Queues run functions one after another in the background, for each key in the order in which they
// were added. There is a goroutine for each key with functions that have not returned.
type Queues struct {
	mu      sync.Mutex
	waiting map[string][]func() // a key that is in it has a goroutine
	work    sync.WaitGroup
}

// Add runs act after everything that was added for the key before.
func (q *Queues) Add(key string, act func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting == nil {
		q.waiting = map[string][]func(){}
	}
	before, running := q.waiting[key]
	q.waiting[key] = append(before, act)
	if !running {
		q.work.Go(func() {
			for act := q.next(key); act != nil; act = q.next(key) {
				act()
			}
		})
	}
}

// next returns the key's next function; nil ends its goroutine.
func (q *Queues) next(key string) func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	acts := q.waiting[key]
	if len(acts) == 0 {
		delete(q.waiting, key)
		return nil
	}
	q.waiting[key] = acts[1:]
	return acts[0]
}

// Wait returns true when all functions have returned, false if that takes longer than limit. Nothing
// may be added any more.
func (q *Queues) Wait(limit time.Duration) bool {
	done := make(chan struct{})
	go func() { q.work.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}
