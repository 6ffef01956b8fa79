package imageservice

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/registry"
)

// cut responds with a blob from offset on, and closes the connection after n bytes; with reset, by
// a TCP reset.
func cut(w http.ResponseWriter, b []byte, offset, n int64, reset bool) {
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	if offset > 0 {
		fmt.Fprintf(buf, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n", offset, len(b)-1, len(b))
	} else {
		fmt.Fprint(buf, "HTTP/1.1 200 OK\r\n")
	}
	fmt.Fprintf(buf, "Content-Length: %d\r\n\r\n", int64(len(b))-offset)
	buf.Write(b[offset:min(offset+n, int64(len(b)))])
	buf.Flush()
	if reset {
		conn.(*net.TCPConn).SetLinger(0)
	}
	conn.Close()
}

func rangeOf(r *http.Request) (offset int64) {
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &offset)
	return offset
}

func TestResume(t *testing.T) {
	for _, c := range []struct {
		name    string
		reset   bool
		noRange bool
	}{{name: "truncated"}, {name: "reset", reset: true}, {name: "no ranges", noRange: true}} {
		t.Run(c.name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			r.NoRange = c.noRange
			l := imagetest.Plain(imagetest.Noise(t, 1<<20))
			id, _ := r.Build("1", []imagetest.Layer{l}, nil)
			var cuts atomic.Int32
			var sent atomic.Int64
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				if !imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
					return false
				}
				n := cuts.Add(1)
				if n > 3 {
					return false
				}
				from := rangeOf(q)
				if c.noRange {
					from = 0
				}
				sent.Add(100_000)
				cut(w, l.Blob, from, 100_000, c.reset)
				return true
			})
			images := newImages(t, nil)
			images.mustPull(t, r.Ref("app:1"))
			at := mounted(t, images, id)
			if info, err := os.Stat(at("noise")); err != nil || info.Size() != 1<<20 {
				t.Error(info, err)
			}
			if extra := sent.Load() + r.BlobBytes.Load() - int64(len(l.Blob)); !c.noRange && !c.reset && extra > 4096 {
				t.Errorf("%d bytes fetched twice", extra)
			}
		})
	}
}

func TestWrongBytes(t *testing.T) {
	type spoil func(l []byte, w http.ResponseWriter, q *http.Request, n int32) bool
	flip := func(b []byte) []byte { c := bytes.Clone(b); c[len(c)/2] ^= 1; return c }
	for name, c := range map[string]struct {
		spoil spoil
		good  bool
	}{
		"wrong digest": {spoil: func(l []byte, w http.ResponseWriter, q *http.Request, n int32) bool { w.Write(flip(l)); return true }},
		"short": {spoil: func(l []byte, w http.ResponseWriter, q *http.Request, n int32) bool {
			w.Write(l[:len(l)-1])
			return true
		}},
		"long": {spoil: func(l []byte, w http.ResponseWriter, q *http.Request, n int32) bool {
			w.Write(append(bytes.Clone(l), 0))
			return true
		}},
		"long, chunked": {spoil: func(l []byte, w http.ResponseWriter, q *http.Request, n int32) bool {
			w.(http.Flusher).Flush()
			w.Write(l)
			for i := range 100 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return true
				}
				if i == 50 {
					panic("it reads for ever") // the log of the test shows it, and the response breaks
				}
			}
			return true
		}},
		"different bytes on resume": {good: true, spoil: func(l []byte, w http.ResponseWriter, q *http.Request, n int32) bool {
			switch n {
			case 1:
				cut(w, flip(l), 0, int64(len(l))*3/4, false)
				return true
			default:
				return false
			}
		}},
		"wrong range": {good: true, spoil: func(l []byte, w http.ResponseWriter, q *http.Request, n int32) bool {
			if n == 1 {
				cut(w, l, 0, 1000, false)
				return true
			}
			if rangeOf(q) > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(l)-1, len(l)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(l)
				return true
			}
			return false
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			l := imagetest.Gzip(imagetest.Noise(t, 300_000))
			r.Build("1", []imagetest.Layer{l}, nil)
			var n atomic.Int32
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				return imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) && c.spoil(l.Blob, w, q, n.Add(1))
			})
			images := newImages(t, nil)
			_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
			if c.good {
				imagetest.Must(t, err)
				return
			}
			if name == "short" { // may be a broken connection, so the bytes are kept
				if !strings.HasPrefix(fmt.Sprint(err), "RegistryUnavailable: ") || len(images.List()) > 0 {
					t.Error(err)
				}
				return
			}
			if !errdefs.IsDataLoss(err) {
				t.Error(err)
			}
			images.wantNothing(t)
		})
	}
}

