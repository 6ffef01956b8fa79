package imageservice

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
)

// blobs owns content/: the blobs, the partial downloads, and what is known of them.
type blobs struct {
	dir   string // content/
	store content.Store

	mu      sync.Mutex
	diffIDs map[digest.Digest]digest.Digest // what blobs that are here were seen to unpack to
}

func openBlobs(dir string) (*blobs, error) {
	store, err := newStore(dir)
	return &blobs{dir: dir, store: store, diffIDs: map[digest.Digest]digest.Digest{}}, err
}

// newStore opens the content store without its warning that the file system has no fs-verity, which few have and nobody misses.
func newStore(path string) (content.Store, error) {
	level := log.L.Logger.GetLevel()
	log.L.Logger.SetLevel(min(level, logrus.ErrorLevel))
	defer log.L.Logger.SetLevel(level)
	return local.NewStore(path)
}

func (b *blobs) path(d digest.Digest) string {
	return filepath.Join(b.dir, "blobs", "sha256", strings.TrimPrefix(string(d), "sha256:"))
}

// ingestFile is where the content store keeps the bytes of a partial download.
func (b *blobs) ingestFile(ref string) string {
	return filepath.Join(b.dir, "ingest", digest.FromString(ref).Encoded(), "data")
}

// readDocument reads a manifest, index or config and verifies it on the way.
func (b *blobs) readDocument(d digest.Digest) ([]byte, error) {
	raw, err := readCapped(b.path(d), maxDocument)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(raw); got != d {
		return nil, fmt.Errorf("blob %s on disk has digest %s", d, got)
	}
	return raw, nil
}

// delete removes a blob; an absent one is no error.
func (b *blobs) delete(ctx context.Context, d digest.Digest) error {
	return ignoreNotFound(b.store.Delete(ctx, d))
}

// abort removes a partial download; an absent one is no error.
func (b *blobs) abort(ctx context.Context, ref string) error {
	return ignoreNotFound(b.store.Abort(ctx, ref))
}

// unpacksTo returns the digest of what a blob was seen to unpack to, "" when it was not seen.
func (b *blobs) unpacksTo(d digest.Digest) digest.Digest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.diffIDs[d]
}

func (b *blobs) noteUnpacked(d, diffID digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.diffIDs[d] = diffID
}

// forget makes a blob that will be deleted one that nobody has seen.
func (b *blobs) forget(d digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.diffIDs, d)
}
