package imageservice

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func (s *registryServer) got(l testLayer) int {
	d := digest.FromBytes(l.blob).String()
	return s.count("GET /v2/app/blobs/"+d) + s.count("GET /v2/other/blobs/"+d)
}

// TestProofOfPossession: which repository may use a layer that is here, and what it costs.
func TestProofOfPossession(t *testing.T) {
	base := gzipLayer(noise(t, 10_000))
	first, second := newRegistry(t), newRegistry(t)
	for _, r := range []*registryServer{first, second} {
		r.build("1", []testLayer{base}, nil)
		r.build("2", []testLayer{base, gzipLayer(tarOf(t, reg("f"), "two"))}, nil)
	}
	c := newImages(t, nil)
	c.mustPull(t, first.ref("app:1"))
	c.mustPull(t, first.ref("app:2"))
	if n := first.got(base); n != 1 {
		t.Errorf("the repository that has sent a layer sends it %d times", n)
	}
	c.mustPull(t, first.ref("other:2"))
	if n := first.got(base); n != 1 {
		t.Errorf("another repository of the same registry: sent %d times", n)
	}
	if n := first.count("HEAD /v2/other/blobs/"); n == 0 {
		t.Error("the registry was not asked whether its other repository has the layers")
	}
	c.mustPull(t, second.ref("app:2"))
	if n := second.got(base); n != 1 {
		t.Errorf("another registry sends it %d times, and it has to once", n)
	}
	// The same after a restart, and of a registry that says no.
	c = reopen(t, c.cfg.Root)
	for _, r := range []*registryServer{first, second} {
		before := r.got(base)
		r.build("3", []testLayer{base, gzipLayer(tarOf(t, reg("f"), "three"))}, nil)
		c.mustPull(t, r.ref("app:3"))
		if n := r.got(base); n != before {
			t.Error("what has been proven is proven again")
		}
	}
	first.intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/nothing/blobs/"+digest.FromBytes(base.blob).String()) {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	if _, err := c.Pull(t.Context(), first.ref("nothing:2"), nil); !errdefs.IsNotFound(err) {
		t.Errorf("a repository without the layer: %v", err)
	}
}

