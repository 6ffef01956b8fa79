package sandbox

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cribox/cribox/sandbox/layout"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/store"
)

// TestEndAfterClockStepBack: after a clock that was far ahead was put right, a start that fails has ended now: a
// kubelet counts from there until it tries again.
func TestEndAfterClockStepBack(t *testing.T) {
	records, _, err := store.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(1000 * time.Hour).UnixNano()
	states := &states{records}
	cs, c := &containers{states: states, endings: &endings{states: states}}, newContainer("p", store.Container{ID: "c"}, nil)
	pod := store.Pod{ID: "p", Containers: map[string]store.Container{"c": {ID: "c", State: store.ContainerStarting, Created: ahead}}}
	if err := records.Create(pod, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	cs.recordStartError(t.Context(), c, errors.New("oh"))
	r, ok := states.record(c)
	if limit := time.Now().Add(time.Hour).UnixNano(); !ok || r.Started == 0 || r.Finished <= r.Started || r.Finished > limit {
		t.Errorf("it began %s and ended %s", time.Unix(0, r.Started), time.Unix(0, r.Finished))
	}
}

// TestDatesAfterClockStepBack: a clock that was far ahead leaves its dates to the pods that were made then, of which the
// next attempt is later still. The others' follow the clock.
func TestDatesAfterClockStepBack(t *testing.T) {
	records, _, err := store.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	request := func(uid string, attempt uint32) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "n", Uid: uid, Attempt: attempt}}
	}
	ahead := time.Now().Add(1000 * time.Hour).UnixNano()
	asked, err := proto.Marshal(request("a", 0))
	if err != nil {
		t.Fatal(err)
	}
	r := store.Pod{ID: "p", State: store.PodReady, Created: 1, Containers: map[string]store.Container{"c": {ID: "c", Created: ahead}}}
	if err := records.Create(r, asked); err != nil {
		t.Fatal(err)
	}
	all := newTable(layout.Layout{})
	all.states.store = records
	all.remember(t.Context(), &r)
	first, second := all.now(request("a", 1)), all.now(request("a", 1))
	if first <= ahead || second <= first {
		t.Errorf("after %d its pod has the dates %d and %d", ahead, first, second)
	}
	if other, limit := all.now(request("b", 0)), time.Now().UnixNano(); other > limit {
		t.Errorf("another pod is made at %s", time.Unix(0, other))
	}
}
