package imageservice

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

func TestMount(t *testing.T) {
	r := newRegistry(t)
	same := gzipLayer(tarOf(t, reg("twice"), "twice"))
	many := make([]testLayer, 0, 200)
	for i := range 200 {
		many = append(many, gzipLayer(tarOf(t, reg(fmt.Sprint("f", i)), fmt.Sprint(i), reg("top"), fmt.Sprint(i))))
	}
	images := map[string][]testLayer{
		"none":   {},
		"one":    {gzipLayer(tarOf(t, dir("./", 0o711), reg("f"), "x"))},
		"empty":  {gzipLayer(tarOf(t))},
		"twice":  {same, gzipLayer(tarOf(t, reg(".wh.twice"))), same},
		"many":   many,
		"opaque": {gzipLayer(tarOf(t, reg("hidden"), "x")), gzipLayer(tarOf(t, reg(".wh..wh..opq"), reg("f"), "x"))},
	}
	c := newImages(t, nil)
	for name, layers := range images {
		id, _ := r.build(name, layers, nil)
		c.mustPull(t, r.ref("app:"+name))
		for _, old := range []bool{false, true} {
			for _, readOnly := range []bool{false, true} {
				t.Run(fmt.Sprint(name, " old=", old, " ro=", readOnly), func(t *testing.T) {
					base := filepath.Join(t.TempDir(), "a,b:c\\d")
					target := filepath.Join(base, "rootfs")
					rootfs := Rootfs{ImageID: id, Dir: filepath.Join(base, "c"), Target: target, ReadOnly: readOnly}
					if old {
						image, err := c.catalog.record(id)
						must(t, err)
						o := overlay{layers: c.layers.root, lower: image.stack(), target: target}
						must(t, o.prepare(rootfs))
						must(t, o.mountOld())
					} else {
						must(t, c.Mount(t.Context(), rootfs))
					}
					defer c.Unmount(context.Background(), target)
					at := func(f string) string { return filepath.Join(target, f) }
					switch name {
					case "one":
						wantFile(t, at("f"), "x")
						if info, _ := os.Stat(target); info.Mode().Perm() != 0o755 {
							t.Error(info.Mode())
						}
					case "twice":
						wantFile(t, at("twice"), "twice")
					case "many":
						wantFile(t, at("top"), "199")
						wantFile(t, at("f0"), "0")
					case "opaque":
						wantFile(t, at("f"), "x")
						if exists(at("hidden")) {
							t.Error("an opaque root hides nothing")
						}
					}
					if err := os.WriteFile(at("new"), []byte("new"), 0o600); (err != nil) != readOnly {
						t.Error(err)
					}
					if err := c.Mount(t.Context(), rootfs); !errdefs.IsFailedPrecondition(err) {
						t.Errorf("mounted twice: %v", err)
					}
					must(t, c.Unmount(t.Context(), target))
					must(t, c.Unmount(t.Context(), target))
					err := c.Mount(t.Context(), rootfs)
					if !readOnly && !errdefs.IsFailedPrecondition(err) || readOnly && err != nil {
						t.Errorf("mounted again: %v", err)
					}
					must(t, c.Unmount(t.Context(), target))
				})
			}
		}
	}
	must(t, c.Unmount(t.Context(), filepath.Join(t.TempDir(), "nothing")))
	if err := c.Mount(t.Context(), Rootfs{ImageID: "sha256:" + someHex, Dir: "/x", Target: "/x"}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), c.cfg.Root) {
		t.Error("mounts are left")
	}
}

func TestVolatileAndLongPaths(t *testing.T) {
	r := newRegistry(t)
	id, _ := r.build("1", []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	c := newImages(t, func(c *Config) { c.Root = filepath.Join(long, "root") })
	c.mustPull(t, r.ref("app:1"))
	target := filepath.Join(long, "rootfs")
	must(t, c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(long, "c"), Target: target}))
	wantFile(t, filepath.Join(target, "f"), "x")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if i := strings.Index(string(mounts), target); i < 0 || !strings.Contains(strings.SplitN(string(mounts[i:]), "\n", 2)[0], "volatile") {
		t.Error("not volatile")
	}
	must(t, c.Unmount(t.Context(), target))
}

func TestUnmountBusy(t *testing.T) {
	r := newRegistry(t)
	id, _ := r.build("1", []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	target := filepath.Join(t.TempDir(), "rootfs")
	must(t, c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(t.TempDir(), "c"), Target: target}))
	f, err := os.Open(filepath.Join(target, "f"))
	must(t, err)
	defer f.Close()
	must(t, c.Unmount(t.Context(), target))
	if m, err := isMountpoint(target); err != nil || m {
		t.Error("still mounted", err)
	}
}

