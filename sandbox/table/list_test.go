package table

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/store"
)

// lister lists the pods and containers of a table as text, and counts what it encodes.
type lister struct {
	*Table
	encoded int
}

func newLister(t *testing.T) *lister {
	records, _, err := store.Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	all := New(layout.Layout{})
	all.States = NewStates(records)
	return &lister{Table: all}
}

// pod makes a pod that is ready, with one created container.
func (l *lister) pod(t *testing.T, id string, created int64) *ContainerEntry {
	t.Helper()
	c := store.Container{ID: id + "c", State: store.ContainerCreated, Created: created + 1}
	r := store.Pod{ID: id, State: store.PodReady, PausePID: 1, Created: created, Containers: map[string]store.Container{c.ID: c}}
	if err := l.States.store.Create(r, nil); err != nil {
		t.Fatal(err)
	}
	l.AddPod(NewPodEntry(id, &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: id}}))
	entry := NewContainerEntry(id, c, &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: c.ID}})
	l.AddContainer(entry)
	return entry
}

func (l *lister) pods(b []byte, p Pod) []byte {
	l.encoded++
	return fmt.Appendf(b, "%s %s %s;", p.ID, p.State, p.Config.GetMetadata().GetName())
}

func (l *lister) containers(b []byte, c Container) []byte {
	l.encoded++
	return fmt.Appendf(b, "%s in %s %s;", c.ID, c.PodID, c.State)
}

// TestListFollowsChanges: a list tells every change that was shown before it was asked for, and
// only the pods that changed are encoded again.
func TestListFollowsChanges(t *testing.T) {
	l := newLister(t)
	want := func(after string, encoded int, pods, containers string) {
		t.Helper()
		l.encoded = 0
		got := string(join(l.ListPods(l.pods).Encoded(nil, math.MaxInt)))
		if got != pods {
			t.Errorf("after %s pods are %q, want %q", after, got, pods)
		}
		if got := string(join(l.ListContainers(l.containers).Encoded(nil, math.MaxInt))); got != containers {
			t.Errorf("after %s containers are %q, want %q", after, got, containers)
		}
		if l.encoded != encoded {
			t.Errorf("after %s %d items were encoded, want %d", after, l.encoded, encoded)
		}
	}
	want("nothing", 0, "", "")
	a := l.pod(t, "a", 1)
	l.pod(t, "b", 5)
	want("two pods", 4, "b ready b;a ready a;", "bc in b created;ac in a created;")
	want("no change", 0, "b ready b;a ready a;", "bc in b created;ac in a created;")
	must(t, l.States.Starting(a))
	want("a start", 2, "b ready b;a ready a;", "bc in b created;ac in a starting;")
	must(t, l.States.Creating("a", store.Container{ID: "d", Created: 9}))
	d := NewContainerEntry("a", store.Container{ID: "d"}, &runtimeapi.ContainerConfig{})
	l.AddContainer(d)
	want("an attempt", 2, "b ready b;a ready a;", "bc in b created;ac in a starting;")
	must(t, l.States.Created(d))
	want("a creation", 3, "b ready b;a ready a;", "d in a created;bc in b created;ac in a starting;")
	p, _ := l.ByID("b")
	l.ReplacePod(p, NewPodEntry("b", &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "read"}}))
	want("a request that is read again", 1, "b ready read;a ready a;", "d in a created;bc in b created;ac in a starting;")
	l.ForgetContainer(d)
	must(t, l.States.Forgotten(d))
	want("a removal", 2, "b ready read;a ready a;", "bc in b created;ac in a starting;")
	must(t, l.States.PodForgotten("b"))
	want("a pod's removal", 0, "a ready a;", "ac in a starting;")
}

// TestListNeverOld changes pods and lists them from several goroutines: who has made a change finds
// it in the next list.
func TestListNeverOld(t *testing.T) {
	l := newLister(t)
	var all sync.WaitGroup
	errs := make(chan error, 4)
	for i := range 4 {
		id := fmt.Sprint("p", i)
		c := l.pod(t, id, int64(i))
		all.Go(func() {
			for n := range 50 {
				cgroup := fmt.Sprint("/", n)
				if err := l.States.PodCgroup(id, cgroup); err != nil {
					errs <- err
					return
				}
				got := join(l.ListPods(func(b []byte, p Pod) []byte { return fmt.Appendf(b, "%s%s;", p.ID, p.Cgroup) }).
					Encoded(func(p Pod) bool { return p.ID == id }, math.MaxInt))
				if string(got) != id+cgroup+";" {
					errs <- fmt.Errorf("after %s%s the list has %q", id, cgroup, got)
					return
				}
			}
			errs <- l.States.Starting(c)
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

// TestListPieces divides lists into pieces.
func TestListPieces(t *testing.T) {
	l := newLister(t)
	for i := range 5 {
		l.pod(t, fmt.Sprint("p", i), int64(i))
	}
	text := func(b []byte, p Pod) []byte { return append(b, strings.Repeat(p.ID[1:], 10)...) }
	odd := func(p Pod) bool { return p.Created%2 == 1 }
	for _, c := range []struct {
		match func(Pod) bool
		size  int
		want  []int // lengths
	}{
		{nil, 1 << 20, []int{50}},
		{nil, 50, []int{50}},
		{nil, 49, []int{40, 10}},
		{nil, 20, []int{20, 20, 10}},
		{nil, 1, []int{10, 10, 10, 10, 10}},
		{odd, 1 << 20, []int{20}},
		{odd, 10, []int{10, 10}},
		{func(Pod) bool { return false }, 10, nil},
	} {
		got := l.ListPods(text).Encoded(c.match, c.size)
		var sizes []int
		for _, p := range got {
			sizes = append(sizes, len(p))
		}
		if fmt.Sprint(sizes) != fmt.Sprint(c.want) {
			t.Errorf("pieces of %d bytes have %v bytes, want %v", c.size, sizes, c.want)
		}
	}
	if got := string(join(l.ListPods(text).Encoded(odd, math.MaxInt))); got != "33333333331111111111" {
		t.Errorf("the list of some has %q", got)
	}
	if got := string(join(l.ListPods(text).Encoded(nil, 20))); !strings.HasPrefix(got, "4444444444333") || len(got) != 50 {
		t.Errorf("the pieces have %q", got)
	}
}

func join(pieces [][]byte) (all []byte) {
	for _, p := range pieces {
		all = append(all, p...)
	}
	return all
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
