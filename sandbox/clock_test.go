package sandbox

import (
	"errors"
	"testing"
	"time"

	"github.com/cribox/cribox/sandbox/store"
)

// TestEndAfterClockStepBack: after a clock that was far ahead was put right, a start that fails has ended now: a
// kubelet counts from there until it tries again. What is made is still later than all before.
func TestEndAfterClockStepBack(t *testing.T) {
	records, _, err := store.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(1000 * time.Hour).UnixNano()
	m, c := &Manager{store: records, background: t.Context(), lastTime: ahead}, newContainer("p", store.Container{ID: "c"}, nil)
	pod := store.Pod{ID: "p", Containers: map[string]store.Container{"c": {ID: "c", State: store.ContainerStarting}}}
	if err := records.Create(pod, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	m.recordStartError(t.Context(), c, errors.New("oh"))
	r, ok := m.record(c)
	if limit := time.Now().Add(time.Hour).UnixNano(); !ok || r.Started == 0 || r.Finished <= r.Started || r.Finished > limit {
		t.Errorf("it began %s and ended %s", time.Unix(0, r.Started), time.Unix(0, r.Finished))
	}
	if m.now() <= ahead {
		t.Error("what is made now is earlier than what was made before")
	}
}
