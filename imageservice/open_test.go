package imageservice

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/content"
	"github.com/cribox/cribox/imageservice/garbage"
	"github.com/cribox/cribox/imageservice/imagetest"
)

func reopen(t testing.TB, root string) *Images {
	t.Helper()
	c, err := Open(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReopen(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil)
	c := newImages(t, nil)
	img := c.mustPull(t, r.Ref("app:1"))
	again := reopen(t, c.cfg.Root)
	if got := fmt.Sprint(again.List()); got != fmt.Sprint(c.List()) {
		t.Errorf("%s\nwas %v", got, c.List())
	}
	imagetest.WantFile(t, mounted(t, again, img.ID)("f"), "one")
	if _, err := os.Stat(filepath.Join(c.cfg.Root, "content", "oci-layout")); err != nil {
		t.Error(err)
	}
	for _, d := range []string{"content", "layers", "images"} {
		if info, err := os.Stat(filepath.Join(c.cfg.Root, d)); err != nil || info.Mode().Perm() != 0o700 {
			t.Error(d, info.Mode(), err)
		}
	}
}

// TestNewerRecordRefusesToOpen checks that Open fails after a downgrade, and that it keeps the
// records and layers of the newer version.
func TestNewerRecordRefusesToOpen(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	path, layer := recordFile(c, id), layersOf(t, c, id)[0]
	b, err := os.ReadFile(path)
	imagetest.Must(t, err)
	imagetest.Must(t, os.WriteFile(path, bytes.Replace(b, []byte(`"format":1`), []byte(`"format":2`), 1), 0o600))
	if _, err := Open(t.Context(), Config{Root: c.cfg.Root}); err == nil {
		t.Error("opened")
	}
	for _, kept := range []string{path, layer} {
		if _, err := os.Stat(kept); err != nil {
			t.Error(err)
		}
	}
}

// TestDamagedRecordKeepsMountedLayers checks that mounted layers are kept if their image's record is
// damaged, because a container may run on them.
func TestDamagedRecordKeepsMountedLayers(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	file := mounted(t, c, id)
	imagetest.Must(t, os.WriteFile(recordFile(c, id), nil, 0o600))
	if l := reopen(t, c.cfg.Root).List(); len(l) != 0 {
		t.Errorf("%v", l)
	}
	imagetest.WantFile(t, file("f"), "one")
}

func TestTornRecords(t *testing.T) {
	for name, tear := range map[string]func(t *testing.T, c *Images, record string, b []byte){
		"empty": func(t *testing.T, _ *Images, p string, _ []byte) { imagetest.Must(t, os.WriteFile(p, nil, 0o600)) },
		"half": func(t *testing.T, _ *Images, p string, b []byte) {
			imagetest.Must(t, os.WriteFile(p, b[:len(b)/2], 0o600))
		},
		"zeros": func(t *testing.T, _ *Images, p string, b []byte) {
			imagetest.Must(t, os.WriteFile(p, make([]byte, len(b)), 0o600))
		},
		"a flipped name": func(t *testing.T, _ *Images, p string, b []byte) {
			imagetest.Must(t, os.WriteFile(p, bytes.Replace(b, []byte("app:1"), []byte("apq:1"), 1), 0o600))
		},
		"other image's": func(t *testing.T, _ *Images, p string, b []byte) {
			imagetest.Must(t, os.Rename(p, filepath.Join(filepath.Dir(p), someHex)))
		},
		"a directory": func(t *testing.T, _ *Images, p string, b []byte) {
			imagetest.Must(t, os.Remove(p))
			imagetest.Must(t, os.Mkdir(p, 0o700))
		},
		"layer gone": func(t *testing.T, c *Images, p string, _ []byte) {
			imagetest.Must(t, os.RemoveAll(layersOf(t, c, "sha256:"+filepath.Base(p))[0]))
		},
		"config spoilt": func(t *testing.T, c *Images, p string, _ []byte) {
			d := c.blobs.Path(digest.Digest("sha256:" + filepath.Base(p)))
			b, err := os.ReadFile(d)
			imagetest.Must(t, err)
			b[10] ^= 1
			imagetest.Must(t, os.WriteFile(d, b, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil)
			other, _ := r.Build("2", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "two"))}, nil)
			c := newImages(t, nil)
			c.mustPull(t, r.Ref("app:1"))
			c.mustPull(t, r.Ref("app:2"))
			path := recordFile(c, id)
			b, err := os.ReadFile(path)
			imagetest.Must(t, err)
			tear(t, c, path, b)
			c = reopen(t, c.cfg.Root)
			if l := c.List(); len(l) != 1 || l[0].ID != other {
				t.Errorf("%v", l)
			}
			if torn, _ := filepath.Glob(filepath.Join(c.cfg.Root, "images", "*.torn")); len(torn) != 1 {
				t.Errorf("set aside: %q", torn)
			}
			// Pulling again repairs the image.
			if img := c.mustPull(t, r.Ref("app:1")); img.ID != id {
				t.Error(img)
			}
			imagetest.WantFile(t, mounted(t, c, id)("f"), "one")
			if c = reopen(t, c.cfg.Root); len(c.List()) != 2 {
				t.Error(c.List())
			}
		})
	}
}

