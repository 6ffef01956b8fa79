package sandbox

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/sandbox/layout"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/store"
)

// table holds every pod and container of this daemon: its record, and in memory its request and its
// name. It makes the events.
type table struct {
	events
	states *states
	layout layout.Layout

	mu         sync.RWMutex // guards what follows; never held across I/O
	pods       map[string]*pod
	containers map[string]*container
	names      map[string]string // podKey or containerKey to id
	unread     map[string]error  // pods whose record cannot be read now, see load.go
}

func newTable(l layout.Layout) *table {
	return &table{
		states: &states{}, layout: l,
		pods: map[string]*pod{}, containers: map[string]*container{}, names: map[string]string{}, unread: map[string]error{},
	}
}

// pod is what is kept in memory beside the record: the request, which never changes.
type pod struct {
	id     string
	config *runtimeapi.PodSandboxConfig
	told   Told
	lacks  error         // why config cannot be read now, and is empty
	paused chan struct{} // closed when the pause process is known to have ended
	once   *sync.Once
	latest int64 // what now has returned last for the pod; guarded by table.mu
}

func newPod(id string, c *runtimeapi.PodSandboxConfig) *pod {
	return &pod{id: id, config: c, paused: make(chan struct{}), once: &sync.Once{}}
}

func (p *pod) markPaused() { p.once.Do(func() { close(p.paused) }) }

type container struct {
	id          string
	podID       string
	imageID     string   // held as long as the container is known
	mountImages []string // held as well: see store.Container
	config      *runtimeapi.ContainerConfig
	told        Told
	lacks       error         // why config cannot be read now, and is empty
	exited      chan struct{} // closed after the exit is recorded
	settling    atomic.Bool   // see settleLater
	once        *sync.Once
}

func newContainer(podID string, r store.Container, c *runtimeapi.ContainerConfig) *container {
	return &container{id: r.ID, podID: podID, imageID: r.ImageID, mountImages: r.MountImages, config: c, exited: make(chan struct{}), once: &sync.Once{}}
}

func (c *container) markExited() { c.once.Do(func() { close(c.exited) }) }

// podKey identifies a pod for its owner: a second request with the same key is the same request.
func podKey(c *runtimeapi.PodSandboxConfig) string {
	d := c.GetMetadata()
	return fmt.Sprintf("pod %s/%s %s attempt %d", d.GetNamespace(), d.GetName(), d.GetUid(), d.GetAttempt())
}

func containerKey(podID string, c *runtimeapi.ContainerConfig) string {
	d := c.GetMetadata()
	return fmt.Sprintf("container %s of pod %s attempt %d", d.GetName(), podID, d.GetAttempt())
}

func (t *table) addPod(p *pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pods[p.id] = p
	t.names[podKey(p.config)] = p.id
}

func (t *table) addContainer(c *container) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.containers[c.id] = c
	t.names[containerKey(c.podID, c.config)] = c.id
}

// forgetPod takes the pod out of memory; its name is free from here on.
func (t *table) forgetPod(p *pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pods, p.id)
	if key := podKey(p.config); t.names[key] == p.id {
		delete(t.names, key)
	}
}

// forgetContainer takes the container out of memory; its name is free from here on.
func (t *table) forgetContainer(c *container) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.containers, c.id)
	if key := containerKey(c.podID, c.config); t.names[key] == c.id {
		delete(t.names, key)
	}
}

// idByKey returns the id of the pod or container that was called so in its request.
func (t *table) idByKey(key string) (id string, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	id, ok = t.names[key]
	return id, ok
}

// setKey lets a pod or container be found by what it was called in its request, unless that is not
// known. The caller has t.mu.
func (t *table) setKey(lacks error, key, id string) {
	if _, taken := t.names[key]; lacks == nil && !taken {
		t.names[key] = id
	}
}

