package keyed

import (
	"context"
	"fmt"
	"sync"
)

// Turns runs operations with the same key one after another. Unlike with a mutex, waiting ends with
// the context. So an operation that never ends blocks only its own key, and only until the contexts
// of those that wait end.
type Turns struct {
	mu  sync.Mutex
	all map[string]*turn
}

type turn struct {
	slot  chan struct{} // holds one token
	users int           // holders and waiters; guarded by Turns.mu
}

// Take waits until the key is free and takes it. The caller must call done exactly once to release
// it. If ctx ends first, Take returns its error.
func (t *Turns) Take(ctx context.Context, key string) (done func(), err error) {
	one := t.join(key)
	select {
	case one.slot <- struct{}{}:
		return func() { <-one.slot; t.leave(key, one) }, nil
	case <-ctx.Done():
		t.leave(key, one)
		return nil, fmt.Errorf("wait for the operation under way on %s: %w", key, ctx.Err())
	}
}

// Try takes the key if it is free, without waiting. If ok, the caller must call done exactly once.
func (t *Turns) Try(key string) (done func(), ok bool) {
	one := t.join(key)
	select {
	case one.slot <- struct{}{}:
		return func() { <-one.slot; t.leave(key, one) }, true
	default:
		t.leave(key, one)
		return nil, false
	}
}

func (t *Turns) join(key string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[string]*turn{}
	}
	one, ok := t.all[key]
	if !ok {
		one = &turn{slot: make(chan struct{}, 1)}
		t.all[key] = one
	}
	one.users++
	return one
}

func (t *Turns) leave(key string, one *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(t.all, key)
	}
}

// Taken reports whether an operation holds the key or waits for it.
func (t *Turns) Taken(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[key] != nil
}
