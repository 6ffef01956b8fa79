package table

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/cribox/cribox/sandbox/store"
)

// List is a list of pods or containers at one moment, the newest first, with the encoded form of
// each. Whoever gets one may keep it, and changes nothing in it.
type List[V any] struct {
	edition edition
	items   []listItem
	encoded []byte // all items, one after the other
	view    func(listItem) V
}

// listItem is one pod or container. As long as its record and its entry in the table are the same,
// so is its encoded form.
type listItem struct {
	record  *store.Pod
	entry   any // a *PodEntry or a *ContainerEntry
	created int64
	id      string
	encoded []byte // a part of List.encoded
}

// edition says which changes of records and of entries in the table a list contains.
type edition struct{ records, entries uint64 }

// lists makes lists of a table. It keeps the last ones.
type lists struct {
	table          *Table
	lastPods       atomic.Pointer[List[Pod]]
	lastContainers atomic.Pointer[List[Container]]
}

// Pods returns every pod that is more than an attempt, the newest first.
func (l *lists) Pods() []Pod { return views(l.podItems(), podOf) }

// Containers returns every container that is more than an attempt, the newest first.
func (l *lists) Containers() []Container { return views(l.containerItems(), containerOf) }

// ListPods returns the list of the pods that Pods returns. encode appends the encoded form of a pod
// to b; only pods whose record has changed since the last list are encoded again.
func (l *lists) ListPods(encode func(b []byte, p Pod) []byte) *List[Pod] {
	return latest(l.table, &l.lastPods, l.podItems, podOf, encode)
}

// ListContainers is ListPods for containers.
func (l *lists) ListContainers(encode func(b []byte, c Container) []byte) *List[Container] {
	return latest(l.table, &l.lastContainers, l.containerItems, containerOf, encode)
}

// latest returns the last list if nothing has changed since, and otherwise a new one. The edition
// is read before the items: a change in between belongs to the next edition.
func latest[V any](t *Table, last *atomic.Pointer[List[V]], items func() []listItem, view func(listItem) V,
	encode func([]byte, V) []byte) *List[V] {
	now := edition{records: t.States.store.Changes(), entries: t.changes.Load()}
	before := last.Load()
	if before != nil && before.edition == now {
		return before
	}
	next := &List[V]{edition: now, items: items(), view: view}
	next.encode(before, encode)
	last.Store(next)
	return next
}

// encode fills in the encoded form of all items, and copies it from the list before where it is the
// same.
func (l *List[V]) encode(before *List[V], encode func([]byte, V) []byte) {
	known := map[any]listItem{}
	if before != nil {
		for _, i := range before.items {
			known[i.entry] = i
		}
	}
	ends := make([]int, len(l.items))
	var b []byte
	for n, i := range l.items {
		if same, ok := known[i.entry]; ok && same.record == i.record {
			b = append(b, same.encoded...)
		} else {
			b = encode(b, l.view(i))
		}
		ends[n] = len(b)
	}
	l.encoded = slices.Clone(b) // b has room to grow, and the list stays in memory
	start := 0
	for n, end := range ends {
		l.items[n].encoded = l.encoded[start:end]
		start = end
	}
}

// Encoded returns the encoded form of the items that match, all for nil, in pieces of at most size
// bytes, or of one item that is larger. Nobody changes the bytes.
func (l *List[V]) Encoded(match func(V) bool, size int) [][]byte {
	if match == nil && len(l.encoded) <= size && len(l.items) > 0 {
		return [][]byte{l.encoded}
	}
	var pieces [][]byte
	for _, i := range l.items {
		if match != nil && !match(l.view(i)) {
			continue
		}
		if n := len(pieces); n > 0 && len(pieces[n-1])+len(i.encoded) <= size {
			pieces[n-1] = append(pieces[n-1], i.encoded...)
			continue
		}
		pieces = append(pieces, slices.Clone(i.encoded))
	}
	return pieces
}

// podItems returns every pod that is more than an attempt, the newest first.
func (l *lists) podItems() []listItem {
	t := l.table
	records := t.States.List()
	all := make([]listItem, 0, len(records))
	t.mu.RLock()
	for _, r := range records {
		if p, ok := t.pods[r.ID]; ok && shown(r) {
			all = append(all, listItem{record: r, entry: p, created: r.Created, id: r.ID})
		}
	}
	t.mu.RUnlock()
	slices.SortFunc(all, newestItem)
	return all
}

// containerItems returns every container that is more than an attempt, the newest first.
func (l *lists) containerItems() []listItem {
	t := l.table
	records := t.States.List()
	t.mu.RLock()
	all := make([]listItem, 0, len(t.containers))
	for _, r := range records {
		for id, c := range r.Containers {
			if known, ok := t.containers[id]; ok && c.State != store.ContainerCreating {
				all = append(all, listItem{record: r, entry: known, created: c.Created, id: id})
			}
		}
	}
	t.mu.RUnlock()
	slices.SortFunc(all, newestItem)
	return all
}

func newestItem(a, b listItem) int {
	return cmp.Or(cmp.Compare(b.created, a.created), cmp.Compare(a.id, b.id))
}

func views[V any](items []listItem, view func(listItem) V) []V {
	all := make([]V, 0, len(items))
	for _, i := range items {
		all = append(all, view(i))
	}
	return all
}

// podOf and containerOf return what a list item is about.
func podOf(i listItem) Pod {
	p := i.entry.(*PodEntry)
	return Pod{Pod: *i.record, Config: p.Config, Encodings: &p.encodings}
}

func containerOf(i listItem) Container {
	c := i.entry.(*ContainerEntry)
	return Container{Container: i.record.Containers[i.id], PodID: i.record.ID, Config: c.Config, Encodings: &c.encodings}
}
