package sandbox

import (
	"errors"
	"testing"
	"time"

	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// TestEndAfterClockStepBack: after a clock that was far ahead was put right, a start that fails has ended now: a
// kubelet counts from there until it tries again.
func TestEndAfterClockStepBack(t *testing.T) {
	records, _, err := store.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(1000 * time.Hour).UnixNano()
	states := table.NewStates(records)
	cs, c := &containers{states: states, endings: &endings{states: states}}, table.NewContainerEntry("p", store.Container{ID: "c"}, nil)
	pod := store.Pod{ID: "p", Containers: map[string]store.Container{"c": {ID: "c", State: store.ContainerStarting, Created: ahead}}}
	if err := records.Create(pod, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	cs.recordStartError(t.Context(), c, errors.New("oh"))
	r, ok := states.Record(c)
	if limit := time.Now().Add(time.Hour).UnixNano(); !ok || r.Started == 0 || r.Finished <= r.Started || r.Finished > limit {
		t.Errorf("it began %s and ended %s", time.Unix(0, r.Started), time.Unix(0, r.Finished))
	}
}
