package keyed

import (
	"context"
	"fmt"
	"sync"
)

// Turns lets operations with the same key follow each other. It is not a lock: waiting for a turn
// ends with the context, so an operation that never ends holds up nothing but its own key.
type Turns struct {
	mu  sync.Mutex
	all map[string]*turn
}

type turn struct {
	slot  chan struct{} // one token
	users int           // guarded by Turns.mu
}

// Take waits for the key's turn and returns the function that passes it on, to be called once.
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

// Try takes the key's turn if it is free.
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

// Taken says whether somebody has the key's turn or waits for it.
func (t *Turns) Taken(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[key] != nil
}
