// Package content stores the blobs of images, and tracks which data is in use. It does not know
// images.
package content

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/manifest"
)

// Blobs owns content/: the blobs, the partial downloads, and the results of unpacking blobs.
type Blobs struct {
	Dir   string // content/
	store content.Store

	mu      sync.Mutex
	diffIDs map[digest.Digest]digest.Digest // of each blob that was unpacked, the digest of its content
}

func OpenBlobs(dir string) (*Blobs, error) {
	store, err := newStore(dir)
	return &Blobs{Dir: dir, store: store, diffIDs: map[digest.Digest]digest.Digest{}}, err
}

// newStore opens the content store. It suppresses the store's warning about missing fs-verity,
// which few file systems have and cribox does not need.
func newStore(path string) (content.Store, error) {
	level := log.L.Logger.GetLevel()
	log.L.Logger.SetLevel(min(level, logrus.ErrorLevel))
	defer log.L.Logger.SetLevel(level)
	return local.NewStore(path)
}

func (b *Blobs) Path(d digest.Digest) string {
	return filepath.Join(b.Dir, "blobs", "sha256", strings.TrimPrefix(string(d), "sha256:"))
}

// IngestFile returns the path at which the content store keeps a partial download.
func (b *Blobs) IngestFile(ref string) string {
	return filepath.Join(b.Dir, "ingest", digest.FromString(ref).Encoded(), "data")
}

// ReadDocument reads a manifest, index or config and verifies its digest.
func (b *Blobs) ReadDocument(d digest.Digest) ([]byte, error) {
	raw, err := ReadCapped(b.Path(d), manifest.MaxBytes)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(raw); got != d {
		return nil, fmt.Errorf("blob %s on disk has digest %s", d, got)
	}
	return raw, nil
}

// Writer writes one blob.
type Writer = content.Writer

// OpenWriter starts or resumes a partial download. It hashes the bytes that are already there.
func (b *Blobs) OpenWriter(ctx context.Context, ref string, size int64) (content.Writer, error) {
	return content.OpenWriter(ctx, b.store, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{Size: size}))
}

// WriteDocument writes a verified document. It replaces a blob under this digest that does not
// verify.
func (b *Blobs) WriteDocument(ctx context.Context, ref string, raw []byte, desc ocispec.Descriptor) error {
	if err := b.Delete(ctx, desc.Digest); err != nil {
		return err
	}
	if err := content.WriteBlob(ctx, b.store, documentPrefix+ref, bytes.NewReader(raw), desc); err != nil {
		return fmt.Errorf("write blob %s: %w", desc.Digest, fault.Disk(err))
	}
	return nil
}

// documentPrefix is the prefix of the ingest references of documents.
const documentPrefix = "document "

// Delete removes a blob. It returns nil if the blob does not exist.
func (b *Blobs) Delete(ctx context.Context, d digest.Digest) error {
	return ignoreNotFound(b.store.Delete(ctx, d))
}

// Abort removes a partial download. It returns nil if the download does not exist.
func (b *Blobs) Abort(ctx context.Context, ref string) error {
	return ignoreNotFound(b.store.Abort(ctx, ref))
}

// UnpacksTo returns the digest of the blob's uncompressed content, or "" if it is unknown.
func (b *Blobs) UnpacksTo(d digest.Digest) digest.Digest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.diffIDs[d]
}

func (b *Blobs) NoteUnpacked(d, diffID digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.diffIDs[d] = diffID
}

// Forget drops what is known about a blob that will be deleted.
func (b *Blobs) Forget(d digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.diffIDs, d)
}

// SenderAttribute is the extended attribute in which a blob's file lists the repositories that sent
// it, one per line. Records list them too, but a blob may belong to a pull that failed or was
// interrupted by a restart. A blob without the attribute is downloaded again.
const SenderAttribute = "trusted.cribox.from"

const maxSenders = 2 << 10 // largest size of the attribute, in bytes

// Senders returns the repositories that are recorded as senders of the blob.
func (b *Blobs) Senders(d digest.Digest) []string {
	text := make([]byte, maxSenders)
	n, err := unix.Lgetxattr(b.Path(d), SenderAttribute, text)
	if err != nil {
		return nil
	}
	return strings.Split(string(text[:n]), "\n")
}

// AddSender records that a repository has sent the blob, or has proven to have it.
func (b *Blobs) AddSender(d digest.Digest, repository string) error {
	all := b.Senders(d)
	if slices.Contains(all, repository) {
		return nil
	}
	for all = append(all, repository); len(strings.Join(all, "\n")) > maxSenders; all = all[1:] {
	}
	return unix.Lsetxattr(b.Path(d), SenderAttribute, []byte(strings.Join(all, "\n")), 0)
}
