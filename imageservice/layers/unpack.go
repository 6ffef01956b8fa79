package layers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/overlay"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/internal/tree"
)

// Source is a layer's compressed bytes, perhaps still arriving.
type Source struct {
	io.Reader
	Size    int64        // compressed bytes, for the ratio
	Arrived func() int64 // how many of them there are; nil: all
}

// budget is what the layers of one image take together. The one that goes beyond it is refused
// while it is being unpacked.
type budget struct {
	used atomic.Int64
	most int64
}

// meter counts what one layer takes, against the limits of a layer and the budget of its image.
type meter struct {
	src    Source
	limits Limits
	image  *budget
	n      int64 // bytes
	real   int64 // of them, those that take space on the disk
	look   int64 // the disk is looked at when real has come so far
	spent  int64 // of the budget
}

// errAhead: so much comes out of the bytes that have arrived that the size somebody promised for
// all of them is not to be relied on.
var ErrAhead = errors.New("unpacking is far ahead of the download")

// add counts bytes.
func (m *meter) add(n int64) error {
	m.n += n
	switch {
	case m.n > m.limits.LayerBytes:
		return fault.Refuse(errdefs.ErrResourceExhausted, "layer unpacks to more than %d bytes (layer_size_max)", m.limits.LayerBytes)
	case m.src.Arrived != nil && m.beyond(m.src.Arrived()):
		return ErrAhead
	}
	return m.spend(n)
}

// beyond says whether so much comes out of so many bytes that hardly anybody would pack it for use.
func (m *meter) beyond(packed int64) bool {
	return m.n > m.limits.RatioFloor && m.n/m.limits.Ratio > packed
}

// lookEvery is how many bytes are written between two looks at the disk.
const lookEvery = 4 << 20

// wrote counts bytes that are about to be written to the file fd. A layer that is small when packed
// may fill a part of the disk only: that it is large has cost nobody anything. The limits of what
// is wrong on purpose are those of add.
func (m *meter) wrote(n int64, fd int) error {
	m.real += n
	if m.real < m.look || !m.beyond(m.src.Size) {
		return nil
	}
	m.look = m.real + lookEvery
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Bavail*100 < fs.Blocks*uint64(m.limits.Reserve) {
		return fault.Refuse(errdefs.ErrResourceExhausted, "layer unpacks to more than %d times its %d bytes, and less than %d %% of the disk are free (disk_reserve)",
			m.limits.Ratio, m.src.Size, m.limits.Reserve)
	}
	return nil
}

// entry counts an entry: the smallest file takes a block.
func (m *meter) entry() error { return m.spend(4096) }

func (m *meter) spend(n int64) error {
	m.spent += n
	if m.image.used.Add(n) > m.image.most {
		return fault.Refuse(errdefs.ErrResourceExhausted, "image unpacks to more than %d bytes (image_size_max)", m.image.most)
	}
	return nil
}

// giveBack makes the layer's bytes as if they had never been.
func (m *meter) giveBack() { m.image.used.Add(-m.spent) }

// Unpacker unpacks the layers of one image, within the limits that they have together.
type Unpacker struct {
	store  *Store
	limits Limits
	prog   *progress.Clock

	looks         int    // into layers, for directories that were made up
	read, written budget // bytes of tars, and of files, whose holes are in no tar
}

func NewUnpacker(store *Store, limits Limits, prog *progress.Clock) *Unpacker {
	u := &Unpacker{store: store, limits: limits, prog: prog}
	u.read.most, u.written.most = limits.ImageBytes, limits.ImageBytes
	return u
}