func recordFile(c *Images, id string) string {
	return filepath.Join(c.cfg.Root, "images", strings.TrimPrefix(id, "sha256:"))
}

// layersOf returns the folders of an image's layers, topmost first.
func layersOf(t testing.TB, c *Images, id string) []string {
	t.Helper()
	files, err := c.Layers(id)
	imagetest.Must(t, err)
	for i := range files {
		files[i] = filepath.Dir(files[i])
	}
	return files
}

func TestOrphansGo(t *testing.T) {
	c := newImages(t, nil)
	for _, d := range []string{"layers/7/fs/etc", "layers/junk", "content/ingest/abc"} {
		imagetest.Must(t, os.MkdirAll(filepath.Join(c.cfg.Root, d), 0o755))
	}
	imagetest.Must(t, os.WriteFile(filepath.Join(c.cfg.Root, "images", someHex+".tmp"), nil, 0o600))
	c = reopen(t, c.cfg.Root)
	c.wantNothing(t)
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
	c.mustPull(t, r.Ref("app:1"))
	if dir := layersOf(t, c, id)[0]; filepath.Base(dir) != "8" {
		t.Errorf("next layer is %s", dir)
	}
}

// crashes has a step function that copies the root folder at every step, as a crash would leave it.
type crashes struct {
	t    testing.TB
	root string
	mu   sync.Mutex
	at   []string // step names
	dirs []string
	on   bool
}

func (c *crashes) step(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on {
		return
	}
	d := filepath.Join(c.t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", c.root, d).CombinedOutput(); err != nil && !strings.Contains(string(out), "No such file") {
		c.t.Errorf("copy at %s: %s", name, out)
	}
	c.at, c.dirs = append(c.at, name), append(c.dirs, d)
}

