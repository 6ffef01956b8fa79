package imageservice

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cribox/cribox/imageservice/imagetest"
)

// BenchmarkPull measures downloading and unpacking of three shapes of image, from a registry in
// this process.
func BenchmarkPull(b *testing.B) {
	shapes := []struct{ layers, files, size int }{{6, 4000, 4 << 10}, {5, 60, 1 << 20}, {1, 300, 1 << 20}}
	for _, s := range shapes {
		b.Run(fmt.Sprintf("%dx%dx%dKiB", s.layers, s.files, s.size>>10), func(b *testing.B) {
			r := imagetest.NewRegistry(b)
			var layers []imagetest.Layer
			for l := range s.layers {
				layers = append(layers, imagetest.Gzip(files(b, l, s.files, s.size)))
			}
			id, _ := r.Build("1", layers, nil)
			c := newImages(b, nil)
			for b.Loop() {
				c.mustPull(b, r.Ref("app:1"))
				b.StopTimer()
				imagetest.Must(b, c.Remove(b.Context(), id))
				b.StartTimer()
			}
		})
	}
}

// files returns a tar of text that compresses about as well as programs do.
func files(t testing.TB, layer, n, size int) []byte {
	rnd := rand.New(rand.NewPCG(uint64(layer), 1))
	var entries []any
	for i := range n {
		var text strings.Builder
		for text.Len() < size {
			fmt.Fprintf(&text, "%x %s\n", rnd.Uint32(), "some words that repeat"[:rnd.IntN(22)])
		}
		if i%100 == 0 {
			entries = append(entries, imagetest.Dir(fmt.Sprintf("l%d/d%d", layer, i/100), 0o755))
		}
		entries = append(entries, imagetest.File(fmt.Sprintf("l%d/d%d/f%d", layer, i/100, i)), text.String()[:size])
	}
	return imagetest.Tar(t, entries...)
}
