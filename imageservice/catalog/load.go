package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/internal/telemetry"
)

// A record may be unreadable for a temporary reason, such as a failing disk or a lack of
// descriptors. Then it is unknown which data its image needs. The image is not listed, but its
// containers can still be recovered. Nothing is deleted until the record has been read or the image
// has been pulled again.

func (c *Catalog) path(id string) string {
	return filepath.Join(c.dir, strings.TrimPrefix(id, "sha256:"))
}

// Load reads all records, and assigns every tag to one of them.
func (c *Catalog) Load(ctx context.Context) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(c.dir, e.Name())
		switch filepath.Ext(e.Name()) {
		case ".torn":
			continue
		case ".tmp":
			os.Remove(path)
			continue
		}
		r, err := c.read("sha256:" + e.Name())
		if errors.Is(err, errNewer) {
			return fmt.Errorf("image record %s: %w", e.Name(), err)
		}
		if err != nil && !damaged(err) {
			log.G(ctx).WithError(err).WithField("image", e.Name()).
				Error("cannot read an image record now; " +
					"the image is not listed and no image data is deleted until it can be read; will try again")
			c.unread["sha256:"+e.Name()] = true
			continue
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("image", e.Name()).
				Error("image record is damaged and is set aside as *.torn; pull the image again")
			telemetry.Add(ctx, telemetry.SetAside, "image", 1)
			if err := os.Rename(path, path+".torn"); err != nil {
				log.G(ctx).WithError(err).WithField("image", e.Name()).Warn("cannot rename a damaged image record")
			}
			continue
		}
		c.remember(r)
	}
	c.assignTags(ctx)
	return nil
}

// remember adds a record to memory, without its tags. The caller holds c.mu or is alone.
func (c *Catalog) remember(r *Record) {
	c.records[r.ID] = r
	for i := range r.Layers {
		c.layers.Set(&r.Layers[i])
	}
	for _, b := range r.Blobs {
		if b.DiffID != "" {
			c.blobs.NoteUnpacked(b.Digest, b.DiffID)
		}
	}
}

// read reads one record and checks that its data exists: the config by its digest, blobs by their
// size, layers by their folder.
func (c *Catalog) read(id string) (*Record, error) {
	b, err := content.ReadCapped(c.path(id), 4*manifest.MaxBytes)
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(b, id)
	if err != nil {
		return nil, err
	}
	for _, b := range r.Blobs {
		info, err := os.Lstat(c.blobs.Path(b.Digest))
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() || info.Size() != b.Size {
			return nil, fmt.Errorf("blob %s has %d bytes, not %d", b.Digest, info.Size(), b.Size)
		}
	}
	for _, l := range r.Layers {
		if err := c.layers.Check(l.Dir); err != nil {
			return nil, err
		}
	}
	config, err := c.blobs.ReadDocument(digest.Digest(id))
	if err != nil {
		return nil, err
	}
	return r, json.Unmarshal(config, &r.Config)
}

// damaged reports whether a record that could not be read is lost for good. A record of a newer
// version is not: if it counted as lost, the layers of running containers would be deleted.
func damaged(err error) bool { return !errors.Is(err, errNewer) && content.Lasting(err) }

// assignTags assigns each tag to the record with the latest claim. It removes the tag from the
// files of other records, so that the tag does not return to them when the winner is removed.
func (c *Catalog) assignTags(ctx context.Context) {
	type claim struct {
		id     string
		serial uint64
	}
	best := map[string]claim{}
	for id, r := range c.records {
		for _, t := range r.Tags {
			c.serial = max(c.serial, t.Serial)
			if b, ok := best[t.Name]; !ok || t.Serial > b.serial {
				best[t.Name] = claim{id, t.Serial}
			}
		}
	}
	for name, b := range best {
		c.names[name] = b.id
		for id, r := range c.records {
			if id == b.id || !r.hasTag(name) {
				continue
			}
			c.records[id] = r.withoutTag(name)
			if err := c.Write(c.records[id]); err != nil {
				log.G(ctx).WithError(err).WithField("image", id).Warn("cannot update the record of the image that lost its tag")
			}
		}
	}
}

// ReadAgain tries to read the records that could not be read so far, and reports whether all could
// be read now.
func (c *Catalog) ReadAgain(ctx context.Context) bool {
	c.mu.Lock()
	ids := slices.Sorted(maps.Keys(c.unread))
	c.mu.Unlock()
	if len(ids) == 0 {
		return true
	}
	if err := c.Writer.Acquire(ctx, 1); err != nil { // no pull may replace the record meanwhile
		return false
	}
	defer c.Writer.Release(1)
	left := false
	for _, id := range ids {
		r, err := c.read(id)
		if err != nil && !damaged(err) {
			log.G(ctx).WithError(err).WithField("image", id).Warn("still cannot read an image record")
			left = true
			continue
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("image", id).Error("image record is damaged; pull the image again")
		}
		c.mu.Lock()
		delete(c.unread, id)
		if err == nil && c.records[id] == nil {
			c.listLate(r)
		}
		c.mu.Unlock()
	}
	return !left
}

// listLate adds a record to memory, without tags that were pulled for other images meanwhile. The
// caller holds c.mu.
func (c *Catalog) listLate(r *Record) {
	for _, t := range r.Tags {
		if c.names[t.Name] != "" {
			r = r.withoutTag(t.Name)
			continue
		}
		c.names[t.Name] = r.ID
		c.serial = max(c.serial, t.Serial)
	}
	c.remember(r)
}

// IsRead reports whether every record could be read.
func (c *Catalog) IsRead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.unread) == 0
}

// Write writes r to disk. If it returns nil, the new record survives a power failure; if it returns
// an error, the old one does.
func (c *Catalog) Write(r *Record) error {
	b, err := encodeRecord(r)
	if err != nil {
		return err
	}
	return ReplaceFile(c.path(r.ID), b, func() { c.step.Pass("pull.record.written") })
}

// ReplaceFile replaces a file. written is called once the new content is on disk, under another
// name. If ReplaceFile returns nil, the new content survives a power failure; if it returns an
// error, the old one does, unless only the folder could not be synced.
func ReplaceFile(path string, b []byte, written func()) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fault.Disk(err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		written()
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fault.Disk(err)
	}
	return syncDir(filepath.Dir(path))
}

// Erase deletes the record of id from disk. After it returns nil, a power failure cannot bring the
// record back.
func (c *Catalog) Erase(id string) error {
	if err := os.Remove(c.path(id)); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return syncDir(c.dir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
