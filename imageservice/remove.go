package imageservice

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
)

// Remove deletes the image that ref (an id or any of its names) stands for: all its names, and every blob and layer that no other image
// and no pull under way needs. An absent image is no error. Errors: ErrInvalidArgument for what is no reference, ErrFailedPrecondition
// naming the holder while the image is held; then nothing has changed. A pinned image goes like any other: to pin is a recommendation (CRI
// Image.pinned).
//
// It needs no free space (I15). From the moment the record is gone it goes on whatever becomes of ctx.
func (c *Images) Remove(ctx context.Context, ref string) error {
	if err := c.writer.take(ctx); err != nil {
		return fmt.Errorf("remove image %s: %w", shown(ref), err)
	}
	r, garbage, err := c.unlist(ref)
	if errdefs.IsNotFound(err) {
		c.writer.give()
		return nil
	}
	if err != nil {
		c.writer.give()
		return fmt.Errorf("remove image %s: %w", shown(ref), err)
	}
	err = c.eraseRecord(r.ID)
	if err != nil {
		c.relist(r, garbage)
		c.writer.give()
		return fmt.Errorf("remove image %s: %w", shown(ref), diskError(err))
	}
	c.step("remove.unrecorded")
	c.writer.give()
	c.delete(garbage)
	return nil
}

// unlist takes the image out of memory and condemns its data.
func (c *Images) unlist(ref string) (*record, []string, error) {
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
	var keys []string
	for _, b := range r.Blobs {
		keys = append(keys, blobKey(b.Digest))
	}
	for _, l := range r.Layers {
		keys = append(keys, layerPrefix+l.key())
	}
	return r, c.condemn(keys), nil
}

// relist undoes unlist: the record could not be erased, so nothing may be deleted.
func (c *Images) relist(r *record, garbage []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records[r.ID] = r
	for _, t := range r.Tags {
		c.names[t.Name] = r.ID
	}
	for _, key := range garbage {
		close(c.dying[key])
		delete(c.dying, key)
	}
}
