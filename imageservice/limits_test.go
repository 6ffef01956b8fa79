package imageservice

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/layers"
)

// bomb returns a layer whose tar contains one file of n zeros. It never holds all of them in
// memory.
func bomb(t testing.TB, n int64, compress func(w io.Writer) io.WriteCloser, mediaType string) imagetest.Layer {
	var b bytes.Buffer
	z := compress(&b)
	header := imagetest.Tar(t, imagetest.File("zeros"), "")[:512]
	copy(header[124:136], fmt.Sprintf("%011o ", n))
	copy(header[148:156], "        ")
	var check int
	for _, c := range header {
		check += int(c)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", check))
	z.Write(header)
	zeros := make([]byte, 1<<20)
	for range n >> 20 {
		z.Write(zeros)
	}
	z.Close()
	return imagetest.Layer{Blob: b.Bytes(), MediaType: mediaType, DiffID: digest.FromString("nobody knows")}
}

func TestBombs(t *testing.T) {
	gz := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	zs := func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }
	for name, c := range map[string]struct {
		layer  imagetest.Layer
		limits layers.Limits
	}{
		"zstd bytes":  {bomb(t, 20<<20, zs, ocispec.MediaTypeImageLayerZstd), layers.Limits{LayerBytes: 10 << 20}},
		"layer bytes": {bomb(t, 20<<20, gz, ocispec.MediaTypeImageLayerGzip), layers.Limits{LayerBytes: 10 << 20}},
		"concatenated": {func() imagetest.Layer {
			l := bomb(t, 8<<20, gz, ocispec.MediaTypeImageLayerGzip)
			l.Blob = bytes.Repeat(l.Blob, 3)
			return l
		}(), layers.Limits{LayerBytes: 10 << 20}},
		"entries":               {imagetest.Gzip(imagetest.Tar(t, imagetest.File("a"), imagetest.File("b"), imagetest.File("c/d/e"))), layers.Limits{Entries: 4}},
		"image bytes":           {imagetest.Gzip(imagetest.Noise(t, 1<<20)), layers.Limits{ImageBytes: 100_000}},
		"image bytes, unpacked": {imagetest.Gzip(imagetest.Tar(t, imagetest.File("x"), strings.Repeat("x", 1<<20))), layers.Limits{ImageBytes: 100_000}},
		"zstd window": {func() imagetest.Layer {
			var b bytes.Buffer
			z, err := zstd.NewWriter(&b, zstd.WithWindowSize(256<<20))
			imagetest.Must(t, err)
			z.Write(bytes.Repeat(imagetest.Noise(t, 1<<20), 3))
			z.Flush()
			z.Close()
			return imagetest.Layer{Blob: b.Bytes(), MediaType: ocispec.MediaTypeImageLayerZstd, DiffID: digest.FromString("x")}
		}(), layers.Limits{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			r.Build("1", []imagetest.Layer{c.layer}, nil)
			images := newImages(t, func(cfg *Config) { cfg.Limits = c.limits })
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
			runtime.ReadMemStats(&after)
			if !errdefs.IsResourceExhausted(err) {
				t.Error(err)
			}
			if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 64<<20 {
				t.Errorf("%d MiB of heap", grown>>20)
			}
			images.wantNothing(t)
		})
	}
}

func TestBrokenStreams(t *testing.T) {
	good := map[string]imagetest.Layer{"gzip": imagetest.Gzip(imagetest.Noise(t, 50_000)), "zstd": imagetest.Zstd(imagetest.Noise(t, 50_000))}
	for name, l := range good {
		for how, spoil := range map[string]func(b []byte) []byte{
			"truncated":         func(b []byte) []byte { return b[:len(b)/2] },
			"cut at the end":    func(b []byte) []byte { return b[:len(b)-3] },
			"garbage behind":    func(b []byte) []byte { return append(bytes.Clone(b), "garbage"...) },
			"flipped":           func(b []byte) []byte { c := bytes.Clone(b); c[len(c)-6] ^= 0xff; return c },
			"header only":       func(b []byte) []byte { return b[:4] },
			"garbage, no magic": func(b []byte) []byte { return bytes.Repeat([]byte("x"), 2000) },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				r := imagetest.NewRegistry(t)
				bad := l
				bad.Blob = spoil(l.Blob)
				r.Build("1", []imagetest.Layer{bad}, nil)
				images := newImages(t, nil)
				_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
				if !errdefs.IsInvalidArgument(err) && !errdefs.IsDataLoss(err) {
					t.Error(err)
				}
				images.wantNothing(t)
			})
		}
	}
}

// smallDisk mounts a filesystem of mib MiB, and returns a root folder on it.
func smallDisk(t testing.TB, mib int) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	imagetest.Must(t, os.Mkdir(root, 0o700))
	imagetest.Must(t, unix.Mount("tmpfs", root, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)))
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

// TestImageBytesWhileUnpacking checks that layers which together exceed the limit are refused
// during unpacking, before the disk is full.
func TestImageBytesWhileUnpacking(t *testing.T) {
	for name, file := range map[string]func(i int) []any{
		"files": func(i int) []any {
			return []any{imagetest.File(fmt.Sprint("f", i)), strings.Repeat(fmt.Sprint(i), 4<<20)}
		},
		"empty files": func(i int) (all []any) {
			for n := range 1000 {
				all = append(all, imagetest.File(fmt.Sprint(i, "/", n)))
			}
			return all
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			var layers []imagetest.Layer
			for i := range 4 {
				layers = append(layers, imagetest.Gzip(imagetest.Tar(t, file(i)...)))
			}
			r.Build("1", layers, nil)
			images := newImages(t, func(c *Config) { c.Root, c.Limits.ImageBytes = smallDisk(t, 12), 8<<20 })
			_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
			if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "image unpacks to more than") {
				t.Error(err)
			}
			images.wantNothing(t)
		})
	}
}