// wantNothing checks that no image, blob, layer or partial download is left.
func (c *Images) wantNothing(t testing.TB) {
	t.Helper()
	if l := c.List(); len(l) != 0 {
		t.Errorf("images %v", l)
	}
	for _, pattern := range []string{"content/blobs/sha256/*", "content/ingest/*", "layers/[0-9]*", "images/*"} {
		if left, _ := filepath.Glob(filepath.Join(c.cfg.Root, pattern)); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestWrongDocuments(t *testing.T) {
	for _, name := range []string{"root by tag", "root by digest", "manifest", "config"} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			id, m := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
			root := r.PutManifest("1", ocispec.MediaTypeImageIndex, index(platform(m, "linux", runtime.GOARCH, "")))
			ref, spoilt := r.Ref("app:1"), ""
			switch name {
			case "root by tag":
				spoilt = "1"
			case "root by digest":
				ref, spoilt = r.Ref("app@"+root.Digest.String()), root.Digest.String()
			case "manifest":
				spoilt = m.Digest.String()
			case "config":
				spoilt = id
			}
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				if !strings.HasSuffix(q.URL.Path, "/"+spoilt) {
					return false
				}
				r.Mu.Lock()
				defer r.Mu.Unlock()
				b, ok := r.Blobs[digest.Digest(spoilt)]
				if !ok {
					b = r.Manifests[spoilt].Body
					w.Header().Set("Content-Type", r.Manifests[spoilt].MediaType)
					w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
				}
				w.Write(append(bytes.TrimSuffix(bytes.Clone(b), []byte("}")), " }"...))
				return true
			})
			images := newImages(t, nil)
			if _, err := images.Pull(t.Context(), ref, nil); !errdefs.IsDataLoss(err) {
				t.Error(err)
			}
			images.wantNothing(t)
		})
	}
}

func TestWrongSizes(t *testing.T) {
	for name, edit := range map[string]func(m *ocispec.Manifest, c *ocispec.Image){
		"layer larger":  func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Size++ },
		"layer smaller": func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Size-- },
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, edit)
			images := newImages(t, nil)
			if _, err := images.Pull(t.Context(), r.Ref("app:1"), nil); !errdefs.IsDataLoss(err) {
				t.Error(err)
			}
			images.wantNothing(t)
		})
	}
}

func TestWrongDiffID(t *testing.T) {
	for name, wrap := range map[string]func([]byte) imagetest.Layer{"plain": imagetest.Plain, "gzip": imagetest.Gzip, "zstd": imagetest.Zstd} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			l := wrap(imagetest.Noise(t, 1000))
			l.DiffID = digest.FromString("something else")
			r.Build("1", []imagetest.Layer{l}, nil)
			images := newImages(t, nil)
			if _, err := images.Pull(t.Context(), r.Ref("app:1"), nil); !errdefs.IsDataLoss(err) {
				t.Error(err)
			}
			images.wantNothing(t)
		})
	}
}

func TestTransientErrors(t *testing.T) {
	for _, where := range []string{"/manifests/1", "/blobs/"} {
		for _, code := range []int{500, 502, 503, 504, 429, 0} {
			t.Run(fmt.Sprint(where, code), func(t *testing.T) {
				r := imagetest.NewRegistry(t)
				r.Build("1", []imagetest.Layer{imagetest.Plain(imagetest.Noise(t, 1000))}, nil)
				var n atomic.Int32
				r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
					if !strings.Contains(q.URL.Path, where) || n.Add(1) > 2 {
						return false
					}
					if code == 0 {
						conn, _, _ := w.(http.Hijacker).Hijack()
						conn.(*net.TCPConn).SetLinger(0)
						conn.Close()
						return true
					}
					w.Header().Set("Retry-After", "0")
					w.WriteHeader(code)
					return true
				})
				newImages(t, nil).mustPull(t, r.Ref("app:1"))
			})
		}
	}
}

