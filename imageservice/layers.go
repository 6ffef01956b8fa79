package imageservice

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
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// source is a layer's compressed bytes, perhaps still arriving.
type source struct {
	io.Reader
	size int64 // compressed bytes, for the ratio
}

// newLayer unpacks src into a directory of its own, verifies that its tar has digest diffID, applies the fixes, and returns the layer.
// Nothing of it is left on error.
func (c *Images) newLayer(ctx context.Context, src source, diffID digest.Digest, fixes []fix, it *item, prog *progress) (l *layer, err error) {
	dir, err := c.makeLayerDir()
	if err != nil {
		return nil, diskError(err)
	}
	defer func() {
		// The decoders read what a stranger wrote. A panic there is that image's failure.
		if p := recover(); p != nil {
			log.G(ctx).WithField("layer", diffID).Errorf("panic while unpacking: %v\n%s", p, debug.Stack())
			err = refuse(errdefs.ErrInvalidArgument, "layer %s made the unpacker panic", diffID)
		}
		if err != nil {
			if rerr := removeTree(c.layerDir(dir)); rerr != nil {
				log.G(ctx).WithError(rerr).WithField("layer", dir).Warn("half unpacked layer could not be deleted")
			}
		}
	}()
	root, err := unix.Open(filepath.Join(c.layerDir(dir), "fs"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	tarball := &counted{ctx: ctx, hash: sha256.New(), limits: c.cfg.Limits, compressed: src.size, item: it, prog: prog}
	implied, err := unpack(ctx, src, tarball, root, c.cfg.Limits.Entries)
	if err != nil {
		return nil, err
	}
	if got := digest.NewDigest(digest.SHA256, tarball.hash); got != diffID {
		return nil, refuse(errdefs.ErrDataLoss, "layer unpacks to %s, the image config says %s", got, diffID)
	}
	if err := applyFixes(root, fixes); err != nil {
		return nil, err
	}
	if err := writeImplied(c.layerDir(dir), implied); err != nil {
		return nil, diskError(err)
	}
	used, err := diskUsage(c.layerDir(dir))
	if err != nil {
		return nil, err
	}
	return &layer{DiffID: diffID, Fixes: fixesKey(fixes), Dir: dir, Bytes: used.Bytes, Inodes: used.Inodes, Opaque: isOpaque(root)}, nil
}

// makeLayerDir takes the next free number and makes layers/<n>/fs.
func (c *Images) makeLayerDir() (string, error) {
	for {
		c.mu.Lock()
		c.lastDir++
		dir := strconv.FormatUint(c.lastDir, 10)
		c.mu.Unlock()
		switch err := os.Mkdir(c.layerDir(dir), 0o700); {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return "", err
		default:
			return dir, os.Mkdir(filepath.Join(c.layerDir(dir), "fs"), 0o755)
		}
	}
}

// unpack decompresses src, extracts it below root and reads on to the end, so that tarball has hashed every byte.
func unpack(ctx context.Context, src source, tarball *counted, root int, maxEntries int64) (implied []string, err error) {
	plain, closer, err := decompress(src)
	if err != nil {
		return nil, err
	}
	defer closer()
	tarball.r = plain
	// A large buffer: every system call of the extractor evicts less of what the decoder had in cache.
	buffered := bufio.NewReaderSize(tarball, 256<<10)
	if implied, err = extract(ctx, buffered, root, maxEntries); err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, buffered)
	return implied, err
}

// decompress looks at the first bytes, not at the media type: the diff id decides in the end. The decoders are in process, so nothing
// of an image is ever executed (CVE-2014-9357).
func decompress(src source) (io.Reader, func(), error) {
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
		return refuse(errdefs.ErrResourceExhausted, "layer wants too much memory to decompress: %v", err)
	}
	return refuse(errdefs.ErrInvalidArgument, "layer does not decompress: %v", err)
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
	ctx        context.Context
	r          io.Reader
	hash       hash.Hash
	n          int64
	compressed int64
	limits     Limits
	item       *item
	prog       *progress
}

func (t *counted) Read(p []byte) (int, error) {
	if t.ctx.Err() != nil {
		return 0, context.Cause(t.ctx)
	}
	n, err := t.r.Read(p)
	t.hash.Write(p[:n])
	t.n += int64(n)
	t.prog.moved.Add(int64(n))
	t.item.done.Store(t.n)
	if t.n > t.limits.LayerBytes {
		return 0, refuse(errdefs.ErrResourceExhausted, "layer unpacks to more than %d bytes", t.limits.LayerBytes)
	}
	if t.n > t.limits.RatioFloor && t.n/t.limits.Ratio > t.compressed {
		return 0, refuse(errdefs.ErrResourceExhausted, "layer unpacks to more than %d times its %d bytes", t.limits.Ratio, t.compressed)
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

// readImplied returns the directories that layer dir made up; most layers have none.
func (c *Images) readImplied(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(c.layerDir(dir), "implied"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var implied []string
	if err := json.Unmarshal(b, &implied); err != nil {
		return nil, fmt.Errorf("layers/%s/implied: %w", dir, err)
	}
	return implied, nil
}

// anyLayer returns an unpacked layer of this diff id, with or without fixes.
func (c *Images) anyLayer(diffID digest.Digest) *layer {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.layers {
		if l.DiffID == diffID {
			return l
		}
	}
	return nil
}

func (c *Images) layerByKey(key string) *layer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.layers[key]
}
