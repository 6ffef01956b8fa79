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
	t.mu.Lock()
	if t.all == nil {
		t.all = map[string]*turn{}
	}
	one, ok := t.all[key]
	if !ok {
		one = &turn{slot: make(chan struct{}, 1)}
		t.all[key] = one
	}
	one.users++
	t.mu.Unlock()

	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(t.all, key)
		}
	}
	select {
	case one.slot <- struct{}{}:
		return func() { <-one.slot; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for the operation under way on %s: %w", key, ctx.Err())
	}
}

// Taken says whether somebody has the key's turn or waits for it.
func (t *Turns) Taken(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all[key] != nil
}
