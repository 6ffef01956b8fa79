package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/gunzip"
	"github.com/cribox/cribox/imageservice/manifest"
)

const (
	maxFiles = 1 << 16  // in one archive
	maxNames = 32 << 20 // bytes of their paths, which stay in memory
	maxHops  = 8        // links from one name to the next
)

// Archive is an open archive. Its methods may be called concurrently.
type Archive struct {
	file   *os.File
	files  map[string]section // by their paths
	links  map[string]string  // paths that are the same as another path
	names  int                // bytes of all these paths
	blobs  map[digest.Digest]section
	images []Image
}

// section is a part of the archive's file.
type section struct{ at, size int64 }

// Image is one image of an archive.
type Image struct {
	Names     []string // as the archive has them; none if it names it not at all, or by a tag alone
	Tag       string   // for an image that has a tag, but no name
	Root      digest.Digest
	mediaType string
	document  []byte // of Root
}

// Open reads an archive, which may be compressed with gzip or zstd, and writes at most most bytes
// to the folder. The caller closes it. Errors: ErrInvalidArgument for content that is no archive of
// images; ErrResourceExhausted for one that is too large, and for a full disk.
func Open(ctx context.Context, r io.Reader, folder string, most int64) (*Archive, error) {
	plain, err := decompressed(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	file, err := unnamed(folder)
	if err != nil {
		return nil, fault.Disk(err)
	}
	a := &Archive{file: file, files: map[string]section{}, links: map[string]string{}, blobs: map[digest.Digest]section{}}
	if err = spool(ctx, file, plain, most); err == nil {
		err = a.index(ctx)
	}
	if err == nil {
		err = a.read(ctx)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return a, nil
}

// Close frees the disk space.
func (a *Archive) Close() error { return a.file.Close() }

// Images returns the images in the order of the archive.
func (a *Archive) Images() []Image { return a.images }

// decompressed returns the reader of the tar.
func decompressed(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 256<<10)
	magic, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gunzip.NewReader(in)
		if err != nil {
			return nil, notAnArchive(err)
		}
		return io.NopCloser(z), nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, notAnArchive(err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(in), nil
}

func notAnArchive(err error) error {
	return fmt.Errorf("this is not an archive of images, as docker save writes it or in the OCI layout: %w: %w",
		err, errdefs.ErrInvalidArgument)
}

// unnamed returns a new file that is in no folder.
func unnamed(folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, "archive-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// spool copies the archive. Blocks of zeros become holes.
func spool(ctx context.Context, file *os.File, r io.Reader, most int64) error {
	buf, zeros := make([]byte, 256<<10), make([]byte, 256<<10)
	for at := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := fill(r, buf)
		if at+int64(n) > most {
			return fault.Refuse(errdefs.ErrResourceExhausted, "the archive unpacks to more than %d bytes (image_size_max)", most)
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := file.WriteAt(buf[:n], at); err != nil {
				return fmt.Errorf("write the archive: %w", fault.Disk(err))
			}
		}
		at += int64(n)
		switch {
		case err == io.EOF:
			return file.Truncate(at)
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("read the archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
}

// fill reads until b is full. Unlike io.ReadFull it returns every error unchanged.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = r.Read(b[n:])
		n += more
	}
	return n, err
}

// index finds the files of the archive.
func (a *Archive) index(ctx context.Context) error {
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for r := tar.NewReader(a.file); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return notAnArchive(err)
		}
		if len(a.files)+len(a.links) == maxFiles {
			return fault.Refuse(errdefs.ErrResourceExhausted, "the archive has more than %d files", maxFiles)
		}
		if err := a.add(h); err != nil {
			return err
		}
	}
}

func (a *Archive) add(h *tar.Header) error {
	name := path.Clean("/" + h.Name)
	if a.names += len(h.Name) + len(h.Linkname); a.names > maxNames {
		return fault.Refuse(errdefs.ErrResourceExhausted, "the archive has names of more than %d bytes", maxNames)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return fault.Refuse(errdefs.ErrNotImplemented, "%s is a sparse file", fault.Clip(h.Name))
			}
		}
		at, err := a.file.Seek(0, io.SeekCurrent) // tar reads nothing ahead
		if err != nil {
			return err
		}
		a.files[name] = section{at, h.Size}
	case tar.TypeLink:
		a.links[name] = path.Clean("/" + h.Linkname)
	case tar.TypeSymlink: // older versions of docker save have them
		a.links[name] = path.Join(path.Dir(name), h.Linkname)
	case tar.TypeGNUSparse:
		return fault.Refuse(errdefs.ErrNotImplemented, "%s is a sparse file", fault.Clip(h.Name))
	}
	return nil
}

// find returns the file with this path.
func (a *Archive) find(name string) (section, bool) {
	name = path.Clean("/" + name)
	for range maxHops {
		if s, ok := a.files[name]; ok {
			return s, true
		}
		next, ok := a.links[name]
		if !ok {
			break
		}
		name = next
	}
	return section{}, false
}

// reader reads a part of the archive.
func (a *Archive) reader(s section) *io.SectionReader {
	return io.NewSectionReader(a.file, s.at, s.size)
}

// document returns a small file.
func (a *Archive) document(name string) ([]byte, error) {
	s, ok := a.find(name)
	switch {
	case !ok:
		return nil, notAnArchive(fmt.Errorf("%s: %w", fault.Clip(name), errNoFile))
	case s.size > manifest.MaxBytes:
		return nil, fault.Refuse(errdefs.ErrResourceExhausted, "%s has more than %d bytes",
			fault.Clip(name), manifest.MaxBytes)
	}
	b := make([]byte, s.size)
	_, err := io.ReadFull(a.reader(s), b)
	return b, err
}

var errNoFile = errors.New("the archive has no such file")
