package keyed

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Flights are the operations in progress, by key. A request for an operation that is already in
// progress joins it. So a kubelet that timed out and retries gets the result of its first request,
// and not an error such as "the name is reserved".
type Flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

type flight struct {
	landed chan struct{} // closed after id and err are set
	id     string
	err    error
}

// Do runs work under key, or joins the run in progress, and returns its result. work is not
// canceled with the caller's ctx; its own context ends after limit. If ctx ends first, Do returns
// the error of ctx. A panic in work becomes an error of class ErrInternal.
func (f *Flights) Do(ctx context.Context,
	key string, limit time.Duration, work func(context.Context) (string, error)) (string, error) {
	f.mu.Lock()
	if f.all == nil {
		f.all = map[string]*flight{}
	}
	one, flying := f.all[key]
	if !flying {
		one = &flight{landed: make(chan struct{})}
		f.all[key] = one
		go f.fly(context.WithoutCancel(ctx), key, one, limit, work)
	}
	f.mu.Unlock()
	select {
	case <-one.landed:
		return one.id, one.err
	case <-ctx.Done():
		return "", fmt.Errorf("%s goes on without its caller: %w", key, ctx.Err())
	}
}

func (f *Flights) fly(ctx context.Context,
	key string, one *flight, limit time.Duration, work func(context.Context) (string, error)) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).Errorf("panic in %s: %v\n%s", key, p, debug.Stack())
			one.err = fmt.Errorf("%s: %w: %v", key, errdefs.ErrInternal, p)
		}
		f.mu.Lock()
		delete(f.all, key)
		f.mu.Unlock()
		close(one.landed)
	}()
	one.id, one.err = work(ctx)
}
