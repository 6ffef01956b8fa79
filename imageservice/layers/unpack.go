package layers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/gunzip"
	"github.com/cribox/cribox/imageservice/overlay"
	"github.com/cribox/cribox/imageservice/progress"
	"github.com/cribox/cribox/internal/tree"
)

// Source is the compressed bytes of a layer, possibly while they are being downloaded.
type Source struct {
	io.Reader
	Size    int64        // total compressed bytes, for Limits.Ratio
	Arrived func() int64 // number of bytes that have arrived; nil if all have
}

// budget is the limit for all layers of one image. The layer that exceeds it is refused during
// unpacking.
type budget struct {
	used atomic.Int64
	most int64
}

// meter counts what one layer uses, against the layer's limits and the image's budget.
type meter struct {
	src    Source
	limits Limits
	image  *budget
	n      int64 // bytes
	real   int64 // bytes that use disk space
	look   int64 // value of real at which to check the disk next
	spent  int64 // share of the budget
}

// ErrAhead means that the bytes downloaded so far have already unpacked to so much that their
// announced total size must not be relied on.
var ErrAhead = errors.New("unpacking is far ahead of the download")

// add counts n uncompressed bytes.
func (m *meter) add(n int64) error {
	m.n += n
	switch {
	case m.n > m.limits.LayerBytes:
		return fault.Refuse(errdefs.ErrResourceExhausted, "layer unpacks to more than %d bytes (layer_size_max)",
			m.limits.LayerBytes)
	case m.src.Arrived != nil && m.beyond(m.src.Arrived()):
		return ErrAhead
	}
	return m.spend(n)
}

// beyond reports whether the compression ratio is higher than that of practically any useful layer.
func (m *meter) beyond(packed int64) bool {
	return m.n > m.limits.RatioFloor && m.n/m.limits.Ratio > packed
}

// lookEvery is the number of bytes written between two checks of the free disk space.
const lookEvery = 4 << 20

// wrote counts bytes that will be written to the file fd. A layer with an extreme compression ratio
// may use only a part of the disk, because it costs an attacker nothing to make it large.
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
		return fault.Refuse(errdefs.ErrResourceExhausted,
			"layer unpacks to more than %d times its %d bytes, and less than %d %% of the disk is free (disk_reserve)",
			m.limits.Ratio, m.src.Size, m.limits.Reserve)
	}
	return nil
}

// entry counts one tar entry, because even the smallest file uses a disk block.
func (m *meter) entry() error { return m.spend(4096) }

func (m *meter) spend(n int64) error {
	m.spent += n
	if m.image.used.Add(n) > m.image.most {
		return fault.Refuse(errdefs.ErrResourceExhausted, "image unpacks to more than %d bytes (image_size_max)",
			m.image.most)
	}
	return nil
}

// giveBack returns the layer's share to the budget.
func (m *meter) giveBack() { m.image.used.Add(-m.spent) }

// Unpacker unpacks the layers of one image, within their common limits.
type Unpacker struct {
	store  *Store
	limits Limits
	prog   *progress.Clock

	looks         int    // lookups of implied directories
	read, written budget // bytes of tars and of written files; holes are not in tars
}

func NewUnpacker(store *Store, limits Limits, prog *progress.Clock) *Unpacker {
	u := &Unpacker{store: store, limits: limits, prog: prog}
	u.read.most, u.written.most = limits.ImageBytes, limits.ImageBytes
	return u
}

