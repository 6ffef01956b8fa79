package table

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/store"
)

// TestDatesAfterClockStepBack: a clock that was far ahead leaves its dates to the pods that were
// made then, of which the next attempt is later still. The others' follow the clock.
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
	all := New(layout.Layout{})
	all.States = NewStates(records)
	all.Remember(t.Context(), &r)
	first, second := all.Now(request("a", 1)), all.Now(request("a", 1))
	if first <= ahead || second <= first {
		t.Errorf("after %d its pod has the dates %d and %d", ahead, first, second)
	}
	if other, limit := all.Now(request("b", 0)), time.Now().UnixNano(); other > limit {
		t.Errorf("another pod is made at %s", time.Unix(0, other))
	}
}

func TestExpand(t *testing.T) {
	all := map[string]int{"abc1": 1, "abc2": 2, "b": 3}
	for _, c := range []struct {
		id, want string
		class    error
	}{
		{"abc1", "abc1", nil}, {"b", "b", nil}, {"abc2", "abc2", nil},
		{"abc", "", errdefs.ErrInvalidArgument}, {"", "", errdefs.ErrInvalidArgument},
		{"x", "", errdefs.ErrNotFound}, {"../abc1", "", errdefs.ErrNotFound}, {"ABC1", "", errdefs.ErrNotFound},
		{"abc1\x00", "", errdefs.ErrNotFound}, {strings.Repeat("a", 10<<10), "", errdefs.ErrNotFound},
	} {
		got, err := expand("pod", c.id, all)
		if got != c.want || !errors.Is(err, c.class) {
			t.Errorf("expand(%.20q) = %q, %v", c.id, got, err)
		}
		if err != nil && (len(err.Error()) > 200 || strings.ContainsRune(err.Error(), 0)) {
			t.Errorf("expand(%.20q): error cannot be read: %q", c.id, err)
		}
	}
}

// TestMountsWithoutRequest: a container whose request cannot be read any more has no mounts,
// whatever images its record names.
func TestMountsWithoutRequest(t *testing.T) {
	c := Container{Container: store.Container{MountImages: []string{"", "image"}}, Config: &runtimeapi.ContainerConfig{}}
	if all := c.Mounts(); len(all) != 0 {
		t.Errorf("it has %v", all)
	}
}

// TestEndAfterClockStepBack: after a clock that was far ahead was put right, a start that fails has
// ended now: a kubelet counts from there until it tries again.
func TestEndAfterClockStepBack(t *testing.T) {
	records, _, err := store.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(1000 * time.Hour).UnixNano()
	states, c := NewStates(records), NewContainerEntry("p", store.Container{ID: "c"}, nil)
	pod := store.Pod{ID: "p", Containers: map[string]store.Container{"c": {ID: "c", State: store.ContainerStarting, Created: ahead}}}
	if err := records.Create(pod, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := states.StartFailed(c, errors.New("oh")); err != nil {
		t.Fatal(err)
	}
	r, ok := states.Record(c)
	if limit := time.Now().Add(time.Hour).UnixNano(); !ok || r.Started == 0 || r.Finished <= r.Started || r.Finished > limit {
		t.Errorf("it began %s and ended %s", time.Unix(0, r.Started), time.Unix(0, r.Finished))
	}
}
