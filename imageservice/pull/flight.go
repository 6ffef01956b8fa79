package pull

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/internal/activity"
)

// flights are the pulls in progress, by reference and credentials. Unlike in keyed.Flights, the
// work is cancelled when no caller waits for it any more.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

// Status is how far a pull in progress is.
type Status struct {
	Ref     string
	Began   time.Time
	Waiting int // callers
	Items   []progress.Step
	Doing   []activity.Step // what it is doing now
}

// list returns the flights, the oldest first.
func (fs *flights) list() []Status {
	fs.mu.Lock()
	var all []Status
	var clocks []*progress.Clock
	for _, f := range fs.all {
		all = append(all, Status{Ref: f.ref.String(), Began: f.began, Waiting: f.waiters})
		clocks = append(clocks, &f.prog)
	}
	fs.mu.Unlock()
	for i, c := range clocks {
		all[i].Items = c.Steps()
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.Ref, b.Ref)) })
	return all
}

// flight is one pull in progress, shared by all callers with the same key.
type flight struct {
	ref   imageref.Target
	began time.Time
	prog  progress.Clock

	waiters int  // guarded by flights.mu
	leaving bool // cancelled, so that new callers must not join; guarded by flights.mu
	cancel  context.CancelCauseFunc
	stalled chan struct{} // closed when the pull has stalled, after stallErr is set
	done    chan struct{} // closed at the end, after img and err are set

	stallErr error
	img      catalog.Image
	err      error
}

var errNobodyWaits = errors.New("nobody waits for this pull any more")

// do runs work for ref and key, or joins the run in progress, and returns its result. If ctx ends, it
// returns the error of ctx; work is cancelled when no caller is left.
func (fs *flights) do(
	ctx context.Context, ref imageref.Target, key string, work func(context.Context, *flight),
) (catalog.Image, error) {
	key = ref.String() + " " + key
	for {
		f, old := fs.join(ctx, ref, key, work)
		if old == nil {
			return fs.await(ctx, f)
		}
		select {
		case <-old.done: // a cancelled pull has ended; try again
		case <-ctx.Done():
			return catalog.Image{}, ctx.Err()
		}
	}
}

// join returns the flight to wait for, or a cancelled flight that must end first.
func (fs *flights) join(
	ctx context.Context, ref imageref.Target, key string, work func(context.Context, *flight),
) (f, leaving *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.all[key]; f != nil {
		if f.leaving {
			return nil, f
		}
		f.waiters++
		return f, nil
	}
	// The work does not end with this caller's context, because others may join it.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f = &flight{ref: ref, began: time.Now(), waiters: 1, cancel: cancel, stalled: make(chan struct{}),
		done: make(chan struct{})}
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

// await waits for the result of the flight, or leaves it when ctx ends.
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

// giveUp returns told to all waiting callers, and cancels the work with cause.
func (fs *flights) giveUp(f *flight, told, cause error) {
	fs.mu.Lock()
	f.leaving = true
	f.stallErr = told
	fs.mu.Unlock()
	close(f.stalled)
	f.cancel(cause)
}

// waiting returns the number of callers of each flight.
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
