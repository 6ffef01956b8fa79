// Package imagetest provides a registry, layers and a table of refusals for the tests of
// imageservice and its packages.
package imagetest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is an in-memory registry: manifests by tag and digest, blobs by digest, for any
// repository. before may handle a request in its place.
type Registry struct {
	*httptest.Server
	before func(w http.ResponseWriter, r *http.Request) bool

	Mu        sync.Mutex
	Manifests map[string]Served // by tag or digest
	Blobs     map[digest.Digest][]byte
	requests  []string // method and path
	BlobBytes atomic.Int64
	NoRange   bool
}

type Served struct {
	MediaType string
	Body      []byte
}

func NewRegistry(t testing.TB) *Registry {
	s := &Registry{Manifests: map[string]Served{}, Blobs: map[digest.Digest][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *Registry) Host() string { return strings.TrimPrefix(s.URL, "http://") }

func (s *Registry) Ref(name string) string { return s.Host() + "/" + name }

func (s *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.Mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	before := s.before
	s.Mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	parts := strings.Split(r.URL.Path, "/")
	object, kind := parts[len(parts)-1], parts[len(parts)-2]
	s.Mu.Lock()
	m, isManifest := s.Manifests[object]
	b, isBlob := s.Blobs[digest.Digest(object)]
	s.Mu.Unlock()
	switch {
	case kind == "manifests" && isManifest:
		w.Header().Set("Content-Type", m.MediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.Body).String())
		w.Header().Set("Content-Length", strconv.Itoa(len(m.Body)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(m.Body) // a client that has left
		}
	case kind == "blobs" && isBlob:
		if s.NoRange {
			r.Header.Del("Range")
		}
		http.ServeContent(&countingWriter{w, &s.BlobBytes}, r, "", time.Time{}, bytes.NewReader(b))
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}`)
	}
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.ResponseWriter.Write(b)
}

// Intercept sets before.
func (s *Registry) Intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.before = f
}

func (s *Registry) Count(prefix string) (n int) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (s *Registry) putBlob(b []byte) digest.Digest {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	d := digest.FromBytes(b)
	s.Blobs[d] = b
	return d
}

// PutBlob adds a blob, and returns its descriptor with these annotations.
func (s *Registry) PutBlob(mediaType string, b []byte, annotations map[string]string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: s.putBlob(b), Size: int64(len(b)), Annotations: annotations}
}

func (s *Registry) PutManifest(tag, mediaType string, doc any) ocispec.Descriptor {
	body, ok := doc.([]byte)
	if !ok {
		body, _ = json.Marshal(doc)
	}
	s.Mu.Lock()
	defer s.Mu.Unlock()
	d := digest.FromBytes(body)
	s.Manifests[d.String()] = Served{mediaType, body}
	if tag != "" {
		s.Manifests[tag] = Served{mediaType, body}
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

// Layer is a layer to serve.
type Layer struct {
	Tar       []byte
	Blob      []byte
	MediaType string
	DiffID    digest.Digest // overrides the correct diff ID
}

func Plain(tarball []byte) Layer {
	return Layer{Tar: tarball, Blob: tarball, MediaType: ocispec.MediaTypeImageLayer}
}

func Gzip(tarball []byte) Layer {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(tarball) // into memory
	_ = z.Close()
	return Layer{Tar: tarball, Blob: b.Bytes(), MediaType: ocispec.MediaTypeImageLayerGzip}
}

func Zstd(tarball []byte) Layer {
	z, _ := zstd.NewWriter(nil)
	return Layer{Tar: tarball, Blob: z.EncodeAll(tarball, nil), MediaType: ocispec.MediaTypeImageLayerZstd}
}

// Build creates the manifest and the config of an image, and adds the image to the registry under
// tag. edit may change them first.
func (s *Registry) Build(
	tag string, layers []Layer, edit func(m *ocispec.Manifest, c *ocispec.Image),
) (id string, desc ocispec.Descriptor) {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	config.RootFS.Type = "layers"
	config.Config.Env = []string{"TAG=" + tag}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Layers = []ocispec.Descriptor{}
	for _, l := range layers {
		diff := l.DiffID
		if diff == "" {
			diff = digest.FromBytes(l.Tar)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: l.MediaType, Digest: s.putBlob(l.Blob),
			Size: int64(len(l.Blob))})
	}
	if edit != nil {
		edit(&m, &config)
	}
	raw, _ := json.Marshal(config)
	if m.Config.Digest == "" {
		m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: s.putBlob(raw), Size: int64(len(raw)),
			URLs: m.Config.URLs}
	}
	return m.Config.Digest.String(), s.PutManifest(tag, m.MediaType, m)
}
