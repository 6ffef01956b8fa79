// Package catalog is the only writer of the records of images and their names. It deletes no data.
package catalog

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/layers"
	"github.com/cribox/cribox/internal/step"
)

// Catalog owns the records of images and their names. Lock order: Catalog.mu before the locks of
// Blobs, layers.Store and Pins.
type Catalog struct {
	dir    string // images/
	step   step.Hook
	blobs  *content.Blobs
	layers *layers.Store
	pins   *content.Pins
	Writer *semaphore.Weighted // held by whoever changes records on disk, also during fsync; readers never take it

	Pinned PinnedNames

	mu      sync.Mutex
	records map[string]*Record         // by image ID
	unread  map[string]bool            // image IDs whose record could not be read yet, see load.go
	names   map[string]string          // tag -> image ID
	holds   map[string]map[string]bool // image ID -> holders
	serial  uint64                     // serial number of the newest tag
}

func New(dir string, step step.Hook, b *content.Blobs, l *layers.Store, p *content.Pins) *Catalog {
	return &Catalog{
		dir: dir, step: step, blobs: b, layers: l, pins: p, Writer: semaphore.NewWeighted(1),
		records: map[string]*Record{}, unread: map[string]bool{}, names: map[string]string{},
		holds: map[string]map[string]bool{},
	}
}

// Lookup implements Images.Lookup.
func (c *Catalog) Lookup(ref string) (Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.find(ref)
	if err != nil {
		return Image{}, err
	}
	return image(c, r), nil
}

// find implements Lookup. The caller holds c.mu.
func (c *Catalog) find(ref string) (*Record, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if imageref.IsID(hex) {
		if r := c.records["sha256:"+hex]; r != nil {
			return r, nil
		}
		return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	t, err := imageref.Parse(ref)
	if err == nil {
		if r := c.named(t); r != nil {
			return r, nil
		}
	}
	if imageref.IsIDPrefix(hex) {
		r, ambiguous := byPrefix(c.records, "sha256:"+hex)
		if ambiguous {
			return nil, fmt.Errorf("image id prefix %q matches more than one image: %w", ref, errdefs.ErrInvalidArgument)
		}
		if r != nil {
			return r, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

func (c *Catalog) named(t imageref.Target) *Record {
	if t.Digest == "" {
		return c.records[c.names[t.String()]]
	}
	for _, r := range c.records {
		if slices.Contains(r.Digests, t.String()) {
			return r
		}
	}
	return nil
}

func byPrefix(records map[string]*Record, prefix string) (found *Record, ambiguous bool) {
	for id, r := range records {
		if strings.HasPrefix(id, prefix) {
			if found != nil {
				return nil, true
			}
			found = r
		}
	}
	return found, false
}

// List returns every image, sorted by ID.
func (c *Catalog) List() []Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Image, 0, len(c.records))
	for _, r := range c.records {
		list = append(list, image(c, r))
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// image returns the public view of a record. The caller holds c.mu.
func image(c *Catalog, r *Record) Image {
	i := r.Image(c.Pinned.Match)
	i.InUse = len(c.holds[r.ID]) > 0
	return i
}

// Record returns the record of an image ID, or ErrNotFound.
func (c *Catalog) Record(id string) (*Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.records[id]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("image %s: %w", id, errdefs.ErrNotFound)
}

// Hold implements Images.Hold.
func (c *Catalog) Hold(id, holder string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records[id] == nil && !c.unread[id] {
		return fmt.Errorf("image %s: %w", id, errdefs.ErrNotFound)
	}
	if c.holds[id] == nil {
		c.holds[id] = map[string]bool{}
	}
	c.holds[id][holder] = true
	return nil
}

// Release implements Images.Release.
func (c *Catalog) Release(id, holder string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.holds[id], holder)
	if len(c.holds[id]) == 0 {
		delete(c.holds, id)
	}
}

// Knows reports whether an image has the reference.
func (c *Catalog) Knows(t imageref.Target) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.named(t) != nil
}

// Pulled reports whether a record lists the image id under a digest reference.
func (c *Catalog) Pulled(id, reference string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.records[id]
	return r != nil && slices.Contains(r.Digests, reference)
}

// Senders returns the repositories of all images that contain the blob. known reports whether any
// record lists the blob, which means that it was verified and synced.
func (c *Catalog) Senders(d digest.Digest) (repositories []string, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		if !slices.ContainsFunc(r.Blobs, func(b content.Blob) bool { return b.Digest == d }) {
			continue
		}
		known = true
		for _, reference := range r.Digests {
			repositories = append(repositories, repositoryOf(reference))
		}
	}
	return repositories, known
}

// Listed returns the data keys that records list.
func (c *Catalog) Listed() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys()
}