func TestCheckHost(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, CheckHost(root))
	if left, _ := os.ReadDir(root); len(left) > 0 {
		t.Error(left)
	}
	if err := CheckHost("/proc/nothing"); err == nil {
		t.Error("/proc will do")
	}
}

// TestImpliedDirectories: a layer that names a file but not its directory does not change the directory of the layers below, and an
// image with another base does not get the first one's.
func TestImpliedDirectories(t *testing.T) {
	r := newRegistry(t)
	owned := func(h tar.Header) tar.Header { h.Uid, h.Gid = 7, 8; return h }
	base := gzipLayer(tarOf(t, owned(dir("tmp", 0o1777)), dir("gone", 0o700), dir("opaque", 0o755), dir("opaque/d", 0o700)))
	middle := gzipLayer(tarOf(t, reg(".wh.gone"), reg("opaque/.wh..wh..opq")))
	evil := gzipLayer(tarOf(t, dir("tmp", 0o777), dir("gone", 0o777), dir("etc", 0o777)))
	top := gzipLayer(tarOf(t, reg("tmp/f"), "x", reg("gone/f"), "x", reg("etc/f"), "x", reg("opaque/d/f"), "x"))
	first, _ := r.build("evil", []testLayer{evil, top}, nil)
	good, _ := r.build("good", []testLayer{base, middle, top}, nil)
	plain, _ := r.build("plain", []testLayer{top}, nil)
	c := newImages(t, nil)
	for _, tag := range []string{"evil", "good", "plain"} {
		c.mustPull(t, r.ref("app:"+tag))
	}
	c = reopen(t, c.cfg.Root)
	c.mustPull(t, r.ref("app:good"))
	check := func(id, name, want string) {
		t.Helper()
		info, err := os.Stat(mounted(t, c, id)(name))
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if got := fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid); got != want {
			t.Errorf("%s of %s is %s, want %s", name, id, got, want)
		}
	}
	check(good, "tmp", "1777 7:8")
	check(good, "gone", "755 0:0")
	check(good, "etc", "755 0:0")
	check(good, "opaque/d", "755 0:0")
	check(first, "tmp", "777 0:0")
	check(first, "etc", "777 0:0")
	check(plain, "tmp", "755 0:0")
	for _, id := range []string{first, good, plain} {
		must(t, c.Remove(t.Context(), id))
	}
	c.wantNothing(t)
}

func TestUsage(t *testing.T) {
	r := newRegistry(t)
	r.build("1", []testLayer{gzipLayer(noise(t, 3<<20)), gzipLayer(tarOf(t, reg("a/b/c"), "x", hard("d", "a/b/c")))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	for range 2 {
		u, err := c.Usage(t.Context())
		must(t, err)
		want := map[string]uint64{}
		for _, flag := range []string{"-sB1", "--inodes"} {
			out, err := exec.Command("du", append([]string{"-s", flag}, filepath.Join(c.cfg.Root, "content"), filepath.Join(c.cfg.Root, "layers"), filepath.Join(c.cfg.Root, "images"))...).Output()
			must(t, err)
			for line := range strings.Lines(string(out)) {
				n, err := strconv.ParseUint(strings.Fields(line)[0], 10, 64)
				must(t, err)
				want[flag] += n
			}
		}
		if d := diff(u.Bytes, want["-sB1"]); d > want["-sB1"]/50 {
			t.Errorf("%d bytes, du says %d", u.Bytes, want["-sB1"])
		}
		if d := diff(u.Inodes, want["--inodes"]); d > 3 {
			t.Errorf("%d inodes, du says %d", u.Inodes, want["--inodes"])
		}
		if u.Mountpoint != c.cfg.Root || u.At.IsZero() {
			t.Errorf("%+v", u)
		}
		c = reopen(t, c.cfg.Root)
	}
}

func diff(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// TestMadeUpDirectoriesAreBounded: looking for them ends with the caller, and when it is too much for one image.
func TestMadeUpDirectoriesAreBounded(t *testing.T) {
	r := newRegistry(t)
	id, _ := r.build("1", []testLayer{gzipLayer(tarOf(t, dir("a", 0o700)))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:1"))
	below := []*layer{&c.catalog.records[id].Layers[0]}
	ft := &fetcher{by: c.puller}
	if fixes, err := ft.fixesFor(t.Context(), []string{"a", "b"}, below); err != nil || len(fixes) != 1 || fixes[0].Name != "a" {
		t.Error(fixes, err)
	}
	ft.looks = maxLooks - 3
	if _, err := ft.fixesFor(t.Context(), []string{"a", "b"}, below); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&fetcher{by: c.puller}).fixesFor(ctx, []string{"a"}, below); !errdefs.IsCanceled(err) {
		t.Error(err)
	}
}
