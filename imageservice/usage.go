package imageservice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cribox/cribox/internal/tree"
)

// Usage is the disk usage of image data.
type Usage struct {
	Mountpoint    string // the root folder, which exists and is on the filesystem of the data
	Bytes, Inodes uint64 // as counted by du: allocated blocks, every hard-linked file once
	At            time.Time
}

// Usage adds up the sizes of the layers, which were measured when they were unpacked, and those of
// the files in content/ and images/, which it measures now.
func (s *Images) Usage(ctx context.Context) (Usage, error) {
	u := Usage{Mountpoint: s.cfg.Root, At: time.Now()}
	for _, l := range s.layers.All() {
		u.Bytes += l.Bytes
		u.Inodes += l.Inodes
	}
	for _, d := range []string{"content", "images"} {
		if err := ctx.Err(); err != nil {
			return Usage{}, err
		}
		dir := filepath.Join(s.cfg.Root, d)
		if _, err := os.Stat(dir); err != nil { // an error, so that a missing disk does not count as empty
			return Usage{}, fmt.Errorf("usage of image data: %w", err)
		}
		bytes, inodes, err := tree.Usage(dir)
		if err != nil {
			return Usage{}, fmt.Errorf("usage of image data: %w", err)
		}
		u.Bytes += bytes
		u.Inodes += inodes
	}
	return u, nil
}