// byID returns the pod or the container with this id; both are nil when there is none.
func (t *table) byID(id string) (*pod, *container) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.pods[id], t.containers[id]
}

// findPod returns the pod with this id or unique beginning of one. ErrNotFound, ErrInvalidArgument;
// ErrUnavailable when its record cannot be read now.
func (t *table) findPod(id string) (*pod, error) {
	if err := t.recordUnread(id); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	full, err := expand("pod", id, t.pods)
	if err != nil {
		return nil, err
	}
	return t.pods[full], nil
}

// findContainer returns the container with this id or unique beginning of one. ErrNotFound,
// ErrInvalidArgument.
func (t *table) findContainer(id string) (*container, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	full, err := expand("container", id, t.containers)
	if err != nil {
		return nil, err
	}
	return t.containers[full], nil
}

// ofPod returns the containers of a pod.
func (t *table) ofPod(id string) []*container {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var all []*container
	for _, c := range t.containers {
		if c.podID == id {
			all = append(all, c)
		}
	}
	return all
}

// known returns ErrUnavailable for a request that needs what another one said, which cannot be read now.
func known(lacks error) error {
	if lacks != nil {
		return fmt.Errorf("%v: it will be read again: %w", lacks, errdefs.ErrUnavailable)
	}
	return nil
}

// recordUnread returns ErrUnavailable when id is, or begins, the id of a pod whose record cannot be
// read now: it is not unknown.
func (t *table) recordUnread(id string) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if _, err := expand("pod", id, t.unread); err == nil || errors.Is(err, errdefs.ErrInvalidArgument) && id != "" {
		return fmt.Errorf("the record of pod %s cannot be read now; it will be read again: %w", id, errdefs.ErrUnavailable)
	}
	return nil
}

// unreadPods returns the pods whose records cannot be read now.
func (t *table) unreadPods() (ids []string) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for id := range t.unread {
		ids = append(ids, id)
	}
	return ids
}

// wasRead ends that a pod's record cannot be read.
func (t *table) wasRead(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.unread, id)
}

// lacking returns the pods and containers whose requests are not in memory.
func (t *table) lacking() (pods []*pod, containers []*container) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.pods {
		if p.lacks != nil {
			pods = append(pods, p)
		}
	}
	for _, c := range t.containers {
		if c.lacks != nil {
			containers = append(containers, c)
		}
	}
	return pods, containers
}

// replacePod puts a pod with its request in the place of the one without, whose end it shares.
func (t *table) replacePod(p, next *pod) {
	next.paused, next.once = p.paused, p.once
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pods[p.id] == p {
		t.pods[p.id] = next
		t.setKey(nil, podKey(next.config), p.id)
	}
}

// replaceContainer puts a container with its request in the place of the one without, whose end it
// shares.
func (t *table) replaceContainer(c, next *container) {
	next.exited, next.once = c.exited, c.once
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.containers[c.id] == c {
		t.containers[c.id] = next
		t.setKey(nil, containerKey(c.podID, next.config), c.id)
	}
}

// now returns the date of something that is made, or happens, in a pod of that name: the time in
// nanoseconds, and later than all before in pods of the same name, of which the kubelet takes the one
// with the latest date for the one that counts. Where the clock was far ahead, those stay there, so
// this does not say when something has ended.
func (t *table) now(c *runtimeapi.PodSandboxConfig) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now().UnixNano()
	var same []*pod
	for _, p := range t.pods {
		if sameName(p.config.GetMetadata(), c.GetMetadata()) {
			same = append(same, p)
			now = max(now, p.latest+1)
		}
	}
	for _, p := range same {
		p.latest = now
	}
	return now
}

// sameName tells whether two pods are one for the kubelet, be it in two attempts.
func sameName(a, b *runtimeapi.PodSandboxMetadata) bool {
	return a.GetUid() == b.GetUid() && a.GetName() == b.GetName() && a.GetNamespace() == b.GetNamespace()
}