// TestCrashDuringPull checks every step at which a pull can be killed: after the next start the
// image is listed completely or not at all, the tag belongs to the old or the new image, and
// pulling again works.
func TestCrashDuringPull(t *testing.T) {
	r := imagetest.NewRegistry(t)
	oldID, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "old"))}, nil)
	k := &crashes{t: t, root: filepath.Join(t.TempDir(), "root")}
	c := newImages(t, func(c *Config) { c.Root, c.Step, c.MaxDownloads = k.root, k.step, 1 }) // one partial download at a time
	c.mustPull(t, r.Ref("app:1"))
	newID, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "new")), imagetest.Zstd(imagetest.Noise(t, 10_000))}, nil)
	k.mu.Lock()
	k.on = true
	k.mu.Unlock()
	c.mustPull(t, r.Ref("app:1"))
	k.mu.Lock()
	k.on = false
	k.mu.Unlock()
	for _, want := range []string{"pull.resolved", "pull.blob.written", "pull.unpacked", "pull.synced", "pull.record.written", "pull.recorded", "pull.moved"} {
		if !slices.Contains(k.at, want) {
			t.Errorf("step %s is not passed", want)
		}
	}
	synced := slices.Index(k.at, "pull.synced")
	if late := k.at[synced+1:]; slices.Contains(late, "pull.blob.written") || slices.Contains(late, "pull.unpacked") || slices.Index(k.at, "pull.record.written") < synced {
		t.Errorf("order of steps %q", k.at)
	}
	for i, dir := range k.dirs {
		t.Run(fmt.Sprint(i, " ", k.at[i]), func(t *testing.T) {
			c := reopen(t, dir)
			img, err := c.Lookup(r.Ref("app:1"))
			imagetest.Must(t, err)
			recorded := i >= slices.Index(k.at, "pull.recorded")
			if want := map[bool]string{false: oldID, true: newID}[recorded]; img.ID != want {
				t.Errorf("the tag is at %s, want %s", img.ID, want)
			}
			if old, err := c.Lookup(oldID); err != nil || len(old.RepoDigests) != 1 {
				t.Errorf("the old image: %+v %v", old, err)
			}
			if n := len(c.List()); n != map[bool]int{false: 1, true: 2}[recorded] {
				t.Errorf("%d images", n)
			}
			layers, _ := filepath.Glob(filepath.Join(dir, "layers", "[0-9]*"))
			if len(layers) != map[bool]int{false: 1, true: 3}[recorded] {
				t.Errorf("layers %q", layers)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "content", "ingest", "*")); len(left) > 0 {
				t.Errorf("partial downloads %q", left)
			}
			if img := c.mustPull(t, r.Ref("app:1")); img.ID != newID {
				t.Error(img)
			}
			imagetest.WantFile(t, mounted(t, c, newID)("f"), "new")
			imagetest.WantFile(t, mounted(t, c, oldID)("f"), "old")
			imagetest.Must(t, c.Remove(t.Context(), newID))
			c = reopen(t, dir)
			if img, err := c.Lookup(r.Ref("app:1")); err == nil {
				t.Errorf("the tag came back to %s", img.ID)
			}
		})
	}
}

func TestCrashDuringRemove(t *testing.T) {
	r := imagetest.NewRegistry(t)
	shared := imagetest.Gzip(imagetest.Tar(t, imagetest.File("shared"), "shared"))
	id, _ := r.Build("1", []imagetest.Layer{shared, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil)
	other, _ := r.Build("2", []imagetest.Layer{shared, imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "two"))}, nil)
	k := &crashes{t: t, root: filepath.Join(t.TempDir(), "root")}
	c := newImages(t, func(c *Config) { c.Root, c.Step = k.root, k.step })
	c.mustPull(t, r.Ref("app:1"))
	c.mustPull(t, r.Ref("app:2"))
	k.on = true
	imagetest.Must(t, c.Remove(t.Context(), id))
	k.on = false
	for _, want := range []string{"remove.unrecorded", "remove.blob.gone", "remove.layer.gone"} {
		if !slices.Contains(k.at, want) {
			t.Errorf("step %s is not passed", want)
		}
	}
	for i, dir := range k.dirs {
		c := reopen(t, dir)
		if l := c.List(); len(l) != 1 || l[0].ID != other {
			t.Errorf("%s: %v", k.at[i], l)
		}
		at := mounted(t, c, other)
		imagetest.WantFile(t, at("f"), "two")
		imagetest.WantFile(t, at("shared"), "shared")
		c.mustPull(t, r.Ref("app:1"))
		imagetest.WantFile(t, mounted(t, c, id)("f"), "one")
	}
}