// sparse returns a tar with one sparse file of n bytes without data.
func sparse(n int64) []byte {
	b := make([]byte, 3*512)
	for at, field := range map[int]string{0: "hole", 100: "0000644", 108: "0000000", 116: "0000000", 124: "00000000000", 136: "00000000000",
		148: "        ", 156: "S", 257: "ustar  ", 386: fmt.Sprintf("%011o", n), 398: "00000000000", 483: fmt.Sprintf("%011o", n)} {
		copy(b[at:], field)
	}
	var check int
	for _, c := range b[:512] {
		check += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", check))
	return b
}

// TestHoles checks that holes of a tar count as bytes.
func TestHoles(t *testing.T) {
	r := imagetest.NewRegistry(t)
	small, _ := r.Build("small", []imagetest.Layer{imagetest.Gzip(sparse(1 << 20))}, nil)
	r.Build("large", []imagetest.Layer{imagetest.Gzip(sparse(1 << 32))}, nil)
	for _, limits := range []layers.Limits{{LayerBytes: 4 << 20}, {ImageBytes: 4 << 20}} {
		images := newImages(t, func(c *Config) { c.Root, c.Limits = smallDisk(t, 12), limits })
		if _, err := images.Pull(t.Context(), r.Ref("app:large"), nil); !errdefs.IsResourceExhausted(err) || strings.Contains(err.Error(), "no space") {
			t.Error(err)
		}
		images.wantNothing(t)
		images.mustPull(t, r.Ref("app:small"))
		if info, err := os.Stat(mounted(t, images, small)("hole")); err != nil || info.Size() != 1<<20 {
			t.Error(info, err)
		}
	}
}

// TestZeros checks that a layer of zeros (like disk images and login databases) unpacks at any
// compression ratio, and uses no disk space.
func TestZeros(t *testing.T) {
	tarball := imagetest.Tar(t, imagetest.File("disk"), "begin"+strings.Repeat("\x00", 40<<20)+"end", imagetest.File("zeros"), strings.Repeat("\x00", 20<<20+5), imagetest.File("short"), "\x00")
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(tarball)}, nil)
	images := newImages(t, func(c *Config) { c.Root, c.Limits = smallDisk(t, 12), layers.Limits{RatioFloor: 10 << 20, Reserve: 50} })
	images.mustPull(t, r.Ref("app:1"))
	file := mounted(t, images, id)
	for name, want := range map[string]string{"disk": "begin" + strings.Repeat("\x00", 40<<20) + "end", "zeros": strings.Repeat("\x00", 20<<20+5), "short": "\x00"} {
		if got, err := os.ReadFile(file(name)); err != nil || string(got) != want {
			t.Errorf("%s has %d bytes, %v", name, len(got), err)
		}
	}
}

// TestDiskReserve checks that a layer with an extreme compression ratio cannot fill the disk, and
// that other layers, or any layer if the administrator permits it, can.
func TestDiskReserve(t *testing.T) {
	letters := imagetest.Gzip(imagetest.Tar(t, imagetest.File("x"), strings.Repeat("x", 40<<20)))
	for _, c := range []struct {
		limits layers.Limits
		refuse bool
	}{{layers.Limits{RatioFloor: 10 << 20, Reserve: 50}, true}, {layers.Limits{RatioFloor: 10 << 20}, false}, {layers.Limits{Reserve: 50}, false}, {layers.Limits{RatioFloor: 10 << 20, Ratio: 5000, Reserve: 50}, false}} {
		r := imagetest.NewRegistry(t)
		r.Build("1", []imagetest.Layer{letters}, nil)
		images := newImages(t, func(cfg *Config) { cfg.Root, cfg.Limits = smallDisk(t, 60), c.limits })
		_, err := images.Pull(t.Context(), r.Ref("app:1"), nil)
		if !c.refuse && err != nil || c.refuse && (!errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "disk_reserve")) {
			t.Errorf("%+v: %v", c.limits, err)
		}
		if c.refuse {
			images.wantNothing(t)
		}
	}
}

// TestUnpackingStaysBehindTheDownload checks that a layer with a large announced size is unpacked
// only after its download, if its first bytes already unpack to too much.
func TestUnpackingStaysBehindTheDownload(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := bomb(t, 20<<20, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }, ocispec.MediaTypeImageLayerGzip)
	r.Build("1", []imagetest.Layer{l}, func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Size = 10 << 20 })
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
			return false
		}
		w.(http.Flusher).Flush() // without a length, so that more bytes could follow
		w.Write(l.Blob)
		w.(http.Flusher).Flush()
		<-q.Context().Done()
		return true
	})
	images := newImages(t, func(c *Config) { c.Limits, c.StallTimeout = layers.Limits{RatioFloor: 1 << 20}, time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := images.Pull(ctx, r.Ref("app:1"), nil)
		done <- err
	}()
	partial := images.blobs.IngestFile(imageref.Target{Domain: r.Host()}.IngestRef(digest.FromBytes(l.Blob)))
	waitFor(t, func() bool {
		info, err := os.Stat(partial)
		return err == nil && info.Size() == int64(len(l.Blob)) && images.layers.Latest() == 1 && !exists(images.layers.Dir("1"))
	})
	cancel()
	if err := <-done; !errdefs.IsCanceled(err) {
		t.Error(err)
	}
	waitFor(t, func() bool { return len(images.puller.Waiting()) == 0 })
}