// TestLayerOfTwoBlobs: one layer under two compressions is unpacked once, and neither is taken on somebody's word.
func TestLayerOfTwoBlobs(t *testing.T) {
	r := newRegistry(t)
	content := noise(t, 10_000)
	id, _ := r.build("1", []testLayer{gzipLayer(content)}, nil)
	r.build("2", []testLayer{zstdLayer(content), gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	lie := zstdLayer(tarOf(t, reg("lie"), "x"))
	lie.diffID = digest.FromBytes(content)
	r.build("3", []testLayer{lie}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	two := c.mustPull(t, r.ref("app:2"))
	if c.catalog.records[id].Layers[0].Dir != c.catalog.records[two.ID].Layers[0].Dir {
		t.Error("the layer is unpacked twice")
	}
	for range 2 {
		if _, err := c.Pull(t.Context(), r.ref("app:3"), nil); !errdefs.IsDataLoss(err) {
			t.Errorf("a blob that does not unpack to the layer: %v", err)
		}
		c = reopen(t, c.cfg.Root)
	}
}

// TestRecordsOfOlderVersions: an image of a version that kept no proof is used, pulled again without its layers, and found by all its names.
func TestRecordsOfOlderVersions(t *testing.T) {
	r := newRegistry(t)
	l := gzipLayer(tarOf(t, reg("old"), "old"))
	id, desc := r.build("1", []testLayer{l}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	c.mustPull(t, r.ref("app@"+desc.Digest.String()))
	older(t, c, id)
	c = reopen(t, c.cfg.Root)
	for _, name := range []string{id, r.ref("app:1"), r.ref("app@" + desc.Digest.String())} {
		if img, err := c.Lookup(name); err != nil || img.ID != id {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantFile(t, mounted(t, c, id)("old"), "old")
	c.mustPull(t, r.ref("app:1"))
	next, _ := r.build("1", []testLayer{l, gzipLayer(tarOf(t, reg("f"), "next"))}, nil)
	if img := c.mustPull(t, r.ref("app:1")); img.ID != next {
		t.Error(img)
	}
	if n := r.got(l); n != 1 {
		t.Errorf("the layer was sent %d times", n)
	}
	if img, err := c.Lookup(r.ref("app@" + desc.Digest.String())); err != nil || img.ID != id {
		t.Errorf("the older image by its digest: %v", err)
	}
	wantFile(t, mounted(t, c, next)("f"), "next")
}

// TestDigestsOfOlderVersions: a record that does not say which digests were pulled as such keeps all of them.
func TestDigestsOfOlderVersions(t *testing.T) {
	r := newRegistry(t)
	id, m := r.build("", []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	push := func(other string) string {
		root := r.putManifest("1", ocispec.MediaTypeImageIndex, index(platform(m, "linux", goarch, ""), platform(m, "linux", other, "")))
		return r.ref("app@" + root.Digest.String())
	}
	c := newImages(t, nil)
	before := push("a")
	c.mustPull(t, before)
	older(t, c, id)
	c = reopen(t, c.cfg.Root)
	want := []string{before, push("b")}
	c.mustPull(t, r.ref("app:1"))
	slices.Sort(want)
	if img, err := c.Lookup(id); err != nil || !slices.Equal(img.RepoDigests, want) {
		t.Errorf("digests %q (%v), want %q", img.RepoDigests, err, want)
	}
}

// older rewrites the record as a version wrote it that knew nothing of proofs and roots.
func older(t testing.TB, c *Images, id string) {
	t.Helper()
	rec := *c.catalog.records[id]
	rec.ByDigest, rec.Tags, rec.Blobs = nil, slices.Clone(rec.Tags), slices.Clone(rec.Blobs)
	for i := range rec.Tags {
		rec.Tags[i].Root = ""
	}
	for i := range rec.Blobs {
		rec.Blobs[i].DiffID = ""
		must(t, ignoreNoAttribute(unix.Lremovexattr(c.blobs.path(rec.Blobs[i].Digest), senderAttribute)))
	}
	must(t, c.catalog.write(&rec))
}

func ignoreNoAttribute(err error) error {
	if err == unix.ENODATA {
		return nil
	}
	return err
}

// TestTagPushedAgain: a tag that is pushed again and again for other platforms leaves one digest reference and one index.
func TestTagPushedAgain(t *testing.T) {
	r := newRegistry(t)
	id, m := r.build("", []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	c := newImages(t, nil)
	push := func(n int) ocispec.Descriptor {
		_, foreign := r.build("", []testLayer{gzipLayer(tarOf(t, reg("f"), strings.Repeat("y", n+1)))}, nil)
		return r.putManifest("1", ocispec.MediaTypeImageIndex, index(platform(m, "linux", goarch, ""), platform(foreign, "linux", "other", "")))
	}
	kept := push(0)
	c.mustPull(t, r.ref("app@"+kept.Digest.String())) // somebody's pod names it
	var last ocispec.Descriptor
	for n := 1; n <= 20; n++ {
		last = push(n)
		c.mustPull(t, r.ref("app:1"))
	}
	want := []string{r.ref("app@" + kept.Digest.String()), r.ref("app@" + last.Digest.String())}
	slices.Sort(want)
	for range 2 {
		if img, err := c.Lookup(id); err != nil || !slices.Equal(img.RepoDigests, want) {
			t.Errorf("digests %q (%v), want %q", img.RepoDigests, err, want)
		}
		blobs, err := os.ReadDir(c.cfg.Root + "/content/blobs/sha256")
		must(t, err)
		if len(blobs) != 5 { // two indexes, manifest, config, layer
			t.Errorf("%d blobs", len(blobs))
		}
		c.mustPull(t, r.ref("app:1"))
		c = reopen(t, c.cfg.Root)
	}
	// A tag of another repository, and one that has moved away, keep theirs.
	c.mustPull(t, r.ref("other:1"))
	r.build("1", []testLayer{gzipLayer(tarOf(t, reg("g"), "moved"))}, nil)
	c.mustPull(t, r.ref("app:1"))
	want = append(want, r.ref("other@"+last.Digest.String()))
	if img, err := c.Lookup(id); err != nil || !slices.Equal(img.RepoDigests, want) {
		t.Errorf("digests %q (%v), want %q", img.RepoDigests, err, want)
	}
	wantFile(t, mounted(t, c, id)("f"), "x")
}