// TestDebris checks that data of a failed pull is deleted after its retention, and that a complete
// blob is hashed again and then used or replaced.
func TestDebris(t *testing.T) {
	r := imagetest.NewRegistry(t)
	good, bad := imagetest.Gzip(imagetest.Noise(t, 10_000)), imagetest.Gzip(imagetest.Noise(t, 20_000))
	id, _ := r.Build("1", []imagetest.Layer{good, bad}, nil)
	c := newImages(t, nil)
	blob := func(l imagetest.Layer) string { return c.blobs.Path(digest.FromBytes(l.Blob)) }
	imagetest.Must(t, os.MkdirAll(filepath.Dir(blob(good)), 0o755))
	imagetest.Must(t, os.WriteFile(blob(good), good.Blob, 0o400))
	imagetest.Must(t, unix.Lsetxattr(blob(good), content.SenderAttribute, []byte(r.Ref("app")), 0))
	imagetest.Must(t, os.WriteFile(blob(bad), bytes.Repeat([]byte("x"), len(bad.Blob)), 0o400))
	c.mustPull(t, r.Ref("app:1"))
	if n := r.Count("GET /v2/app/blobs/" + digest.FromBytes(good.Blob).String()); n != 0 {
		t.Error("a whole blob is fetched again")
	}
	if info, err := os.Stat(mounted(t, c, id)("noise")); err != nil || info.Size() != 20_000 {
		t.Error(info, err)
	}
	orphan := c.blobs.Path(digest.FromString("orphan"))
	imagetest.Must(t, os.WriteFile(orphan, []byte("orphan"), 0o400))
	if c.garbage.Sweep(longAgo()); !exists(orphan) {
		t.Error("young debris is swept")
	}
	if c.garbage.Sweep(tomorrow()); exists(orphan) {
		t.Error("debris stays")
	}
	if !exists(blob(good)) || !exists(blob(bad)) || len(c.List()) != 1 {
		t.Error("the sweep takes what is in use")
	}
}

func TestShowsLayer(t *testing.T) {
	const layer = "/root/layers/12/fs"
	for options, want := range map[string]bool{
		"rw,lowerdir+=/root/layers/12/fs,lowerdir+=/root/layers/3/fs,upperdir=/u": true,
		"rw,lowerdir=12/fs,upperdir=/u":                                           true, "rw,lowerdir=3/fs:12/fs": true, "ro,lowerdir=3/fs:12/fs:4/fs": true,
		"rw,lowerdir=3/fs:112/fs": false, "rw,lowerdir=/root/layers/2/fs": false, "rw,upperdir=/x/12/fs": false, "rw,lowerdir=12/fsx": false,
	} {
		if got := garbage.ShowsLayer(options, layer); got != want {
			t.Errorf("%s: %v", options, got)
		}
	}
}

// TestRootModeOfOlderLayers checks that Open makes the root of a layer of an older version
// readable.
func TestRootModeOfOlderLayers(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	layers, err := c.Layers(id)
	imagetest.Must(t, err)
	imagetest.Must(t, os.Chmod(layers[0], 0o700))
	reopen(t, c.cfg.Root)
	if info, err := os.Stat(layers[0]); err != nil || info.Mode().Perm() != 0o755 {
		t.Error(info.Mode(), err)
	}
}

// TestUnreadableRecord checks that an image is not listed while its record is temporarily
// unreadable, that nothing is deleted meanwhile, and that everything else works.
func TestUnreadableRecord(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil)
	r.Build("2", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "one"))}, nil) // the same layer
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	c.mustPull(t, r.Ref("app:2"))
	path, kept := recordFile(c, id), filepath.Join(t.TempDir(), "kept")
	whole, err := os.ReadFile(path)
	imagetest.Must(t, errors.Join(err, os.Rename(path, kept), os.Symlink(filepath.Base(path), path))) // a link to itself
	c = reopen(t, c.cfg.Root)
	if l := c.List(); len(l) != 1 || l[0].ID == id {
		t.Errorf("listed: %v", l)
	}
	imagetest.Must(t, c.Hold(id, "container"))
	imagetest.Must(t, c.Remove(t.Context(), r.Ref("app:2")))
	if !c.garbage.Sweep(time.Now().Add(time.Hour)) {
		t.Error("the sweep does not come again")
	}
	imagetest.Must(t, errors.Join(os.Remove(path), os.WriteFile(path, whole, 0o600)))
	c.garbage.Sweep(time.Now().Add(time.Hour))
	img, err := c.Lookup(r.Ref("app:1"))
	if err != nil || img.ID != id {
		t.Fatalf("read again: %+v, %v", img, err)
	}
	imagetest.WantFile(t, mounted(t, c, id)("f"), "one")
	if err := c.Remove(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed while it is held: %v", err)
	}
}
