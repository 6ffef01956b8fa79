package sandbox

import (
	"context"
	"fmt"
	"sync"
)

// turns lets operations on one container (start, settle, remove) follow each other. Waiting for a turn ends with the context, so a process
// that cannot be killed holds up nothing but its own container. Reads never take a turn.
type turns struct {
	mu  sync.Mutex
	all map[string]*turn
}

type turn struct {
	slot  chan struct{} // one token
	users int           // guarded by turns.mu
}

// take waits for id's turn and returns the function that passes it on.
func (t *turns) take(ctx context.Context, id string) (done func(), err error) {
	t.mu.Lock()
	if t.all == nil {
		t.all = map[string]*turn{}
	}
	one, ok := t.all[id]
	if !ok {
		one = &turn{slot: make(chan struct{}, 1)}
		t.all[id] = one
	}
	one.users++
	t.mu.Unlock()

	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(t.all, id)
		}
	}
	select {
	case one.slot <- struct{}{}:
		return func() { <-one.slot; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for the operation under way on %s: %w", id, ctx.Err())
	}
}
