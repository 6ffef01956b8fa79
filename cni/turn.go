package cni

import (
	"context"
	"sync"
)

// turns lets the calls for one pod go one after the other: CNI forbids two operations on one attachment at a time.
// It is not a lock: a waiter gives up with its context.
type turns struct {
	mu   sync.Mutex
	pods map[string]*turn
}

type turn struct {
	token chan struct{} // holds one value while somebody has the turn
	users int           // holder and waiters
}

// take waits for the pod's turn. The returned function gives it back and must be called once.
func (t *turns) take(ctx context.Context, pod string) (release func(), err error) {
	p := t.join(pod)
	select {
	case p.token <- struct{}{}:
		return func() { <-p.token; t.leave(pod, p) }, nil
	case <-ctx.Done():
		t.leave(pod, p)
		return nil, ctx.Err()
	}
}

func (t *turns) join(pod string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pods == nil {
		t.pods = map[string]*turn{}
	}
	p := t.pods[pod]
	if p == nil {
		p = &turn{token: make(chan struct{}, 1)}
		t.pods[pod] = p
	}
	p.users++
	return p
}

func (t *turns) leave(pod string, p *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(t.pods, pod)
	}
}
