package table

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
)

// Table holds every pod and container of this daemon: its record, and in memory its request and its
// name. It makes the events.
type Table struct {
	events
	*lists
	States *States
	Layout layout.Layout

	changes atomic.Uint64 // of pods and containers, under mu

	mu         sync.RWMutex // guards what follows; never held across I/O
	pods       map[string]*PodEntry
	containers map[string]*ContainerEntry
	names      map[string]string // podKey or containerKey to id
	unread     map[string]error  // pods whose record cannot be read now, see load.go
}

// New returns a table of which load has to fill the records.
func New(l layout.Layout) *Table {
	t := &Table{
		States: &States{}, Layout: l,
		pods: map[string]*PodEntry{}, containers: map[string]*ContainerEntry{}, names: map[string]string{},
		unread: map[string]error{},
	}
	t.lists = &lists{table: t}
	return t
}

// PodEntry is what is kept in memory beside the record: the request, which never changes.
type PodEntry struct {
	ID        string
	Config    *runtimeapi.PodSandboxConfig
	encodings Encodings
	Lacks     error         // why config cannot be read now, and is empty
	paused    chan struct{} // closed when the pause process is known to have ended
	once      *sync.Once
	Latest    int64 // what now has returned last for the pod; guarded by table.mu
}

func NewPodEntry(id string, c *runtimeapi.PodSandboxConfig) *PodEntry {
	return &PodEntry{ID: id, Config: c, paused: make(chan struct{}), once: &sync.Once{}}
}

func (p *PodEntry) MarkPaused() { p.once.Do(func() { close(p.paused) }) }

type ContainerEntry struct {
	ID          string
	PodID       string
	ImageID     string   // held as long as the container is known
	MountImages []string // held as well: see store.Container
	Config      *runtimeapi.ContainerConfig
	encodings   Encodings
	Exec        atomic.Pointer[Exec] // nil before the first command in the container
	Lacks       error                // why config cannot be read now, and is empty
	Exited      chan struct{}        // closed after the exit is recorded
	Completing  atomic.Bool          // see updates.completeLater
	once        *sync.Once
}

// Exec is what commands in a container share, and the file of the spec that it was read from.
type Exec struct {
	*spec.Exec
	Spec os.FileInfo
}

func NewContainerEntry(podID string, r store.Container, c *runtimeapi.ContainerConfig) *ContainerEntry {
	return &ContainerEntry{ID: r.ID, PodID: podID, ImageID: r.ImageID, MountImages: r.MountImages, Config: c,
		Exited: make(chan struct{}), once: &sync.Once{}}
}

func (c *ContainerEntry) MarkExited() { c.once.Do(func() { close(c.Exited) }) }

// PodKey identifies a pod for its owner: a second request with the same key is the same request.
func PodKey(c *runtimeapi.PodSandboxConfig) string {
	d := c.GetMetadata()
	return fmt.Sprintf("pod %s/%s %s attempt %d", d.GetNamespace(), d.GetName(), d.GetUid(), d.GetAttempt())
}

func ContainerKey(podID string, c *runtimeapi.ContainerConfig) string {
	d := c.GetMetadata()
	return fmt.Sprintf("container %s of pod %s attempt %d", d.GetName(), podID, d.GetAttempt())
}

func (t *Table) AddPod(p *PodEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes.Add(1)
	t.pods[p.ID] = p
	t.names[PodKey(p.Config)] = p.ID
}

func (t *Table) AddContainer(c *ContainerEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes.Add(1)
	t.containers[c.ID] = c
	t.names[ContainerKey(c.PodID, c.Config)] = c.ID
}

// ForgetPod takes the pod out of memory; its name is free from here on.
func (t *Table) ForgetPod(p *PodEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes.Add(1)
	delete(t.pods, p.ID)
	if key := PodKey(p.Config); t.names[key] == p.ID {
		delete(t.names, key)
	}
}

// ForgetContainer takes the container out of memory; its name is free from here on.
func (t *Table) ForgetContainer(c *ContainerEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes.Add(1)
	delete(t.containers, c.ID)
	if key := ContainerKey(c.PodID, c.Config); t.names[key] == c.ID {
		delete(t.names, key)
	}
}

// IDByKey returns the id of the pod or container that was called so in its request.
func (t *Table) IDByKey(key string) (id string, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	id, ok = t.names[key]
	return id, ok
}

// setKey lets a pod or container be found by what it was called in its request, unless that is not
// known. The caller has t.mu.
func (t *Table) setKey(lacks error, key, id string) {
	if _, taken := t.names[key]; lacks == nil && !taken {
		t.names[key] = id
	}
}

