package imageservice

import (
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/imagetest"
)

func sent(s *imagetest.Registry, l imagetest.Layer) int {
	d := digest.FromBytes(l.Blob).String()
	return s.Count("GET /v2/app/blobs/"+d) + s.Count("GET /v2/other/blobs/"+d)
}

// TestProofOfPossession checks which repository may use a local layer, and how many bytes it must
// send.
func TestProofOfPossession(t *testing.T) {
	base := imagetest.Gzip(imagetest.Noise(t, 10_000))
	first, second := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	for _, r := range []*imagetest.Registry{first, second} {
		r.Build("1", []imagetest.Layer{base}, nil)
		r.Build("2", []imagetest.Layer{base, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "two"))}, nil)
	}
	c := newImages(t, nil)
	c.mustPull(t, first.Ref("app:1"))
	c.mustPull(t, first.Ref("app:2"))
	if n := sent(first, base); n != 1 {
		t.Errorf("the repository that has sent a layer sends it %d times", n)
	}
	c.mustPull(t, first.Ref("other:2"))
	if n := sent(first, base); n != 1 {
		t.Errorf("another repository of the same registry: sent %d times", n)
	}
	if n := first.Count("HEAD /v2/other/blobs/"); n == 0 {
		t.Error("the registry was not asked whether its other repository has the layers")
	}
	c.mustPull(t, second.Ref("app:2"))
	if n := sent(second, base); n != 1 {
		t.Errorf("another registry sends it %d times, and it has to once", n)
	}
	// The same after a restart, and with a registry that denies having the blob.
	c = reopen(t, c.cfg.Root)
	for _, r := range []*imagetest.Registry{first, second} {
		before := sent(r, base)
		r.Build("3", []imagetest.Layer{base, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "three"))}, nil)
		c.mustPull(t, r.Ref("app:3"))
		if n := sent(r, base); n != before {
			t.Error("what has been proven is proven again")
		}
	}
	first.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/nothing/blobs/"+digest.FromBytes(base.Blob).String()) {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	if _, err := c.Pull(t.Context(), first.Ref("nothing:2"), nil); !errdefs.IsNotFound(err) {
		t.Errorf("a repository without the layer: %v", err)
	}
}