// Unpack unpacks src into a new directory, verifies that its tar has the digest diffID, applies the
// fixes, and returns the layer. After an error it deletes everything that it has written.
func (u *Unpacker) Unpack(
	ctx context.Context, src Source, diffID digest.Digest, fixes []Fix, it *progress.Item,
) (l *Layer, err error) {
	dir, err := u.store.make()
	if err != nil {
		return nil, fault.Disk(err)
	}
	read := &meter{src: src, limits: u.limits, image: &u.read}
	written := &meter{src: src, limits: u.limits, image: &u.written}
	defer func() {
		// The tar reader processes untrusted input. A panic in it fails only this image.
		if r := recover(); r != nil {
			err = panicked(ctx, diffID)(r)
		}
		if err != nil {
			read.giveBack()
			written.giveBack()
			if rerr := u.store.Remove(dir); rerr != nil {
				log.G(ctx).WithError(rerr).WithField("layer", dir).Warn("cannot delete a partly unpacked layer")
			}
		}
	}()
	root, err := unix.Open(u.store.Files(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	var implied []string
	got, err := readTar(ctx, src, diffID, &counted{ctx: ctx, meter: read, item: it, prog: u.prog},
		func(tarball io.Reader) error {
			implied, err = extract(ctx, tarball, root, caps{u.limits.Entries, maxNames, written})
			return err
		})
	if err != nil {
		return nil, err
	}
	if got != diffID {
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
	return &Layer{DiffID: diffID, Fixes: FixesKey(fixes), Dir: dir, Bytes: bytes, Inodes: inodes,
		Opaque: overlay.IsOpaque(root)}, nil
}

// panicked returns a function that logs a panic of a decoder and makes an error of it.
func panicked(ctx context.Context, layer digest.Digest) func(reason any) error {
	return func(reason any) error {
		log.G(ctx).WithField("layer", layer).Errorf("panic while unpacking: %v\n%s", reason, debug.Stack())
		return fault.Refuse(errdefs.ErrInvalidArgument, "layer %s made the unpacker panic", layer)
	}
}

// Hash returns the digest of a blob's uncompressed content, without writing any of it.
func (u *Unpacker) Hash(ctx context.Context, src Source, blob digest.Digest, it *progress.Item) (digest.Digest, error) {
	read := &counted{ctx: ctx, meter: &meter{src: src, limits: u.limits, image: &u.read}, item: it, prog: u.prog}
	d, err := readTar(ctx, src, blob, read, func(io.Reader) error { return nil })
	if err != nil {
		return "", fmt.Errorf("read blob %s: %w", blob, err)
	}
	return d, nil
}

// readTar decompresses src, calls use with the result, and reads on to the end. It returns the
// digest of every byte.
func readTar(
	ctx context.Context, src Source, name digest.Digest, tarball *counted, use func(io.Reader) error,
) (digest.Digest, error) {
	plain, closer, err := decompress(src)
	if err != nil {
		return "", err
	}
	defer closer()
	h := sha256.New()
	ahead := startStages(plain, h, panicked(ctx, name))
	defer ahead.end()
	tarball.r = ahead
	buffered := bufio.NewReaderSize(tarball, 32<<10)
	if err := use(buffered); err != nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// decompress detects the compression from the first bytes and ignores the media type, because the
// diff ID is checked in the end. The decoders run in process, so that nothing of an image is ever
// executed (CVE-2014-9357).
func decompress(src Source) (io.Reader, func(), error) {
	tracked := &tracked{r: src}
	in := bufio.NewReaderSize(tracked, 128<<10)
	magic, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gunzip.NewReader(in)
		if err != nil {
			return nil, nil, tracked.blame(err)
		}
		return decoder{z, tracked}, func() {}, nil
	case len(magic) == 4 && (bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) || magic[0]&0xf0 == 0x50 &&
		bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})):
		// With concurrency 1 the decoder starts no goroutines that could hang or leak after an
		// error.
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow),
			zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, tracked.blame(err)
		}
		return decoder{z, tracked}, z.Close, nil
	}
	return in, func() {}, nil
}

// tracked records the error of its source, to distinguish a corrupt stream from a failing source.
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
		return fault.Refuse(errdefs.ErrResourceExhausted, "layer needs too much memory to decompress: %v", err)
	}
	return fault.Refuse(errdefs.ErrInvalidArgument, "cannot decompress the layer: %v", err)
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

// counted reads the uncompressed tar, counts it, and enforces the limits.
type counted struct {
	ctx   context.Context
	r     io.Reader
	meter *meter
	item  *progress.Item
	prog  *progress.Clock
}

func (t *counted) Read(p []byte) (int, error) {
	if t.ctx.Err() != nil {
		return 0, context.Cause(t.ctx)
	}
	n, err := t.r.Read(p)
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
