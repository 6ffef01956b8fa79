package table

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/store"
)

// TestChanges lists what two records of pod p with container c tell.
func TestChanges(t *testing.T) {
	pod := func(state string, pid int, containers ...store.Container) *store.Pod {
		r := &store.Pod{ID: "p", State: state, PausePID: pid, Containers: map[string]store.Container{}}
		for _, c := range containers {
			r.Containers[c.ID] = c
		}
		return r
	}
	is := func(state string) store.Container { return store.Container{ID: "c", State: state, Started: 1} }
	with := func(c store.Container) *store.Pod { return pod(store.PodReady, 7, c) }
	without := pod(store.PodReady, 7)
	failed := store.Container{ID: "c", State: store.ContainerExited, Started: 1, Reason: startError}
	never := store.Container{ID: "c", State: store.ContainerRemoving}
	for _, row := range []struct {
		name      string
		old, next *store.Pod
		want      string
	}{
		{"a pod is being made", nil, pod(store.PodCreating, 0), ""},
		{"it is up", pod(store.PodCreating, 0), pod(store.PodReady, 7), "p CREATED p STARTED"},
		{"it did not come up", pod(store.PodCreating, 0), pod(store.PodRemoving, 0), ""},
		{"that attempt is gone", pod(store.PodRemoving, 0), nil, "p DELETED"},
		{"its pause died", pod(store.PodReady, 7), pod(store.PodReady, 0), "p STOPPED"},
		{"its stop begins", pod(store.PodReady, 7), pod(store.PodStopping, 7), ""},
		{"its stop ends", pod(store.PodStopping, 7), pod(store.PodNotReady, 0), "p STOPPED"},
		{"its stop ends after its pause died", pod(store.PodStopping, 0), pod(store.PodNotReady, 0), ""},
		{"its removal begins", pod(store.PodNotReady, 0), pod(store.PodRemoving, 0), ""},
		{"it is removed without a stop", pod(store.PodRemoving, 7), nil, "p STOPPED p DELETED"},

		{"a container is being made", without, with(is(store.ContainerCreating)), ""},
		{"it is made", with(is(store.ContainerCreating)), with(is(store.ContainerCreated)), "c CREATED"},
		{"it was not made", with(is(store.ContainerCreating)), with(never), ""},
		{"it is forgotten while it is made", with(is(store.ContainerCreating)), without, ""},
		{"its start begins", with(is(store.ContainerCreated)), with(is(store.ContainerStarting)), ""},
		{"its start is undone", with(is(store.ContainerStarting)), with(is(store.ContainerCreated)), ""},
		{"it runs", with(is(store.ContainerStarting)), with(is(store.ContainerRunning)), "c STARTED"},
		{"its exit was faster", with(is(store.ContainerStarting)), with(is(store.ContainerExited)), "c STARTED c STOPPED"},
		{"it did not start", with(is(store.ContainerStarting)), with(failed), "c STOPPED"},
		{"it was lost before a start", with(is(store.ContainerCreated)), with(is(store.ContainerExited)), "c STOPPED"},
		{"its stop begins", with(is(store.ContainerRunning)), with(is(store.ContainerStopping)), ""},
		{"it ended", with(is(store.ContainerRunning)), with(is(store.ContainerExited)), "c STOPPED"},
		{"it was stopped", with(is(store.ContainerStopping)), with(is(store.ContainerExited)), "c STOPPED"},
		{"it is taken away while it runs", with(is(store.ContainerRunning)), with(is(store.ContainerRemoving)), "c STOPPED"},
		{"its removal begins", with(is(store.ContainerExited)), with(is(store.ContainerRemoving)), ""},
		{"its removal begins before a start", with(is(store.ContainerCreated)), with(never), ""},
		{"it is gone", with(is(store.ContainerRemoving)), without, "c DELETED"},
		{"the pod goes with it", pod(store.PodRemoving, 7, is(store.ContainerRemoving)), nil, "c DELETED p STOPPED p DELETED"},
	} {
		var got []string
		for _, c := range changes(row.old, row.next) {
			word, _, _ := strings.Cut(strings.TrimPrefix(c.what.String(), "CONTAINER_"), "_")
			got = append(got, c.id+" "+word)
		}
		if all := strings.Join(got, " "); all != row.want {
			t.Errorf("%s: %q, want %q", row.name, all, row.want)
		}
	}
}

// A subscriber gets every event up to the one that finds its queue full, and costs the others
// nothing.
func TestSubscriberIsCutOff(t *testing.T) {
	all := New(layout.Layout{})
	asleep, late := all.Subscribe(t.Context())
	awake, read := all.Subscribe(t.Context())
	for i := range maxEvents + 1 {
		all.send(&Event{ID: fmt.Sprint(i)})
		if e := <-read; e.ID != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, e.ID)
		}
		if cut := asleep.Err() != nil; cut != (i == maxEvents) {
			t.Fatalf("after event %d it is cut off: %t", i, cut)
		}
	}
	if err := context.Cause(asleep); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("it is told: %v", err)
	}
	for i := range maxEvents {
		if e := <-late; e.ID != fmt.Sprint(i) {
			t.Fatalf("event %d of those that wait is %s", i, e.ID)
		}
	}
	if awake.Err() != nil || !all.wanted() {
		t.Error("who reads was cut off too")
	}
}
