package imageservice

import (
	"context"
	"sync"
)

// claims gives one goroutine at a time the right to produce a thing, by key. The others wait for it and look again.
type claims struct {
	mu    sync.Mutex
	taken map[string]chan struct{}
}

// take returns when the key is ours, with the function that gives it back, or with the context's error.
func (c *claims) take(ctx context.Context, key string) (release func(), err error) {
	for {
		c.mu.Lock()
		busy, ok := c.taken[key]
		if !ok {
			if c.taken == nil {
				c.taken = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			c.taken[key] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.taken, key)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// slots is a counting semaphore.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s slots) give() { <-s }

func (s slots) try() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

// try takes the key if it is free.
func (c *claims) try(key string) (release func(), ok bool) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	release, err := c.take(ctx, key)
	return release, err == nil
}
