package content

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

// Debris returns the keys of blobs and partial downloads that are not listed and were last changed
// before t. more reports whether there are newer ones.
func (b *Blobs) Debris(t time.Time, listed map[string]bool) (keys []string, more bool) {
	b.each(b.folder(), func(name string, changed time.Time) {
		d := digest.NewDigestFromEncoded(digest.SHA256, name)
		switch {
		case d.Validate() != nil || listed[BlobKey(d)]:
		case changed.Before(t):
			keys = append(keys, BlobKey(d))
		default:
			more = true
		}
	})
	b.each(b.ingest(), func(name string, _ time.Time) {
		ref, err := ReadCapped(filepath.Join(b.ingest(), name, "ref"), maxRef)
		if err != nil {
			return
		}
		switch data, err := os.Lstat(b.IngestFile(string(ref))); {
		case err != nil:
		case data.ModTime().Before(t):
			keys = append(keys, PartialPrefix+string(ref))
		default:
			more = true
		}
	})
	return keys, more
}

// each calls f with the name and time of everything in a folder.
func (b *Blobs) each(folder string, f func(name string, changed time.Time)) {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.L.WithError(err).WithField("folder", folder).Warn("cannot list downloaded data to find what nobody needs")
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			f(e.Name(), info.ModTime())
		}
	}
}

const maxRef = 4096 // largest name of a partial download, in bytes

// DropBroken deletes everything in ingest/ that is not a valid partial download. Valid ones are
// resumed by a later pull, or deleted if no pull needs them for a while.
func (b *Blobs) DropBroken(ctx context.Context) {
	dir := b.ingest()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		ref, err := ReadCapped(filepath.Join(dir, e.Name(), "ref"), maxRef)
		if err != nil && !Lasting(err) {
			log.G(ctx).WithError(err).WithField("download", e.Name()).
				Warn("cannot read a partial download now; keeping it for a while")
			continue
		}
		if err == nil && digest.FromBytes(ref).Encoded() == e.Name() {
			continue
		}
		if err := tree.Remove(context.WithoutCancel(ctx), filepath.Join(dir, e.Name())); err != nil {
			log.G(ctx).WithError(err).WithField("download", e.Name()).Warn("cannot delete a partial download")
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
		return nil, errors.New(filepath.Base(path) + " is not a regular file or is too large")
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
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