func TestRegistryUnavailable(t *testing.T) {
	closed := imagetest.NewRegistry(t)
	closed.Close()
	r := imagetest.NewRegistry(t)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if strings.Contains(q.URL.Path, "slow") {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	for name, ref := range map[string]string{"refused": closed.Ref("app:1"), "503": r.Ref("app:1"), "Retry-After of a day": r.Ref("slow:1"), "no such name": "does-not-exist.invalid/app:1"} {
		t.Run(name, func(t *testing.T) {
			_, err := newImages(t, nil).Pull(t.Context(), ref, nil)
			if err == nil || !strings.HasPrefix(err.Error(), "RegistryUnavailable: pull ") {
				t.Fatal(err)
			}
			if errdefs.Resolve(err) != errdefs.ErrUnknown {
				t.Errorf("class %v", errdefs.Resolve(err))
			}
		})
	}
}

func TestStallIsCancelled(t *testing.T) {
	for name, drip := range map[string]bool{"silent": false, "a byte now and then": true} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			l := imagetest.Plain(imagetest.Noise(t, 200_000))
			r.Build("1", []imagetest.Layer{l}, nil)
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				if !imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
					return false
				}
				from := rangeOf(q)
				w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)-int(from)))
				if from > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(l.Blob)-1, len(l.Blob)))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					w.Write(l.Blob[:100_000])
					from = 100_000
				}
				for i := int(from); ; i++ {
					w.(http.Flusher).Flush()
					select {
					case <-q.Context().Done():
						return true
					case <-time.After(20 * time.Millisecond):
					}
					if drip {
						w.Write(l.Blob[i : i+1])
					}
				}
			})
			images := newImages(t, func(c *Config) { c.StallTimeout = time.Second })
			_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
			text := fmt.Sprint(err)
			if !strings.HasPrefix(text, "RegistryUnavailable: ") || !strings.Contains(text, "layer 1/1") || !strings.Contains(text, fmt.Sprintf("of %d bytes", len(l.Blob))) {
				t.Fatal(text)
			}
			// The next pull resumes the download.
			r.Intercept(nil)
			images.cfg.StallTimeout = time.Minute
			before := r.BlobBytes.Load()
			images.mustPull(t, r.Ref("app:1"))
			if n := r.BlobBytes.Load() - before; n > 110_000+10_000 {
				t.Errorf("%d bytes fetched after the stall", n)
			}
		})
	}
}

// TestSilentConnectionHeals checks that a connection without traffic is replaced in time.
func TestSilentConnectionHeals(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Plain(imagetest.Noise(t, 200_000))
	r.Build("1", []imagetest.Layer{l}, nil)
	var n atomic.Int32
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) || n.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
		w.Write(l.Blob[:100_000])
		w.(http.Flusher).Flush()
		<-q.Context().Done()
		return true
	})
	newImages(t, func(c *Config) { c.StallTimeout = 2 * time.Second }).mustPull(t, r.Ref("app:1"))
}

// gate delays blob responses until it is opened.
type gate struct {
	arrived chan struct{}
	open    chan struct{}
	once    sync.Once
}

func newGate(r *imagetest.Registry, d digest.Digest) *gate {
	g := &gate{arrived: make(chan struct{}), open: make(chan struct{})}
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if imagetest.IsBlobGet(q, d) {
			g.once.Do(func() { close(g.arrived) })
			select {
			case <-g.open:
			case <-q.Context().Done():
			}
		}
		return false
	})
	return g
}

func TestIdenticalPullsAreOne(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Gzip(imagetest.Noise(t, 500_000))
	id, _ := r.Build("1", []imagetest.Layer{l}, nil)
	g := newGate(r, digest.FromBytes(l.Blob))
	images := newImages(t, nil)
	errs := make(chan error, 51)
	pull := func(ctx context.Context) {
		img, err := images.Pull(ctx, r.Ref("app:1"), nil)
		if err == nil && img.ID != id {
			err = fmt.Errorf("image %s", img.ID)
		}
		errs <- err
	}
	impatient, leave := context.WithCancel(t.Context())
	go pull(impatient)
	<-g.arrived
	for range 50 {
		go pull(t.Context())
	}
	waitFor(t, func() bool { return slices.Equal(images.puller.Waiting(), []int{51}) })
	leave()
	if err := <-errs; !errdefs.IsCanceled(err) {
		t.Errorf("the impatient: %v", err)
	}
	close(g.open)
	for range 50 {
		imagetest.Must(t, <-errs)
	}
	if n := r.BlobBytes.Load(); n > int64(len(l.Blob))+10_000 {
		t.Errorf("%d bytes for a layer of %d", n, len(l.Blob))
	}
}

// waitFor polls a condition.
func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatal("condition does not come true")
}

