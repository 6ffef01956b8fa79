package imageservice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cribox/cribox/internal/tree"
)

// Usage is what image data takes on disk.
type Usage struct {
	Mountpoint    string // an existing folder on the filesystem in question: the root folder
	Bytes, Inodes uint64 // as du counts: allocated blocks, every hard linked file once
	At            time.Time
}

// Usage adds up the layers, whose figures were taken when they were unpacked, and the few files of
// content/ and images/, which it stats.
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
		if _, err := os.Stat(dir); err != nil { // a disk that is away is not an empty one
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
