// Package content stores the blobs of images, and tracks which data is in use. It does not know
// images.
package content

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/manifest"
)

// Blobs owns content/: the blobs, the partial downloads, and the results of unpacking blobs.
type Blobs struct {
	Dir string // content/

	mu      sync.Mutex
	diffIDs map[digest.Digest]digest.Digest // of each blob that was unpacked, the digest of its content
	doubts  map[digest.Digest]bool          // blobs that were found damaged, see Doubt
}

// OpenBlobs opens content/ and creates its folders if they do not exist.
func OpenBlobs(dir string) (*Blobs, error) {
	b := &Blobs{Dir: dir, diffIDs: map[digest.Digest]digest.Digest{}, doubts: map[digest.Digest]bool{}}
	for _, folder := range []string{b.folder(), b.ingest()} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *Blobs) folder() string { return filepath.Join(b.Dir, "blobs", "sha256") }
func (b *Blobs) ingest() string { return filepath.Join(b.Dir, "ingest") }

func (b *Blobs) Path(d digest.Digest) string {
	return filepath.Join(b.folder(), strings.TrimPrefix(string(d), "sha256:"))
}

// IngestFile returns the path of a partial download.
func (b *Blobs) IngestFile(ref string) string {
	return filepath.Join(b.ingest(), digest.FromString(ref).Encoded(), "data")
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

// Delete removes a blob. It returns nil if the blob does not exist.
func (b *Blobs) Delete(d digest.Digest) error {
	return ignoreNotFound(os.Remove(b.Path(d)))
}

// Abort removes a partial download. It returns nil if the download does not exist.
func (b *Blobs) Abort(ref string) error {
	return os.RemoveAll(filepath.Dir(b.IngestFile(ref)))
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
	delete(b.doubts, d)
}

// Doubt remembers that a blob is damaged. Until it is replaced, a pull that needs it downloads it
// again. The damaged file stays until then: a record whose blob is missing is lost at the next
// start.
func (b *Blobs) Doubt(d digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.doubts[d] = true
}

// Doubted reports whether a blob was found damaged, and was not replaced since.
func (b *Blobs) Doubted(d digest.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.doubts[d]
}

func (b *Blobs) trust(d digest.Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.doubts, d)
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
