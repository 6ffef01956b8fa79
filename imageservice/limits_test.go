package imageservice

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bomb is a layer whose tar holds one file of n zeros, made without ever having them all.
func bomb(t testing.TB, n int64, compress func(w io.Writer) io.WriteCloser, mediaType string) testLayer {
	var b bytes.Buffer
	z := compress(&b)
	header := tarOf(t, reg("zeros"), "")[:512]
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
	return testLayer{blob: b.Bytes(), mediaType: mediaType, diffID: digest.FromString("nobody knows")}
}

func TestBombs(t *testing.T) {
	gz := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	zs := func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }
	for name, c := range map[string]struct {
		layer  testLayer
		limits Limits
	}{
		"gzip ratio":  {bomb(t, 20<<20, gz, ocispec.MediaTypeImageLayerGzip), Limits{RatioFloor: 10 << 20}},
		"zstd ratio":  {bomb(t, 20<<20, zs, ocispec.MediaTypeImageLayerZstd), Limits{RatioFloor: 10 << 20}},
		"layer bytes": {bomb(t, 20<<20, gz, ocispec.MediaTypeImageLayerGzip), Limits{LayerBytes: 10 << 20}},
		"concatenated": {func() testLayer {
			l := bomb(t, 8<<20, gz, ocispec.MediaTypeImageLayerGzip)
			l.blob = bytes.Repeat(l.blob, 3)
			return l
		}(), Limits{LayerBytes: 10 << 20}},
		"entries":               {gzipLayer(tarOf(t, reg("a"), reg("b"), reg("c/d/e"))), Limits{Entries: 4}},
		"image bytes":           {gzipLayer(noise(t, 1<<20)), Limits{ImageBytes: 100_000}},
		"image bytes, unpacked": {gzipLayer(tarOf(t, reg("x"), strings.Repeat("x", 1<<20))), Limits{ImageBytes: 100_000}},
		"zstd window": {func() testLayer {
			var b bytes.Buffer
			z, err := zstd.NewWriter(&b, zstd.WithWindowSize(256<<20))
			must(t, err)
			z.Write(bytes.Repeat(noise(t, 1<<20), 3))
			z.Flush()
			z.Close()
			return testLayer{blob: b.Bytes(), mediaType: ocispec.MediaTypeImageLayerZstd, diffID: digest.FromString("x")}
		}(), Limits{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			r.build("1", []testLayer{c.layer}, nil)
			images := newImages(t, func(cfg *Config) { cfg.Limits = c.limits })
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := images.Pull(t.Context(), r.ref("app:1"), nil)
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
	good := map[string]testLayer{"gzip": gzipLayer(noise(t, 50_000)), "zstd": zstdLayer(noise(t, 50_000))}
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
				r := newRegistry(t)
				bad := l
				bad.blob = spoil(l.blob)
				r.build("1", []testLayer{bad}, nil)
				images := newImages(t, nil)
				_, err := images.Pull(t.Context(), r.ref("app:1"), nil)
				if !errdefs.IsInvalidArgument(err) && !errdefs.IsDataLoss(err) {
					t.Error(err)
				}
				images.wantNothing(t)
			})
		}
	}
}
