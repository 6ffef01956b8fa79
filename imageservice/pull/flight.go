package pull

import (
	"context"
	"errors"
	"sync"

	"github.com/cribox/cribox/imageservice/catalog"
)

// flights are the pulls under way, by reference and credentials. Unlike keyed.Flights, the work
// ends when nobody waits for it any more.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

// flight is one of them, shared by everybody who asked for the same.
type flight struct {
	waiters int  // under flights.mu
	leaving bool // cancelled: a new caller must not join. Under flights.mu
	cancel  context.CancelCauseFunc
	stalled chan struct{} // closed when the flight was given up; stallErr is set before
	done    chan struct{} // closed at the end; img and err are set before

	stallErr error
	img      catalog.Image
	err      error
}

var errNobodyWaits = errors.New("nobody waits for this pull any more")

// do runs work under key, or joins the run under way, and returns its result. A caller that gives
// up gets its context's error; work is cancelled when nobody is left.
func (fs *flights) do(ctx context.Context, key string, work func(context.Context, *flight)) (catalog.Image, error) {
	for {
		f, old := fs.join(ctx, key, work)
		if old == nil {
			return fs.await(ctx, f)
		}
		select {
		case <-old.done: // a cancelled one winds down
		case <-ctx.Done():
			return catalog.Image{}, ctx.Err()
		}
	}
}

// join returns the flight to wait for, or the cancelled one whose end must come first.
func (fs *flights) join(ctx context.Context, key string, work func(context.Context, *flight)) (f, leaving *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.all[key]; f != nil {
		if f.leaving {
			return nil, f
		}
		f.waiters++
		return f, nil
	}
	// The flight is not the caller's: others may join it.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f = &flight{waiters: 1, cancel: cancel, stalled: make(chan struct{}), done: make(chan struct{})}
	if fs.all == nil {
		fs.all = map[string]*flight{}
	}
	fs.all[key] = f
	go func() {
		defer fs.land(key, f)
		work(ctx, f)
	}()
	return f, nil
}

// await returns what the flight brings, or leaves it.
func (fs *flights) await(ctx context.Context, f *flight) (catalog.Image, error) {
	select {
	case <-f.done:
		return f.img, f.err
	case <-f.stalled:
		return catalog.Image{}, f.stallErr
	case <-ctx.Done():
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.leaving = true
		f.cancel(errNobodyWaits)
	}
	return catalog.Image{}, ctx.Err()
}

// giveUp sends everybody away with told and cancels the work with cause.
func (fs *flights) giveUp(f *flight, told, cause error) {
	fs.mu.Lock()
	f.leaving = true
	f.stallErr = told
	fs.mu.Unlock()
	close(f.stalled)
	f.cancel(cause)
}

// waiting returns how many wait for each of them.
func (fs *flights) waiting() (callers []int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, f := range fs.all {
		callers = append(callers, f.waiters)
	}
	return callers
}

func (fs *flights) land(key string, f *flight) {
	f.cancel(nil)
	fs.mu.Lock()
	delete(fs.all, key)
	fs.mu.Unlock()
	close(f.done)
}
