package images

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// mostMemory is by how many bytes a command about an image may let the daemon grow, whatever the size of the image.
const mostMemory = 200 << 20

// TestLargeImage gives the commands about images with one of a GiB (CRIBOX_LARGE_IMAGE says how many), and counts the daemon's memory.
func TestLargeImage(t *testing.T) {
	t.Parallel()
	gib := 1
	if s := os.Getenv("CRIBOX_LARGE_IMAGE"); s != "" {
		var err error
		if gib, err = strconv.Atoi(s); err != nil {
			t.Fatalf("CRIBOX_LARGE_IMAGE: %v", err)
		}
	}
	d := harness.NewDaemon(t, harness.WithImages("disk_reserve = 0\nlayer_size_max = \"64Gi\"\n"))
	r := fixture.ForTest(t)
	for _, compression := range []fixture.Compression{fixture.Gzip, fixture.Zstd} {
		t.Run(string(compression), func(t *testing.T) { largeImage(t, d, r, gib, compression) })
	}
}

func largeImage(t *testing.T, d *harness.Daemon, r *fixture.Registry, gib int, compression fixture.Compression) {
	layer, err := fixture.ZeroLayer("zeros", int64(gib)<<30, compression)
	d.Must(err)
	img, err := fixture.FromLayers(v1.Config{}, nil, layer)
	d.Must(err)
	name := fmt.Sprintf("large:%s", compression)
	d.Must(r.Add(name, img))
	ref, file := r.Ref(name), filepath.Join(t.TempDir(), "large.tar")
	for _, verb := range [][]string{
		{"pull", ref}, {"verify", ref}, {"save", "-o", file, ref}, {"rm", ref}, {"load", file}, {"rm", ref},
	} {
		peak := d.PeakOf(func() {
			if out, errs, err := d.Said(nil, append([]string{"image"}, verb...)...); err != nil {
				t.Fatalf("%v: %s, %s, %v", verb, out, errs, err)
			}
		})
		t.Logf("%d GiB, %s, image %s: %.1f MiB more at most", gib, compression, verb[0], float64(peak)/(1<<20))
		if peak > mostMemory {
			t.Errorf("image %v of %d GiB lets the daemon grow by %d bytes", verb, gib, peak)
		}
	}
}