// ByID returns the pod or the container with this id; both are nil when there is none.
func (t *Table) ByID(id string) (*PodEntry, *ContainerEntry) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.pods[id], t.containers[id]
}

// RootIn returns who root in a pod is on the host, root for a pod that is not known.
func (t *Table) RootIn(id string) spec.Owner {
	if p, _ := t.ByID(id); p != nil {
		return spec.RootOf(p.Config)
	}
	return spec.Owner{}
}

// FindPod returns the pod with this id or unique beginning of one. ErrNotFound, ErrInvalidArgument;
// ErrUnavailable when its record cannot be read now.
func (t *Table) FindPod(id string) (*PodEntry, error) {
	if err := t.RecordUnread(id); err != nil {
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

// FindContainer returns the container with this id or unique beginning of one. ErrNotFound,
// ErrInvalidArgument.
func (t *Table) FindContainer(id string) (*ContainerEntry, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	full, err := expand("container", id, t.containers)
	if err != nil {
		return nil, err
	}
	return t.containers[full], nil
}

// OfPod returns the containers of a pod.
func (t *Table) OfPod(id string) []*ContainerEntry {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var all []*ContainerEntry
	for _, c := range t.containers {
		if c.PodID == id {
			all = append(all, c)
		}
	}
	return all
}

// Known returns ErrUnavailable for a request that needs what another one said, which cannot be read
// now.
func Known(lacks error) error {
	if lacks != nil {
		return fmt.Errorf("%v: it will be read again: %w", lacks, errdefs.ErrUnavailable)
	}
	return nil
}

// RecordUnread returns ErrUnavailable when id is, or begins, the id of a pod whose record cannot be
// read now: it is not unknown.
func (t *Table) RecordUnread(id string) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if _, err := expand("pod", id, t.unread); err == nil || errors.Is(err, errdefs.ErrInvalidArgument) && id != "" {
		return fmt.Errorf("the record of pod %s cannot be read now; it will be read again: %w", id, errdefs.ErrUnavailable)
	}
	return nil
}

// UnreadPods returns the pods whose records cannot be read now.
func (t *Table) UnreadPods() (ids []string) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for id := range t.unread {
		ids = append(ids, id)
	}
	return ids
}

// WasRead ends that a pod's record cannot be read.
func (t *Table) WasRead(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.unread, id)
}

// Lacking returns the pods and containers whose requests are not in memory.
func (t *Table) Lacking() (pods []*PodEntry, containers []*ContainerEntry) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.pods {
		if p.Lacks != nil {
			pods = append(pods, p)
		}
	}
	for _, c := range t.containers {
		if c.Lacks != nil {
			containers = append(containers, c)
		}
	}
	return pods, containers
}

// ReplacePod puts a pod with its request in the place of the one without, whose end it shares.
func (t *Table) ReplacePod(p, next *PodEntry) {
	next.paused, next.once = p.paused, p.once
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pods[p.ID] == p {
		t.changes.Add(1)
		t.pods[p.ID] = next
		t.setKey(nil, PodKey(next.Config), p.ID)
	}
}

// ReplaceContainer puts a container with its request in the place of the one without, whose end it
// shares.
func (t *Table) ReplaceContainer(c, next *ContainerEntry) {
	next.Exited, next.once = c.Exited, c.once
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.containers[c.ID] == c {
		t.changes.Add(1)
		t.containers[c.ID] = next
		t.setKey(nil, ContainerKey(c.PodID, next.Config), c.ID)
	}
}

// Now returns the date of something that is made, or happens, in a pod of that name: the time in
// nanoseconds, and later than all before in pods of the same name, of which the kubelet takes the
// one with the latest date for the one that counts. Where the clock was far ahead, those stay
// there, so this does not say when something has ended.
func (t *Table) Now(c *runtimeapi.PodSandboxConfig) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now().UnixNano()
	var same []*PodEntry
	for _, p := range t.pods {
		if sameName(p.Config.GetMetadata(), c.GetMetadata()) {
			same = append(same, p)
			now = max(now, p.Latest+1)
		}
	}
	for _, p := range same {
		p.Latest = now
	}
	return now
}

// sameName tells whether two pods are one for the kubelet, be it in two attempts.
func sameName(a, b *runtimeapi.PodSandboxMetadata) bool {
	return a.GetUid() == b.GetUid() && a.GetName() == b.GetName() && a.GetNamespace() == b.GetNamespace()
}
