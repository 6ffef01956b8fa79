package imageservice

import (
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
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func longAgo() time.Time  { return time.Now().Add(-time.Hour) }
func tomorrow() time.Time { return time.Now().Add(time.Hour) }

func TestRemoveSharesLayers(t *testing.T) {
	r := newRegistry(t)
	shared := gzipLayer(tarOf(t, reg("shared"), "shared"))
	a, _ := r.build("a", []testLayer{shared, gzipLayer(tarOf(t, reg("f"), "a"))}, nil)
	b, _ := r.build("b", []testLayer{shared, gzipLayer(tarOf(t, reg("f"), "b"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:a"))
	c.mustPull(t, r.ref("app:b"))
	if n := r.count("GET /v2/app/blobs/" + digest.FromBytes(shared.blob).String()); n != 1 {
		t.Errorf("shared layer fetched %d times", n)
	}
	if layers, _ := filepath.Glob(filepath.Join(c.cfg.Root, "layers", "[0-9]*")); len(layers) != 3 {
		t.Errorf("layers %q", layers)
	}
	must(t, c.Remove(t.Context(), r.ref("app:a")))
	if _, err := c.Lookup(a); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	at := mounted(t, c, b)
	wantFile(t, at("shared"), "shared")
	wantFile(t, at("f"), "b")
	if layers, _ := filepath.Glob(filepath.Join(c.cfg.Root, "layers", "[0-9]*")); len(layers) != 2 {
		t.Errorf("layers %q", layers)
	}
	must(t, c.Remove(t.Context(), b))
	c.wantNothing(t)
	for _, absent := range []string{b, "sha256:" + someHex, someHex, r.ref("app:a"), "nobody/knows:it"} {
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
	r := newRegistry(t)
	l := []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}
	id, _ := r.build("1", l, nil)
	r.mu.Lock()
	r.manifests["2"] = r.manifests["1"]
	r.mu.Unlock()
	for _, by := range []string{id, strings.TrimPrefix(id, "sha256:"), id[7:14], r.ref("app:2"), r.ref("other@") + "DIGEST"} {
		c := newImages(t, nil)
		c.mustPull(t, r.ref("app:1"))
		c.mustPull(t, r.ref("app:2"))
		img := c.mustPull(t, r.ref("other:1"))
		if len(img.RepoTags) != 3 || len(img.RepoDigests) != 2 {
			t.Fatalf("%+v", img)
		}
		by = strings.Replace(by, "DIGEST", strings.Split(img.RepoDigests[0], "@")[1], 1)
		must(t, c.Remove(t.Context(), by))
		c.wantNothing(t)
	}
}

func TestHold(t *testing.T) {
	r := newRegistry(t)
	id, _ := r.build("1", []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	c := newImages(t, nil)
	if err := c.Hold(id, "c1"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	c.mustPull(t, r.ref("app:1"))
	must(t, c.Hold(id, "c1"))
	must(t, c.Hold(id, "c1"))
	must(t, c.Hold(id, "c2"))
	for _, holder := range []string{"c1", "c2"} {
		if err := c.Remove(t.Context(), id); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), holder) {
			t.Error(err)
		}
		c.Release(id, holder)
	}
	c.Release(id, "nobody")
	c.Release("nothing", "nobody")
	must(t, c.Remove(t.Context(), id))
	c.wantNothing(t)
}

func TestPinned(t *testing.T) {
	r := newRegistry(t)
	id, _ := r.build("1", nil, nil)
	c := newImages(t, func(c *Config) { c.Pinned = []string{r.ref("pause:1")} })
	c.mustPull(t, r.ref("app:1"))
	if img, _ := c.Lookup(id); img.Pinned {
		t.Error("pinned without its name")
	}
	if img := c.mustPull(t, r.ref("pause:1")); !img.Pinned {
		t.Error("not pinned")
	}
	for pattern, want := range map[string]bool{"*": true, "*/app:*": true, r.ref("app:1"): true, r.ref("app"): false, "app:1": false, "*/app:": false, "*/ap.:1": false} {
		c.SetPinned([]string{"nothing", pattern})
		if list := c.List(); list[0].Pinned != want {
			t.Errorf("pinned by %s: %v, want %v", pattern, !want, want)
		}
	}
	must(t, c.Remove(t.Context(), id)) // to pin is a recommendation
	c.wantNothing(t)
}

func TestTagMoves(t *testing.T) {
	r := newRegistry(t)
	oldID, oldDesc := r.build("1", []testLayer{gzipLayer(tarOf(t, reg("f"), "old"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	n := r.count("GET /v2/app/manifests/")
	c.mustPull(t, r.ref("app:1"))
	if r.count("GET /v2/app/manifests/") != n {
		t.Error("an unchanged manifest is fetched again")
	}
	newID, _ := r.build("1", []testLayer{gzipLayer(tarOf(t, reg("f"), "new"))}, nil)
	c.mustPull(t, r.ref("app:1"))
	for range 2 {
		img, err := c.Lookup(r.ref("app:1"))
		if err != nil || img.ID != newID {
			t.Error(img, err)
		}
		old, err := c.Lookup(oldID)
		if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 || old.RepoDigests[0] != r.ref("app@"+oldDesc.Digest.String()) {
			t.Errorf("%+v %v", old, err)
		}
		c = reopen(t, c.cfg.Root)
	}
	wantFile(t, mounted(t, c, oldID)("f"), "old")
}

func TestLookup(t *testing.T) {
	r := newRegistry(t)
	id, desc := r.build("1", nil, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	hex := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{id, hex, hex[:4], hex[:20], "sha256:" + hex[:12], r.ref("app:1"), r.ref("app@" + desc.Digest.String()), r.ref("app:7@" + desc.Digest.String())} {
		if img, err := c.Lookup(ref); err != nil || img.ID != id {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{someHex, r.ref("app"), r.ref("app:2"), hex[:3], "ffff" + hex[:20], r.ref("other@" + desc.Digest.String()), r.ref("app@" + "sha256:" + someHex)} {
		if _, err := c.Lookup(ref); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"", "UPPER", "../" + id, "a\x00"} {
		if _, err := c.Lookup(ref); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	for i := range 20 { // some two of them share a first digit, all of them the empty prefix
		c.catalog.records[fmt.Sprintf("sha256:beef%060d", i)] = &record{ID: fmt.Sprintf("sha256:beef%060d", i)}
	}
	if _, err := c.Lookup("beef"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ambiguous prefix: %v", err)
	}
}

// TestPullsAndRemovals: pulls and removals of images that share layers, all at once, end with every listed image whole.
func TestPullsAndRemovals(t *testing.T) {
	r := newRegistry(t)
	shared := gzipLayer(tarOf(t, reg("shared"), "shared"))
	ids := make([]string, 4)
	for i := range ids {
		ids[i], _ = r.build(fmt.Sprint(i), []testLayer{shared, gzipLayer(tarOf(t, reg("f"), fmt.Sprint(i)))}, nil)
	}
	c := newImages(t, nil)
	var wg sync.WaitGroup
	for i := range ids {
		for range 3 {
			wg.Go(func() {
				for range 5 {
					if _, err := c.Pull(t.Context(), r.ref(fmt.Sprint("app:", i)), nil); err != nil {
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
		c.mustPull(t, r.ref(fmt.Sprint("app:", i)))
	}
	for i, id := range ids {
		at := mounted(t, c, id)
		wantFile(t, at("f"), fmt.Sprint(i))
		wantFile(t, at("shared"), "shared")
	}
	c = reopen(t, c.cfg.Root)
	if n := len(c.List()); n != 4 {
		t.Errorf("%d images after a restart", n)
	}
	for _, id := range ids {
		must(t, c.Remove(t.Context(), id))
	}
	c.wantNothing(t)
}

func (c *Images) pinned(key string) bool {
	c.puller.pins.mu.Lock()
	defer c.puller.pins.mu.Unlock()
	return c.puller.pins.held[key] > 0
}

// TestRemoveDuringPull: a removal does not take what a pull is about to list.
func TestRemoveDuringPull(t *testing.T) {
	r := newRegistry(t)
	shared, slow := gzipLayer(tarOf(t, reg("shared"), "shared")), gzipLayer(noise(t, 1000))
	a, _ := r.build("a", []testLayer{shared}, nil)
	b, _ := r.build("b", []testLayer{shared, slow}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:a"))
	g := r.gate(digest.FromBytes(slow.blob))
	errs := make(chan error)
	go func() {
		_, err := c.Pull(t.Context(), r.ref("app:b"), nil)
		errs <- err
	}()
	<-g.arrived
	waitFor(t, func() bool {
		return c.pinned(blobKey(digest.FromBytes(shared.blob))) && c.pinned(layerPrefix+string(digest.FromBytes(shared.tar)))
	})
	must(t, c.Remove(t.Context(), a))
	close(g.open)
	must(t, <-errs)
	wantFile(t, mounted(t, c, b)("shared"), "shared")
	must(t, c.Remove(t.Context(), b))
	c.wantNothing(t)
}

// TestRemoveThatCannotIsUndone: when the record cannot be erased the image stays, whole.
func TestRemoveThatCannotIsUndone(t *testing.T) {
	r := newRegistry(t)
	id, _ := r.build("1", []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	path := c.catalog.path(id)
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.Remove(path))
	must(t, os.MkdirAll(filepath.Join(path, "in the way"), 0o755))
	if err := c.Remove(t.Context(), id); err == nil {
		t.Fatal("removed")
	}
	wantFile(t, mounted(t, c, id)("f"), "x")
	must(t, removeTree(path))
	must(t, os.WriteFile(path, b, 0o600))
	must(t, c.Remove(t.Context(), r.ref("app:1")))
	c.wantNothing(t)
}
