package archive

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/manifest"
)

// Folder is a folder with blobs below ALGORITHM/HEX, as that of an OCI layout and that of containerd.
type Folder string

// Transport answers the requests of a pull of one image with the blobs of the folder. Whatever tag is
// asked for is the image with this manifest or index. ErrNotFound if the folder does not have it, and
// ErrInvalidArgument for what is no digest.
func (f Folder) Transport(root digest.Digest, mediaType string) (http.RoundTripper, error) {
	if err := root.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", fault.Clip(string(root)), err, errdefs.ErrInvalidArgument)
	}
	file, size, err := f.open(root)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > manifest.MaxBytes {
		return nil, fault.Refuse(errdefs.ErrResourceExhausted, "manifest %s has more than %d bytes", root, manifest.MaxBytes)
	}
	raw, err := io.ReadAll(io.LimitReader(file, manifest.MaxBytes))
	if err != nil {
		return nil, err
	}
	if got := root.Algorithm().FromBytes(raw); got != root { // nobody else compares it, for a tag
		return nil, fmt.Errorf("manifest %s: its content is %s: %w", root, got, errdefs.ErrDataLoss)
	}
	return blobs{f, Image{Root: root, mediaType: mediaType, document: raw}}, nil
}

// open opens a blob, which has to be a file.
func (f Folder) open(d digest.Digest) (*os.File, int64, error) {
	at := filepath.Join(string(f), string(d.Algorithm()), d.Encoded())
	file, err := os.OpenFile(at, os.O_RDONLY|syscall.O_NONBLOCK, 0) // which waits for nobody, should it be a FIFO
	if err != nil {
		if os.IsNotExist(err) {
			err = fmt.Errorf("%s is not in %s: %w", d, string(f), errdefs.ErrNotFound)
		}
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: file.Name(), Err: fs.ErrInvalid}
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

type blobs struct {
	folder Folder
	image  Image
}

// RoundTrip implements http.RoundTripper. It returns no error: what cannot be read is not there.
func (b blobs) RoundTrip(req *http.Request) (*http.Response, error) {
	dir, object := path.Split(req.URL.Path)
	header := http.Header{}
	d := digest.Digest(object)
	if path.Base(dir) == "manifests" && (!strings.Contains(object, ":") || d == b.image.Root) {
		header.Set("Content-Type", b.image.mediaType)
		header.Set("Docker-Content-Digest", b.image.Root.String())
		return ranged(req, header, sectionOf(b.image.document)), nil
	}
	if d.Validate() == nil {
		if file, size, err := b.folder.open(d); err == nil {
			resp := ranged(req, header, io.NewSectionReader(file, 0, size))
			resp.Body = closing{resp.Body, file}
			return resp, nil
		}
	}
	return reply(req, http.StatusNotFound, header, 0, bytes.NewReader(nil)), nil
}

// closing is a body that closes its file.
type closing struct {
	io.Reader
	file io.Closer
}

func (c closing) Close() error { return c.file.Close() }
