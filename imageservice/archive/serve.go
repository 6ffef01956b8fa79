package archive

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Transport answers the requests of a pull of one image, as the distribution spec says, with what
// is in the archive. Whatever tag is asked for is the image.
func (a *Archive) Transport(i Image) http.RoundTripper { return repository{a, i} }

type repository struct {
	archive *Archive
	image   Image
}

// RoundTrip implements http.RoundTripper. It returns no error.
func (r repository) RoundTrip(req *http.Request) (*http.Response, error) {
	dir, object := path.Split(req.URL.Path)
	var content *io.SectionReader
	header := http.Header{}
	switch path.Base(dir) {
	case "manifests":
		d := digest.Digest(object)
		if !strings.Contains(object, ":") || d == r.image.Root {
			d, content = r.image.Root, sectionOf(r.image.document)
			header.Set("Content-Type", r.image.mediaType)
			header.Set("Docker-Content-Digest", d.String())
		} else if s, ok := r.archive.blobs[d]; ok {
			content = r.archive.reader(s)
		}
	case "blobs":
		if s, ok := r.archive.blobs[digest.Digest(object)]; ok {
			content = r.archive.reader(s)
		}
	}
	if content == nil {
		return reply(req, http.StatusNotFound, header, 0, bytes.NewReader(nil)), nil
	}
	return ranged(req, header, content), nil
}

// ranged answers a request for all of the content, or for its end.
func ranged(req *http.Request, header http.Header, content *io.SectionReader) *http.Response {
	size := content.Size()
	start, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes=")
	if !ok {
		return reply(req, http.StatusOK, header, size, content)
	}
	at, err := strconv.ParseInt(strings.TrimSuffix(start, "-"), 10, 64)
	if err != nil || at < 0 || at >= size {
		return reply(req, http.StatusRequestedRangeNotSatisfiable, header, 0, bytes.NewReader(nil))
	}
	header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, size-1, size))
	return reply(req, http.StatusPartialContent, header, size-at, io.NewSectionReader(content, at, size-at))
}

func reply(req *http.Request, code int, header http.Header, size int64, content io.Reader) *http.Response {
	if req.Method == http.MethodHead {
		content = bytes.NewReader(nil)
	}
	return &http.Response{StatusCode: code, Status: fmt.Sprintf("%d %s", code, http.StatusText(code)), Proto: "HTTP/1.1",
		ProtoMajor: 1, ProtoMinor: 1,
		Header: header, ContentLength: size, Body: io.NopCloser(content), Request: req}
}

func sectionOf(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}
