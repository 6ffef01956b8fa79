package sandbox

import (
	"runtime"
	"testing"

	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// TestUnansweredUpdateIsRetriedOnce: however often an update of a container has no answer, one goroutine goes on with
// it, and another one when that has ended.
func TestUnansweredUpdateIsRetriedOnce(t *testing.T) {
	records, _, err := store.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	states := table.NewStates(records)
	cs := &containers{states: states, turns: &keyed.Turns{}}
	u, c := &updates{states: states, containers: cs, background: t.Context()}, table.NewContainerEntry("p", store.Container{ID: "c"}, nil)
	for range 2 {
		done, err := cs.turns.Take(t.Context(), c.ID)
		if err != nil {
			t.Fatal(err)
		}
		before := runtime.NumGoroutine()
		for range 100 {
			u.completeLater(c)
		}
		if more := runtime.NumGoroutine() - before; more < 1 || more > 10 {
			t.Errorf("%d goroutines go on with one update", more)
		}
		done()
		for c.Completing.Load() {
			runtime.Gosched()
		}
	}
}
