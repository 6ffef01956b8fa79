package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/internal/tree"
)

const someHex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func longAgo() time.Time  { return time.Now().Add(-time.Hour) }
func tomorrow() time.Time { return time.Now().Add(time.Hour) }

func TestRemoveSharesLayers(t *testing.T) {
	r := imagetest.NewRegistry(t)
	shared := imagetest.Gzip(imagetest.Tar(t, imagetest.File("shared"), "shared"))
	a, _ := r.Build("a", []imagetest.Layer{shared, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "a"))}, nil)
	b, _ := r.Build("b", []imagetest.Layer{shared, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "b"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:a"))
	c.mustPull(t, r.Ref("app:b"))
	if n := r.Count("GET /v2/app/blobs/" + digest.FromBytes(shared.Blob).String()); n != 1 {
		t.Errorf("shared layer fetched %d times", n)
	}
	if layers, _ := filepath.Glob(filepath.Join(c.cfg.Root, "layers", "[0-9]*")); len(layers) != 3 {
		t.Errorf("layers %q", layers)
	}
	imagetest.Must(t, c.Remove(t.Context(), r.Ref("app:a")))
	if _, err := c.Lookup(a); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	at := mounted(t, c, b)
	imagetest.WantFile(t, at("shared"), "shared")
	imagetest.WantFile(t, at("f"), "b")
	if layers, _ := filepath.Glob(filepath.Join(c.cfg.Root, "layers", "[0-9]*")); len(layers) != 2 {
		t.Errorf("layers %q", layers)
	}
	imagetest.Must(t, c.Remove(t.Context(), b))
	c.wantNothing(t)
	for _, absent := range []string{b, "sha256:" + someHex, someHex, r.Ref("app:a"), "nobody/knows:it"} {
		if err := c.Remove(t.Context(), absent); err != nil {
			t.Errorf("remove absent %s: %v", absent, err)
		}
	}
	for _, bad := range []string{"", "UPPER", "../x"} {
		if err := c.Remove(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("remove %q: %v", bad, err)
		}
	}
}

func TestRemoveByAnyNameRemovesAll(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}
	id, _ := r.Build("1", l, nil)
	r.Mu.Lock()
	r.Manifests["2"] = r.Manifests["1"]
	r.Mu.Unlock()
	for _, by := range []string{id, strings.TrimPrefix(id, "sha256:"), id[7:14], r.Ref("app:2"), r.Ref("other@") + "DIGEST"} {
		c := newImages(t, nil)
		c.mustPull(t, r.Ref("app:1"))
		c.mustPull(t, r.Ref("app:2"))
		img := c.mustPull(t, r.Ref("other:1"))
		if len(img.RepoTags) != 3 || len(img.RepoDigests) != 2 {
			t.Fatalf("%+v", img)
		}
		by = strings.Replace(by, "DIGEST", strings.Split(img.RepoDigests[0], "@")[1], 1)
		imagetest.Must(t, c.Remove(t.Context(), by))
		c.wantNothing(t)
	}
}

func TestHold(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	c := newImages(t, nil)
	if err := c.Hold(id, "c1"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	c.mustPull(t, r.Ref("app:1"))
	imagetest.Must(t, c.Hold(id, "c1"))
	imagetest.Must(t, c.Hold(id, "c1"))
	imagetest.Must(t, c.Hold(id, "c2"))
	for _, holder := range []string{"c1", "c2"} {
		if err := c.Remove(t.Context(), id); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), holder) {
			t.Error(err)
		}
		c.Release(id, holder)
	}
	c.Release(id, "nobody")
	c.Release("nothing", "nobody")
	imagetest.Must(t, c.Remove(t.Context(), id))
	c.wantNothing(t)
}

func TestPinned(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", nil, nil)
	c := newImages(t, func(c *Config) { c.Pinned = []string{r.Ref("pause:1")} })
	c.mustPull(t, r.Ref("app:1"))
	if img, _ := c.Lookup(id); img.Pinned {
		t.Error("pinned without its name")
	}
	if img := c.mustPull(t, r.Ref("pause:1")); !img.Pinned {
		t.Error("not pinned")
	}
	for pattern, want := range map[string]bool{"*": true, "*/app:*": true, r.Ref("app:1"): true, r.Ref("app"): false, "app:1": false, "*/app:": false, "*/ap.:1": false} {
		c.SetPinned([]string{"nothing", pattern})
		if list := c.List(); list[0].Pinned != want {
			t.Errorf("pinned by %s: %v, want %v", pattern, !want, want)
		}
	}
	imagetest.Must(t, c.Remove(t.Context(), id)) // pinning is only a recommendation
	c.wantNothing(t)
}

func TestTagMoves(t *testing.T) {
	r := imagetest.NewRegistry(t)
	oldID, oldDesc := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "old"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	n := r.Count("GET /v2/app/manifests/")
	c.mustPull(t, r.Ref("app:1"))
	if r.Count("GET /v2/app/manifests/") != n {
		t.Error("an unchanged manifest is fetched again")
	}
	newID, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "new"))}, nil)
	c.mustPull(t, r.Ref("app:1"))
	for range 2 {
		img, err := c.Lookup(r.Ref("app:1"))
		if err != nil || img.ID != newID {
			t.Error(img, err)
		}
		old, err := c.Lookup(oldID)
		if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 || old.RepoDigests[0] != r.Ref("app@"+oldDesc.Digest.String()) {
			t.Errorf("%+v %v", old, err)
		}
		c = reopen(t, c.cfg.Root)
	}
	imagetest.WantFile(t, mounted(t, c, oldID)("f"), "old")
}

