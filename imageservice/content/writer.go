package content

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/writeback"
)

// Writer downloads one blob: it appends to a partial file in ingest/, hashes what it has, and moves
// the file to blobs/ once it is whole. Nothing is synced here. A pull syncs the file system once,
// before it records the image, and a blob that no record lists is hashed before it is used.
type Writer struct {
	blobs  *Blobs
	folder string
	file   *os.File // nil after Commit or Close
	size   int64    // bytes in the file
	hash   hash.Hash
	disk   writeback.File
}

// OpenWriter starts the partial download ref, or resumes it: it hashes the bytes that are already
// there. The caller makes sure that there is one writer of a ref at a time.
func (b *Blobs) OpenWriter(ref string) (w *Writer, err error) {
	w = &Writer{blobs: b, folder: filepath.Dir(b.IngestFile(ref)), hash: sha256.New()}
	if err := w.name(ref); err != nil {
		return nil, err
	}
	if w.file, err = os.OpenFile(b.IngestFile(ref), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600); err != nil {
		return nil, err
	}
	ReadFromDisk(w.file)
	w.disk.FD = int(w.file.Fd())
	if w.size, err = io.Copy(w.hash, w.file); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// ReadFromDisk makes the kernel forget what it has cached of a file and written to disk: after a
// failed write, the cache may have bytes that the disk has not.
func ReadFromDisk(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// name makes the folder of the partial download, with its ref in a file. DropBroken deletes a
// folder that has been left without it.
func (w *Writer) name(ref string) error {
	if err := os.MkdirAll(w.folder, 0o755); err != nil {
		return err
	}
	file := filepath.Join(w.folder, "ref")
	if old, err := ReadCapped(file, maxRef); err == nil && string(old) == ref {
		return nil
	}
	return os.WriteFile(file, []byte(ref), 0o600)
}

// Size returns the number of bytes written, those of earlier writers included.
func (w *Writer) Size() int64 { return w.size }

// Digest returns the digest of all bytes written.
func (w *Writer) Digest() digest.Digest { return digest.NewDigest(digest.SHA256, w.hash) }

func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	w.disk.Grown(w.size)
	return n, err
}

// Restart discards all bytes.
func (w *Writer) Restart() error {
	w.size, w.disk = 0, writeback.File{FD: w.disk.FD}
	w.hash.Reset()
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return w.file.Truncate(0)
}

// Commit moves the file to blobs/ and closes the writer. It returns ErrFailedPrecondition if the
// bytes are not those of the descriptor. If another download has put the blob there meanwhile, that
// one stays.
func (w *Writer) Commit(desc ocispec.Descriptor) error {
	if w.file == nil || w.size != desc.Size || w.Digest() != desc.Digest {
		return fmt.Errorf("commit %d bytes with digest %s as blob %s of %d bytes: %w",
			w.size, w.Digest(), desc.Digest, desc.Size, errdefs.ErrFailedPrecondition)
	}
	if err := w.blobs.publish(w.file, desc.Digest); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.RemoveAll(w.folder)
}

// Close closes the partial file, which a later writer can resume. It can be called more than once.
func (w *Writer) Close() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// WriteDocument writes a verified document. It replaces a blob under this digest that does not
// verify.
func (b *Blobs) WriteDocument(raw []byte, desc ocispec.Descriptor) error {
	b.Doubt(desc.Digest)
	if err := b.writeDocument(raw, desc.Digest); err != nil {
		return fmt.Errorf("write blob %s: %w", desc.Digest, fault.Disk(err))
	}
	return nil
}

func (b *Blobs) writeDocument(raw []byte, d digest.Digest) error {
	// A file instead of a folder in ingest/ is never resumed: DropBroken deletes what a kill leaves.
	f, err := os.CreateTemp(b.ingest(), "document-")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(raw); err == nil {
		err = b.publish(f, d)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // DropBroken finds it otherwise
	}
	return err
}

// publish moves a complete file to blobs/, unless the blob is there and undamaged. The file gets the
// time of now, because Debris deletes blobs of an earlier time that no image needs.
func (b *Blobs) publish(f *os.File, d digest.Digest) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	now := time.Now()
	if err := os.Chtimes(f.Name(), now, now); err != nil {
		return err
	}
	if b.Doubted(d) {
		if err := os.Rename(f.Name(), b.Path(d)); err != nil {
			return err
		}
		b.trust(d)
		return nil
	}
	err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, b.Path(d), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // this file system cannot: the same bytes replace each other
		err = os.Rename(f.Name(), b.Path(d))
	}
	if errors.Is(err, unix.EEXIST) {
		return os.Remove(f.Name())
	}
	return err
}