// Unpack unpacks src into a directory of its own, verifies that its tar has digest diffID, applies
// the fixes, and returns the layer. Nothing of it is left on error.
func (u *Unpacker) Unpack(ctx context.Context, src Source, diffID digest.Digest, fixes []Fix, it *progress.Item) (l *Layer, err error) {
	dir, err := u.store.make()
	if err != nil {
		return nil, fault.Disk(err)
	}
	read := &meter{src: src, limits: u.limits, image: &u.read}
	written := &meter{src: src, limits: u.limits, image: &u.written}
	defer func() {
		// The decoders read what a stranger wrote. A panic there is that image's failure.
		if r := recover(); r != nil {
			log.G(ctx).WithField("layer", diffID).Errorf("panic while unpacking: %v\n%s", r, debug.Stack())
			err = fault.Refuse(errdefs.ErrInvalidArgument, "layer %s made the unpacker panic", diffID)
		}
		if err != nil {
			read.giveBack()
			written.giveBack()
			if rerr := u.store.Remove(dir); rerr != nil {
				log.G(ctx).WithError(rerr).WithField("layer", dir).Warn("half unpacked layer could not be deleted")
			}
		}
	}()
	root, err := unix.Open(u.store.Files(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	tarball := &counted{ctx: ctx, hash: sha256.New(), meter: read, item: it, prog: u.prog}
	implied, err := unpackTar(ctx, src, tarball, root, caps{u.limits.Entries, maxNames, written})
	if err != nil {
		return nil, err
	}
	if got := digest.NewDigest(digest.SHA256, tarball.hash); got != diffID {
		return nil, fault.Refuse(errdefs.ErrDataLoss, "layer unpacks to %s, the image config says %s", got, diffID)
	}
	if err := applyFixes(root, fixes); err != nil {
		return nil, err
	}
	if err := writeImplied(u.store.Dir(dir), implied); err != nil {
		return nil, fault.Disk(err)
	}
	bytes, inodes, err := tree.Usage(u.store.Dir(dir))
	if err != nil {
		return nil, err
	}
	return &Layer{DiffID: diffID, Fixes: FixesKey(fixes), Dir: dir, Bytes: bytes, Inodes: inodes, Opaque: overlay.IsOpaque(root)}, nil
}

// Hash returns the digest of what a blob unpacks to, without writing any of it.
func (u *Unpacker) Hash(ctx context.Context, src Source, blob digest.Digest, it *progress.Item) (d digest.Digest, err error) {
	defer func() {
		if r := recover(); r != nil { // see unpackLayer
			log.G(ctx).WithField("layer", blob).Errorf("panic while unpacking: %v\n%s", r, debug.Stack())
			err = fault.Refuse(errdefs.ErrInvalidArgument, "layer %s made the unpacker panic", blob)
		}
	}()
	plain, closer, err := decompress(src)
	if err != nil {
		return "", err
	}
	defer closer()
	read := &meter{src: src, limits: u.limits, image: &u.read}
	tarball := &counted{ctx: ctx, r: plain, hash: sha256.New(), meter: read, item: it, prog: u.prog}
	if _, err := io.Copy(io.Discard, bufio.NewReaderSize(tarball, 256<<10)); err != nil {
		return "", fmt.Errorf("read blob %s: %w", blob, err)
	}
	return digest.NewDigest(digest.SHA256, tarball.hash), nil
}

// unpackTar decompresses src, extracts it below root and reads on to the end, so that tarball has
// hashed every byte.
func unpackTar(ctx context.Context, src Source, tarball *counted, root int, most caps) (implied []string, err error) {
	plain, closer, err := decompress(src)
	if err != nil {
		return nil, err
	}
	defer closer()
	tarball.r = plain
	// A large buffer: every system call of the extractor evicts less of what the decoder had in
	// cache.
	buffered := bufio.NewReaderSize(tarball, 256<<10)
	if implied, err = extract(ctx, buffered, root, most); err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, buffered)
	return implied, err
}

// decompress looks at the first bytes, not at the media type: the diff id decides in the end. The
// decoders are in process, so nothing of an image is ever executed (CVE-2014-9357).
func decompress(src Source) (io.Reader, func(), error) {
	tracked := &tracked{r: src}
	in := bufio.NewReaderSize(tracked, 128<<10)
	magic, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, tracked.blame(err)
		}
		return decoder{z, tracked}, func() { z.Close() }, nil
	case len(magic) == 4 && (bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})):
		// Concurrency 1 decodes in our goroutine: nothing to hang or to leak on an error.
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, tracked.blame(err)
		}
		return decoder{z, tracked}, z.Close, nil
	}
	return in, func() {}, nil
}

// tracked remembers how its source failed, to tell a bad stream from a source that broke.
type tracked struct {
	r   io.Reader
	err error
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && err != io.EOF {
		t.err = err
	}
	return n, err
}

func (t *tracked) blame(err error) error {
	switch {
	case t.err != nil:
		return t.err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fault.Refuse(errdefs.ErrResourceExhausted, "layer wants too much memory to decompress: %v", err)
	}
	return fault.Refuse(errdefs.ErrInvalidArgument, "layer does not decompress: %v", err)
}

type decoder struct {
	io.Reader
	src *tracked
}

func (d decoder) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = d.src.blame(err)
	}
	return n, err
}

// counted is the uncompressed tar on its way to the extractor: hashed, counted, capped.
type counted struct {
	ctx   context.Context
	r     io.Reader
	hash  hash.Hash
	meter *meter
	item  *progress.Item
	prog  *progress.Clock
}

func (t *counted) Read(p []byte) (int, error) {
	if t.ctx.Err() != nil {
		return 0, context.Cause(t.ctx)
	}
	n, err := t.r.Read(p)
	t.hash.Write(p[:n])
	t.prog.Moved.Add(int64(n))
	t.item.Done.Store(t.meter.n + int64(n))
	if over := t.meter.add(int64(n)); over != nil {
		return 0, over
	}
	return n, err
}

func writeImplied(dir string, implied []string) error {
	if len(implied) == 0 {
		return nil
	}
	slices.Sort(implied)
	b, err := json.Marshal(implied)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "implied"), b, 0o600)
}