// TestLayerOfTwoBlobs checks that a layer with two compressed forms is unpacked once, and that each
// form is verified.
func TestLayerOfTwoBlobs(t *testing.T) {
	r := imagetest.NewRegistry(t)
	content := imagetest.Noise(t, 10_000)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(content)}, nil)
	r.Build("2", []imagetest.Layer{imagetest.Zstd(content), imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	lie := imagetest.Zstd(imagetest.Tar(t, imagetest.File("lie"), "x"))
	lie.DiffID = digest.FromBytes(content)
	r.Build("3", []imagetest.Layer{lie}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	two := c.mustPull(t, r.Ref("app:2"))
	if layersOf(t, c, id)[0] != layersOf(t, c, two.ID)[1] {
		t.Error("the layer is unpacked twice")
	}
	for range 2 {
		if _, err := c.Pull(t.Context(), r.Ref("app:3"), nil); !errdefs.IsDataLoss(err) {
			t.Errorf("a blob that does not unpack to the layer: %v", err)
		}
		c = reopen(t, c.cfg.Root)
	}
}

// TestRecordsOfOlderVersions checks that an image of a version without proofs can be used, pulled
// again without its layers, and found by all its names.
func TestRecordsOfOlderVersions(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Gzip(imagetest.Tar(t, imagetest.File("old"), "old"))
	id, desc := r.Build("1", []imagetest.Layer{l}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	c.mustPull(t, r.Ref("app@"+desc.Digest.String()))
	older(t, c, id)
	c = reopen(t, c.cfg.Root)
	for _, name := range []string{id, r.Ref("app:1"), r.Ref("app@" + desc.Digest.String())} {
		if img, err := c.Lookup(name); err != nil || img.ID != id {
			t.Errorf("%s: %v", name, err)
		}
	}
	imagetest.WantFile(t, mounted(t, c, id)("old"), "old")
	c.mustPull(t, r.Ref("app:1"))
	next, _ := r.Build("1", []imagetest.Layer{l, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "next"))}, nil)
	if img := c.mustPull(t, r.Ref("app:1")); img.ID != next {
		t.Error(img)
	}
	if n := sent(r, l); n != 1 {
		t.Errorf("the layer was sent %d times", n)
	}
	if img, err := c.Lookup(r.Ref("app@" + desc.Digest.String())); err != nil || img.ID != id {
		t.Errorf("the older image by its digest: %v", err)
	}
	imagetest.WantFile(t, mounted(t, c, next)("f"), "next")
}

// TestDigestsOfOlderVersions checks that a record keeps all its digests if it does not say which
// were pulled by digest.
func TestDigestsOfOlderVersions(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, m := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	push := func(other string) string {
		root := r.PutManifest("1", ocispec.MediaTypeImageIndex, index(platform(m, "linux", runtime.GOARCH, ""), platform(m, "linux", other, "")))
		return r.Ref("app@" + root.Digest.String())
	}
	c := newImages(t, nil)
	before := push("a")
	c.mustPull(t, before)
	older(t, c, id)
	c = reopen(t, c.cfg.Root)
	want := []string{before, push("b")}
	c.mustPull(t, r.Ref("app:1"))
	slices.Sort(want)
	if img, err := c.Lookup(id); err != nil || !slices.Equal(img.RepoDigests, want) {
		t.Errorf("digests %q (%v), want %q", img.RepoDigests, err, want)
	}
}

// older rewrites a record in the form of a version without proofs and roots.
func older(t testing.TB, c *Images, id string) {
	t.Helper()
	known, err := c.catalog.Record(id)
	imagetest.Must(t, err)
	rec := *known
	rec.ByDigest, rec.Tags, rec.Blobs = nil, slices.Clone(rec.Tags), slices.Clone(rec.Blobs)
	for i := range rec.Tags {
		rec.Tags[i].Root = ""
	}
	for i := range rec.Blobs {
		rec.Blobs[i].DiffID = ""
		imagetest.Must(t, ignoreNoAttribute(unix.Lremovexattr(c.blobs.Path(rec.Blobs[i].Digest), content.SenderAttribute)))
	}
	imagetest.Must(t, c.catalog.Write(&rec))
}

func ignoreNoAttribute(err error) error {
	if err == unix.ENODATA {
		return nil
	}
	return err
}

// TestTagPushedAgain checks that a tag that is pushed many times with other platforms leaves only
// one digest reference and one index.
func TestTagPushedAgain(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, m := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	c := newImages(t, nil)
	push := func(n int) ocispec.Descriptor {
		_, foreign := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), strings.Repeat("y", n+1)))}, nil)
		return r.PutManifest("1", ocispec.MediaTypeImageIndex, index(platform(m, "linux", runtime.GOARCH, ""), platform(foreign, "linux", "other", "")))
	}
	kept := push(0)
	c.mustPull(t, r.Ref("app@"+kept.Digest.String())) // as if a pod used this digest
	var last ocispec.Descriptor
	for n := 1; n <= 20; n++ {
		last = push(n)
		c.mustPull(t, r.Ref("app:1"))
	}
	want := []string{r.Ref("app@" + kept.Digest.String()), r.Ref("app@" + last.Digest.String())}
	slices.Sort(want)
	for range 2 {
		if img, err := c.Lookup(id); err != nil || !slices.Equal(img.RepoDigests, want) {
			t.Errorf("digests %q (%v), want %q", img.RepoDigests, err, want)
		}
		blobs, err := os.ReadDir(c.cfg.Root + "/content/blobs/sha256")
		imagetest.Must(t, err)
		if len(blobs) != 5 { // two indexes, manifest, config, layer
			t.Errorf("%d blobs", len(blobs))
		}
		c.mustPull(t, r.Ref("app:1"))
		c = reopen(t, c.cfg.Root)
	}
	// Digests of tags in another repository, and of a tag that has moved, are kept.
	c.mustPull(t, r.Ref("other:1"))
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("g"), "moved"))}, nil)
	c.mustPull(t, r.Ref("app:1"))
	want = append(want, r.Ref("other@"+last.Digest.String()))
	if img, err := c.Lookup(id); err != nil || !slices.Equal(img.RepoDigests, want) {
		t.Errorf("digests %q (%v), want %q", img.RepoDigests, err, want)
	}
	imagetest.WantFile(t, mounted(t, c, id)("f"), "x")
}
