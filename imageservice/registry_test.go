package imageservice

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
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

// registryServer is a small registry: manifests by tag and digest, blobs by digest, for any repository. before may take a request over.
type registryServer struct {
	*httptest.Server
	before func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	manifests map[string]served // by tag or digest
	blobs     map[digest.Digest][]byte
	requests  []string // method and path
	blobBytes atomic.Int64
	noRange   bool
}

type served struct {
	mediaType string
	body      []byte
}

func newRegistry(t testing.TB) *registryServer {
	s := &registryServer{manifests: map[string]served{}, blobs: map[digest.Digest][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *registryServer) host() string { return strings.TrimPrefix(s.URL, "http://") }

func (s *registryServer) ref(name string) string { return s.host() + "/" + name }

func (s *registryServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	before := s.before
	s.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	parts := strings.Split(r.URL.Path, "/")
	object, kind := parts[len(parts)-1], parts[len(parts)-2]
	s.mu.Lock()
	m, isManifest := s.manifests[object]
	b, isBlob := s.blobs[digest.Digest(object)]
	s.mu.Unlock()
	switch {
	case kind == "manifests" && isManifest:
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.body).String())
		w.Header().Set("Content-Length", strconv.Itoa(len(m.body)))
		if r.Method == http.MethodGet {
			w.Write(m.body)
		}
	case kind == "blobs" && isBlob:
		if s.noRange {
			r.Header.Del("Range")
		}
		http.ServeContent(&countingWriter{w, &s.blobBytes}, r, "", time.Time{}, bytes.NewReader(b))
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

// intercept sets before.
func (s *registryServer) intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

func (s *registryServer) count(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (s *registryServer) putBlob(b []byte) digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.FromBytes(b)
	s.blobs[d] = b
	return d
}

func (s *registryServer) putManifest(tag, mediaType string, doc any) ocispec.Descriptor {
	body, ok := doc.([]byte)
	if !ok {
		body, _ = json.Marshal(doc)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.FromBytes(body)
	s.manifests[d.String()] = served{mediaType, body}
	if tag != "" {
		s.manifests[tag] = served{mediaType, body}
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

// testLayer is a layer to serve.
type testLayer struct {
	tar       []byte
	blob      []byte
	mediaType string
	diffID    digest.Digest // when it should lie
}

func plainLayer(tarball []byte) testLayer {
	return testLayer{tar: tarball, blob: tarball, mediaType: ocispec.MediaTypeImageLayer}
}

func gzipLayer(tarball []byte) testLayer {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(tarball)
	z.Close()
	return testLayer{tar: tarball, blob: b.Bytes(), mediaType: ocispec.MediaTypeImageLayerGzip}
}

func zstdLayer(tarball []byte) testLayer {
	z, _ := zstd.NewWriter(nil)
	return testLayer{tar: tarball, blob: z.EncodeAll(tarball, nil), mediaType: ocispec.MediaTypeImageLayerZstd}
}

// build makes manifest and config of an image and puts everything into the registry under tag. edit may spoil things before.
func (s *registryServer) build(tag string, layers []testLayer, edit func(m *ocispec.Manifest, c *ocispec.Image)) (id string, desc ocispec.Descriptor) {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: goarch}}
	config.RootFS.Type = "layers"
	config.Config.Env = []string{"TAG=" + tag}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Layers = []ocispec.Descriptor{}
	for _, l := range layers {
		diff := l.diffID
		if diff == "" {
			diff = digest.FromBytes(l.tar)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: l.mediaType, Digest: s.putBlob(l.blob), Size: int64(len(l.blob))})
	}
	if edit != nil {
		edit(&m, &config)
	}
	raw, _ := json.Marshal(config)
	if m.Config.Digest == "" {
		m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: s.putBlob(raw), Size: int64(len(raw)), URLs: m.Config.URLs}
	}
	return m.Config.Digest.String(), s.putManifest(tag, m.MediaType, m)
}

// tarOf makes a tar of headers; a header's content is in Xattrs' stead the string after it.
func tarOf(t testing.TB, entries ...any) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(entries); i++ {
		h := entries[i].(tar.Header)
		body := ""
		if i+1 < len(entries) {
			if s, ok := entries[i+1].(string); ok {
				body = s
				i++
			}
		}
		h.Size = int64(len(body))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reg(name string) tar.Header { return tar.Header{Name: name} }
func dir(name string, mode int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}
}
func link(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}
func hard(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
}