func TestLookup(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, desc := r.Build("1", nil, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	hex := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{id, hex, hex[:4], hex[:20], "sha256:" + hex[:12], r.Ref("app:1"), r.Ref("app@" + desc.Digest.String()), r.Ref("app:7@" + desc.Digest.String())} {
		if img, err := c.Lookup(ref); err != nil || img.ID != id {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{someHex, r.Ref("app"), r.Ref("app:2"), hex[:3], "ffff" + hex[:20], r.Ref("other@" + desc.Digest.String()), r.Ref("app@" + "sha256:" + someHex)} {
		if _, err := c.Lookup(ref); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"", "UPPER", "../" + id, "a\x00"} {
		if _, err := c.Lookup(ref); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	for i := range 20 { // some two share the first digit, and all share the empty prefix
		c.catalog.Put(&catalog.Record{ID: fmt.Sprintf("sha256:beef%060d", i)}, nil)
	}
	if _, err := c.Lookup("beef"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ambiguous prefix: %v", err)
	}
}

// TestPullsAndRemovals checks that after concurrent pulls and removals of images that share layers,
// every listed image is complete.
func TestPullsAndRemovals(t *testing.T) {
	r := imagetest.NewRegistry(t)
	shared := imagetest.Gzip(imagetest.Tar(t, imagetest.File("shared"), "shared"))
	ids := make([]string, 4)
	for i := range ids {
		ids[i], _ = r.Build(fmt.Sprint(i), []imagetest.Layer{shared, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), fmt.Sprint(i)))}, nil)
	}
	c := newImages(t, nil)
	var wg sync.WaitGroup
	for i := range ids {
		for range 3 {
			wg.Go(func() {
				for range 5 {
					if _, err := c.Pull(t.Context(), r.Ref(fmt.Sprint("app:", i)), nil); err != nil {
						t.Error(err)
					}
					if err := c.Remove(t.Context(), ids[i]); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			for range 50 {
				c.List()
				if _, err := c.Usage(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range ids {
		c.mustPull(t, r.Ref(fmt.Sprint("app:", i)))
	}
	for i, id := range ids {
		at := mounted(t, c, id)
		imagetest.WantFile(t, at("f"), fmt.Sprint(i))
		imagetest.WantFile(t, at("shared"), "shared")
	}
	c = reopen(t, c.cfg.Root)
	if n := len(c.List()); n != 4 {
		t.Errorf("%d images after a restart", n)
	}
	for _, id := range ids {
		imagetest.Must(t, c.Remove(t.Context(), id))
	}
	c.wantNothing(t)
}

func (c *Images) pinned(key string) bool {
	users, _ := c.garbage.Pins.State(key)
	return users > 0
}

// TestRemoveDuringPull checks that a removal keeps data that a pull in progress needs.
func TestRemoveDuringPull(t *testing.T) {
	r := imagetest.NewRegistry(t)
	shared, slow := imagetest.Gzip(imagetest.Tar(t, imagetest.File("shared"), "shared")), imagetest.Gzip(imagetest.Noise(t, 1000))
	a, _ := r.Build("a", []imagetest.Layer{shared}, nil)
	b, _ := r.Build("b", []imagetest.Layer{shared, slow}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:a"))
	g := newGate(r, digest.FromBytes(slow.Blob))
	errs := make(chan error)
	go func() {
		_, err := c.Pull(t.Context(), r.Ref("app:b"), nil)
		errs <- err
	}()
	<-g.arrived
	waitFor(t, func() bool {
		return c.pinned(content.BlobKey(digest.FromBytes(shared.Blob))) && c.pinned(content.LayerPrefix+string(digest.FromBytes(shared.Tar)))
	})
	imagetest.Must(t, c.Remove(t.Context(), a))
	close(g.open)
	imagetest.Must(t, <-errs)
	imagetest.WantFile(t, mounted(t, c, b)("shared"), "shared")
	imagetest.Must(t, c.Remove(t.Context(), b))
	c.wantNothing(t)
}

// TestRemoveThatCannotIsUndone checks that the image stays complete if its record cannot be
// deleted.
func TestRemoveThatCannotIsUndone(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	path := recordFile(c, id)
	b, err := os.ReadFile(path)
	imagetest.Must(t, err)
	imagetest.Must(t, os.Remove(path))
	imagetest.Must(t, os.MkdirAll(filepath.Join(path, "in the way"), 0o755))
	if err := c.Remove(t.Context(), id); err == nil {
		t.Fatal("removed")
	}
	imagetest.WantFile(t, mounted(t, c, id)("f"), "x")
	imagetest.Must(t, tree.Remove(context.Background(), path))
	imagetest.Must(t, os.WriteFile(path, b, 0o600))
	imagetest.Must(t, c.Remove(t.Context(), r.Ref("app:1")))
	c.wantNothing(t)
}