func TestOtherCredentialsAreAnotherPull(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Gzip(imagetest.Noise(t, 500_000))
	r.Build("1", []imagetest.Layer{l}, nil)
	g := newGate(r, digest.FromBytes(l.Blob))
	images := newImages(t, nil)
	errs := make(chan error, 2)
	for _, user := range []string{"a", "b"} {
		go func() {
			_, err := images.Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: user, Password: "x"})
			errs <- err
		}()
	}
	<-g.arrived
	waitFor(t, func() bool { return len(images.puller.Waiting()) == 2 })
	close(g.open)
	imagetest.Must(t, <-errs)
	imagetest.Must(t, <-errs)
	// Each pull asked the registry, but the blob was downloaded once.
	if n := r.Count("GET /v2/app/manifests/1"); n != 2 {
		t.Errorf("%d manifest requests", n)
	}
	if n := r.BlobBytes.Load(); n > int64(len(l.Blob))+10_000 {
		t.Errorf("%d bytes for a layer of %d", n, len(l.Blob))
	}
}

func TestLastWaiterCancels(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Plain(imagetest.Noise(t, 400_000))
	id, _ := r.Build("1", []imagetest.Layer{l}, nil)
	arrived := make(chan struct{})
	gone := make(chan struct{})
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
		w.Write(l.Blob[:300_000])
		w.(http.Flusher).Flush()
		close(arrived)
		<-q.Context().Done()
		close(gone)
		return true
	})
	images := newImages(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	errs := make(chan error)
	go func() {
		_, err := images.Pull(ctx, r.Ref("app:1"), nil)
		errs <- err
	}()
	<-arrived
	waitFor(t, func() bool {
		info, err := os.Stat(images.blobs.IngestFile(imageref.Target{Domain: r.Host()}.IngestRef(digest.FromBytes(l.Blob))))
		return err == nil && info.Size() >= 300_000
	})
	cancel()
	if err := <-errs; !errdefs.IsCanceled(err) {
		t.Error(err)
	}
	<-gone // the registry has noticed that the client is gone
	r.Intercept(nil)
	before := r.BlobBytes.Load()
	images.mustPull(t, r.Ref("app:1")) // waits for the end of the cancelled pull, then resumes
	if n := r.BlobBytes.Load() - before; n > 150_000 {
		t.Errorf("%d bytes fetched again", n)
	}
	at := mounted(t, images, id)
	if info, err := os.Stat(at("noise")); err != nil || info.Size() != 400_000 {
		t.Error(info, err)
	}
}

func TestDeadline(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Plain(imagetest.Noise(t, 1000))
	r.Build("1", []imagetest.Layer{l}, nil)
	newGate(r, digest.FromBytes(l.Blob))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := newImages(t, nil).Pull(ctx, r.Ref("app:1"), nil); !errdefs.IsDeadlineExceeded(err) {
		t.Error(err)
	}
}

// TestForeignRegistriesDoNotWait checks that, while one registry is slow, others serve the same and
// other layers.
func TestForeignRegistriesDoNotWait(t *testing.T) {
	slow, good := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	same := []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100_000)), imagetest.Gzip(imagetest.Noise(t, 110_000)), imagetest.Zstd(imagetest.Noise(t, 120_000))}
	var id, other string
	for _, r := range []*imagetest.Registry{slow, good} {
		id, _ = r.Build("same", same, nil)
		other, _ = r.Build("other", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 130_000))}, nil)
	}
	dripping := make(chan struct{}, 100) // more than the number of requests
	enough := make(chan struct{})
	slow.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		for _, l := range same {
			if imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
				w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
				w.Write(l.Blob[:50_000])
				w.(http.Flusher).Flush()
				dripping <- struct{}{}
				select {
				case <-enough:
				case <-q.Context().Done():
				}
				w.Write(l.Blob[50_000:])
				return true
			}
		}
		return false
	})
	images := newImages(t, func(c *Config) { c.MaxUnpacks = 1 })
	slowly := make(chan error, 1)
	go func() {
		_, err := images.Pull(t.Context(), slow.Ref("app:same"), nil)
		slowly <- err
	}()
	for range same {
		<-dripping
	}
	for tag, want := range map[string]string{"same": id, "other": other} {
		if img := images.mustPull(t, good.Ref("app:"+tag)); img.ID != want {
			t.Error(tag, img)
		}
	}
	select {
	case err := <-slowly:
		t.Fatalf("the slow pull did not last: %v", err)
	default:
	}
	close(enough)
	imagetest.Must(t, <-slowly)
	if info, err := os.Stat(mounted(t, images, id)("noise")); err != nil || info.Size() != 120_000 {
		t.Error(info, err)
	}
	if layers, _ := filepath.Glob(filepath.Join(images.cfg.Root, "layers", "[0-9]*")); len(layers) != 4 {
		t.Errorf("layers %q", layers)
	}
	if left, _ := filepath.Glob(filepath.Join(images.cfg.Root, "content", "ingest", "*")); len(left) != 0 {
		t.Errorf("partial downloads %q", left)
	}
}
