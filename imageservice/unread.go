package imageservice

import (
	"context"
	"maps"
	"slices"

	"github.com/containerd/log"
)

// A record that cannot be read for a reason that may pass (a failing disk, a lack of descriptors) says nothing about what its image needs. The
// image is not listed, but containers of it can be adopted, and nothing is deleted until its record was read, or its image pulled again.

// readAgain reads the records that could not be read so far, and says whether none is left.
func (c *Images) readAgain(ctx context.Context) bool {
	c.mu.Lock()
	ids := slices.Sorted(maps.Keys(c.unread))
	c.mu.Unlock()
	if len(ids) == 0 {
		return true
	}
	if err := c.writer.take(ctx); err != nil { // no pull replaces the record meanwhile
		return false
	}
	defer c.writer.give()
	left := false
	for _, id := range ids {
		r, err := c.loadRecord(c.recordPath(id), id)
		if err != nil && !damaged(err) {
			log.G(ctx).WithError(err).WithField("image", id).Warn("image record still cannot be read")
			left = true
			continue
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("image", id).Error("image record is not to be believed; pull the image again")
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

// listLate lists a record. Tags that were pulled meanwhile are not its any more. Under the lock.
func (c *Images) listLate(r *record) {
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