// keys implements Listed. The caller holds c.mu.
func (c *Catalog) keys() map[string]bool {
	set := map[string]bool{}
	for _, r := range c.records {
		for _, key := range r.Keys() {
			set[key] = true
		}
	}
	return set
}

// LayerDirs returns the folders in layers/ that records list.
func (c *Catalog) LayerDirs() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	set := map[string]bool{}
	for _, r := range c.records {
		for _, l := range r.Layers {
			set[l.Dir] = true
		}
	}
	return set
}

// Condemn marks those keys as dying that no record lists and no pull has pinned, and returns them.
// The caller must delete their data and then call Pins.End.
func (c *Catalog) Condemn(keys []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.condemnLocked(keys)
}

func (c *Catalog) condemnLocked(keys []string) []string {
	if len(c.unread) > 0 {
		return nil // data of unreadable records is unknown, so nothing may be deleted
	}
	return c.pins.Condemn(keys, c.keys())
}

// Put adds r to memory under all its tags, and replaces old, the record of the image that lost a
// tag.
func (c *Catalog) Put(r, old *Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records[r.ID] = r
	for _, t := range r.Tags {
		c.names[t.Name] = r.ID
	}
	if old != nil {
		c.records[old.ID] = old
	}
}

// Unlist removes the image from memory. It returns its record and the keys of the data that the
// caller must now delete. It returns ErrFailedPrecondition if a container uses the image.
func (c *Catalog) Unlist(ref string) (*Record, []string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.find(ref)
	if err != nil {
		return nil, nil, err
	}
	if holders := slices.Sorted(maps.Keys(c.holds[r.ID])); len(holders) > 0 {
		return nil, nil, fmt.Errorf("in use by container %s: %w", holders[0], errdefs.ErrFailedPrecondition)
	}
	delete(c.records, r.ID)
	for _, t := range r.Tags {
		delete(c.names, t.Name)
	}
	return r, c.condemnLocked(r.Keys()), nil
}

// Relist undoes Unlist, for a record that could not be deleted on disk.
func (c *Catalog) Relist(r *Record, garbage []string) {
	c.Put(r, nil)
	c.pins.End(garbage)
}

// Merge completes r, the record of a pulled image, with the existing record of that image, if any.
// old is the record of the image that loses the tag, without the tag; nil if there is none. changed
// reports whether r differs from the existing record. garbage are blobs that the image no longer
// needs. The caller holds Writer, so that records do not change meanwhile.
func (c *Catalog) Merge(
	r *Record, t imageref.Target, root digest.Digest,
) (old *Record, changed bool, garbage []content.Blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	blobs := r.Blobs
	have := c.records[r.ID]
	changed = have == nil || !slices.Equal(have.Layers, r.Layers)
	r.Blobs = nil
	if have != nil {
		r.Tags, r.Digests = slices.Clone(have.Tags), slices.Clone(have.Digests)
		r.ByDigest, r.Blobs = slices.Clone(have.ByDigest), slices.Clone(have.Blobs)
	}
	for _, b := range blobs {
		if r.addBlob(b) {
			changed = true
		}
	}
	if r.addDigest(t.Repository()+"@"+root.String(), t.Tag == "") {
		changed = true
	}
	if t.Tag == "" {
		return nil, changed, nil
	}
	if r.setRoot(t.String(), root) {
		changed = true
	} else if !r.hasTag(t.String()) {
		c.serial++
		r.Tags = append(r.Tags, tag{Name: t.String(), Serial: c.serial, Root: root})
		if loser := c.records[c.names[t.String()]]; loser != nil && loser.ID != r.ID {
			old = loser.withoutTag(t.String())
		}
		changed = true
	}
	if garbage = r.forgetRoots(t.Repository(), root, blobs); len(garbage) > 0 {
		changed = true
	}
	return old, changed, garbage
}

// OfLayer returns the records that list the folder of a layer, and who holds their images, sorted.
func (c *Catalog) OfLayer(dir string) (records []*Record, holders []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]bool{}
	for id, r := range c.records {
		if slices.ContainsFunc(r.Layers, func(l layers.Layer) bool { return l.Dir == dir }) {
			records = append(records, r)
			maps.Copy(all, c.holds[id])
		}
	}
	return records, slices.Sorted(maps.Keys(all))
}
