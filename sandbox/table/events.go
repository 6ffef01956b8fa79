package table

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/store"
)

// maxEvents is how many events may wait for one subscriber: more than a full node has pods and
// containers to stop at once.
const maxEvents = 1024

// Event is a change of a container's or a pod's state, with what was known of the whole pod right
// after it (CRI ContainerEventResponse). Whoever gets one changes nothing in it.
type Event struct {
	ID         string // of the container, or of the pod
	Type       runtimeapi.ContainerEventType
	At         int64 // nanoseconds since 1970, rising from event to event of a pod
	Pod        Pod   // of a pod that was deleted: as it was last
	Containers []Container
}

// events hands every event to every subscriber.
type events struct {
	mu  sync.Mutex // guards all; held for no longer than it takes to put an event into the queues
	all map[*subscriber]bool
}

type subscriber struct {
	queue chan *Event // shared by all subscribers, each of which costs its places only
	cut   context.CancelCauseFunc
}

// Subscribe returns the events from now on. They end with the context that is returned: when ctx
// ends, or, with a cause of class ErrResourceExhausted, when the subscriber was so slow that an
// event had to be left out. None is left out before that.
func (e *events) Subscribe(ctx context.Context) (context.Context, <-chan *Event) {
	ctx, cut := context.WithCancelCause(ctx)
	s := &subscriber{queue: make(chan *Event, maxEvents), cut: cut}
	e.add(s)
	context.AfterFunc(ctx, func() { e.remove(s) })
	return ctx, s.queue
}

func (e *events) add(s *subscriber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.all == nil {
		e.all = map[*subscriber]bool{}
	}
	e.all[s] = true
}

func (e *events) remove(s *subscriber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.all, s)
}

func (e *events) wanted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.all) > 0
}

// send waits for nobody.
func (e *events) send(one *Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.all {
		select {
		case s.queue <- one:
		default:
			delete(e.all, s)
			s.cut(fmt.Errorf("the client is %d events behind; list pods and containers, and subscribe again: %w",
				maxEvents, errdefs.ErrResourceExhausted))
		}
	}
}

// changed is told of every change of a record after it is shown. It is the one place where events
// are made.
func (t *Table) changed(old, next *store.Pod) {
	found := changes(old, next)
	if len(found) == 0 || !t.wanted() {
		return
	}
	r := next
	if r == nil {
		r = old
	}
	pod, containers, ok := t.whole(r)
	if !ok {
		return // its request cannot be read: it was never shown
	}
	for _, c := range found {
		t.send(&Event{ID: c.id, Type: c.what, At: t.Now(pod.Config), Pod: pod, Containers: containers})
	}
}

// whole returns what a record and the requests in memory say of a pod.
func (t *Table) whole(r *store.Pod) (Pod, []Container, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p, ok := t.pods[r.ID]
	if !ok {
		return Pod{}, nil, false
	}
	containers := t.addContainers(nil, r)
	slices.SortFunc(containers, newestFirst)
	return Pod{Pod: *r, Config: p.Config, Encodings: &p.encodings}, containers, true
}

// change is one thing that a new record tells.
type change struct {
	id   string
	what runtimeapi.ContainerEventType
}

const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// changes compares two records of a pod, nil before it was made and after it was forgotten. They
// are what a list shows differently now: an attempt that fails is none before it is listed, on its
// way out, and then deleted. A pod stops when its pause process is gone, after its containers; it
// has started and stopped at most once.
func changes(old, next *store.Pod) []change {
	var all []change
	was, is := shown(old), shown(next)
	if !was && is && next.PausePID != 0 {
		all = append(all, change{next.ID, created}, change{next.ID, started})
	}
	all = append(all, containerChanges(old, next)...)
	if was && old.PausePID != 0 && (!is || next.PausePID == 0) {
		all = append(all, change{old.ID, stopped})
	}
	if was && !is {
		all = append(all, change{old.ID, deleted})
	}
	return all
}

// shown says whether a list has the pod.
func shown(r *store.Pod) bool { return r != nil && r.State != store.PodCreating }

func containerChanges(old, next *store.Pod) []change {
	before, after := containersIn(old), containersIn(next)
	either := maps.Clone(before)
	maps.Copy(either, after)
	ids := slices.SortedFunc(maps.Keys(either), func(a, b string) int {
		return cmp.Or(cmp.Compare(either[a].Created, either[b].Created), cmp.Compare(a, b))
	})
	var all []change
	for _, id := range ids {
		was, known := before[id]
		is, left := after[id]
		for _, what := range containerChange(was, known, is, left) {
			all = append(all, change{id, what})
		}
	}
	return all
}

// containersIn returns the containers that a list has.
func containersIn(r *store.Pod) map[string]store.Container {
	all := map[string]store.Container{}
	if r == nil {
		return all
	}
	for id, c := range r.Containers {
		if c.State != store.ContainerCreating {
			all[id] = c
		}
	}
	return all
}

func containerChange(was store.Container, known bool, is store.Container, left bool) []runtimeapi.ContainerEventType {
	if !left {
		return []runtimeapi.ContainerEventType{deleted}
	}
	if !known && is.State == store.ContainerRemoving { // an attempt that failed
		return nil
	}
	var all []runtimeapi.ContainerEventType
	if !known {
		all, was = append(all, created), store.Container{State: store.ContainerCreated}
	}
	from, to := Container{Container: was}.CRIState(), Container{Container: is}.CRIState()
	if from == to {
		return all
	}
	ran := was.State == store.ContainerStarting && is.Reason != startError
	if from == runtimeapi.ContainerState_CONTAINER_CREATED && (to == runtimeapi.ContainerState_CONTAINER_RUNNING || ran) {
		all = append(all, started)
	}
	if to == runtimeapi.ContainerState_CONTAINER_EXITED {
		all = append(all, stopped)
	}
	return all
}
