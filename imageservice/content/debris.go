package content

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

// Debris returns the keys of blobs and partial downloads that are not listed and were last changed
// before t. more reports whether there are newer ones.
func (b *Blobs) Debris(ctx context.Context, t time.Time, listed map[string]bool) (keys []string, more bool) {
	err := b.store.Walk(ctx, func(i content.Info) error {
		switch {
		case listed[BlobKey(i.Digest)]:
		case i.CreatedAt.Before(t):
			keys = append(keys, BlobKey(i.Digest))
		default:
			more = true
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.L.WithError(err).Warn("blobs could not be listed to find what nobody needs")
	}
	partial, _ := b.store.ListStatuses(ctx)
	for _, s := range partial {
		switch {
		case s.UpdatedAt.Before(t):
			keys = append(keys, PartialPrefix+s.Ref)
		default:
			more = true
		}
	}
	return keys, more
}

const maxRef = 4096 // largest name of a partial download, in bytes

// DropBroken deletes everything in ingest/ that is not a valid partial download. Valid ones are
// resumed by a later pull, or deleted if no pull needs them for a while.
func (b *Blobs) DropBroken(ctx context.Context) {
	dir := filepath.Join(b.Dir, "ingest")
	entries, _ := os.ReadDir(dir) // the store creates the folder if it is missing
	for _, e := range entries {
		ref, err := ReadCapped(filepath.Join(dir, e.Name(), "ref"), maxRef)
		if err != nil && !Lasting(err) {
			log.G(ctx).WithError(err).WithField("download", e.Name()).Warn("partial download cannot be read now; it stays for a while")
			continue
		}
		if err == nil && digest.FromBytes(ref).Encoded() == e.Name() && !strings.HasPrefix(string(ref), documentPrefix) {
			continue
		}
		if err := tree.Remove(context.WithoutCancel(ctx), filepath.Join(dir, e.Name())); err != nil {
			log.G(ctx).WithError(err).WithField("download", e.Name()).Warn("partial download could not be deleted")
		}
	}
}

func ReadCapped(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, errors.New(filepath.Base(path) + " is not a file of a sane size")
	}
	b := make([]byte, info.Size())
	n, err := f.ReadAt(b, 0)
	if n == len(b) {
		err = nil
	}
	return b, err
}

// Lasting reports whether an error of reading will occur again on every try. A failing disk or a
// lack of descriptors, for example, may be temporary.
func Lasting(err error) bool {
	var errno unix.Errno
	return !errors.As(err, &errno) || errno == unix.ENOENT || errno == unix.ENOTDIR || errno == unix.EISDIR
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
