package keyed

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// TestSameRequestJoins checks that requests with the same key share one run and its result, even if
// the first caller gives up (I3).
func TestSameRequestJoins(t *testing.T) {
	var f Flights
	begun, land := make(chan struct{}), make(chan struct{})
	work := func(context.Context) (string, error) {
		close(begun) // closing it twice would panic
		<-land
		return "id", nil
	}
	impatient, giveUp := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() {
		_, err := f.Do(impatient, "pod", time.Hour, work)
		first <- err
	}()
	<-begun
	giveUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatalf("who gives up hears %v", err)
	}
	var others sync.WaitGroup
	const callers = 10
	waiting := make(chan struct{}, callers)
	for range callers {
		others.Go(func() {
			if id, err := f.Do(telling{context.Background(), waiting}, "pod", time.Hour, work); id != "id" || err != nil {
				t.Errorf("joined: %q, %v", id, err)
			}
		})
	}
	for range callers {
		<-waiting
	}
	close(land)
	others.Wait()
	if len(f.all) != 0 {
		t.Fatal("a landed flight keeps its key")
	}
}

// telling is a context that sends on waiting when a caller begins to wait for it.
type telling struct {
	context.Context
	waiting chan<- struct{}
}

func (c telling) Done() <-chan struct{} {
	c.waiting <- struct{}{}
	return c.Context.Done()
}

func TestPanicCostsOneRequest(t *testing.T) {
	var f Flights
	_, err := f.Do(context.Background(), "pod", time.Hour, func(context.Context) (string, error) { panic("oops") })
	if !errors.Is(err, errdefs.ErrInternal) {
		t.Fatalf("after a panic: %v", err)
	}
	if id, err := f.Do(context.Background(), "pod", time.Hour, func(context.Context) (string, error) { return "again", nil }); id != "again" || err != nil {
		t.Fatalf("the key is poisoned: %q, %v", id, err)
	}
}

func TestTurnsFollowEachOther(t *testing.T) {
	var turns Turns
	done, err := turns.Take(context.Background(), "c")
	if err != nil {
		t.Fatal(err)
	}
	other, err := turns.Take(context.Background(), "d")
	if err != nil {
		t.Fatal("another container has to wait")
	}
	other()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := turns.Take(gone, "c"); !errors.Is(err, context.Canceled) {
		t.Fatalf("a turn was given twice, or waited for without end: %v", err)
	}
	if _, ok := turns.Try("c"); ok {
		t.Fatal("a turn was given twice")
	}
	if free, ok := turns.Try("d"); !ok {
		t.Fatal("a free turn was not given")
	} else {
		free()
	}
	next := make(chan struct{})
	go func() {
		if done, err := turns.Take(context.Background(), "c"); err == nil {
			done()
		}
		close(next)
	}()
	done()
	<-next
	if len(turns.all) != 0 {
		t.Fatalf("%d turns are kept for nobody", len(turns.all))
	}
}
