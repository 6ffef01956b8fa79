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
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/imagetest"
)

func TestMount(t *testing.T) {
	r := imagetest.NewRegistry(t)
	same := imagetest.Gzip(imagetest.Tar(t, imagetest.File("twice"), "twice"))
	many := make([]imagetest.Layer, 0, 200)
	for i := range 200 {
		many = append(many, imagetest.Gzip(imagetest.Tar(t, imagetest.File(fmt.Sprint("f", i)), fmt.Sprint(i), imagetest.File("top"), fmt.Sprint(i))))
	}
	images := map[string][]imagetest.Layer{
		"none":   {},
		"one":    {imagetest.Gzip(imagetest.Tar(t, imagetest.Dir("./", 0o711), imagetest.File("f"), "x"))},
		"empty":  {imagetest.Gzip(imagetest.Tar(t))},
		"twice":  {same, imagetest.Gzip(imagetest.Tar(t, imagetest.File(".wh.twice"))), same},
		"many":   many,
		"opaque": {imagetest.Gzip(imagetest.Tar(t, imagetest.File("hidden"), "x")), imagetest.Gzip(imagetest.Tar(t, imagetest.File(".wh..wh..opq"), imagetest.File("f"), "x"))},
	}
	c := newImages(t, nil)
	for name, layers := range images {
		id, _ := r.Build(name, layers, nil)
		c.mustPull(t, r.Ref("app:"+name))
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ro=", readOnly), func(t *testing.T) {
				base := filepath.Join(t.TempDir(), "a,b:c\\d")
				target := filepath.Join(base, "rootfs")
				rootfs := Rootfs{ImageID: id, Dir: filepath.Join(base, "c"), Target: target, ReadOnly: readOnly}
				imagetest.Must(t, c.Mount(t.Context(), rootfs))
				defer c.Unmount(context.Background(), target)
				at := func(f string) string { return filepath.Join(target, f) }
				switch name {
				case "one":
					imagetest.WantFile(t, at("f"), "x")
					if info, _ := os.Stat(target); info.Mode().Perm() != 0o755 {
						t.Error(info.Mode())
					}
				case "twice":
					imagetest.WantFile(t, at("twice"), "twice")
				case "many":
					imagetest.WantFile(t, at("top"), "199")
					imagetest.WantFile(t, at("f0"), "0")
				case "opaque":
					imagetest.WantFile(t, at("f"), "x")
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
				imagetest.Must(t, c.Unmount(t.Context(), target))
				imagetest.Must(t, c.Unmount(t.Context(), target))
				err := c.Mount(t.Context(), rootfs)
				if !readOnly && !errdefs.IsFailedPrecondition(err) || readOnly && err != nil {
					t.Errorf("mounted again: %v", err)
				}
				imagetest.Must(t, c.Unmount(t.Context(), target))
			})
		}
	}
	imagetest.Must(t, c.Unmount(t.Context(), filepath.Join(t.TempDir(), "nothing")))
	if err := c.Mount(t.Context(), Rootfs{ImageID: "sha256:" + someHex, Dir: "/x", Target: "/x"}); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), c.cfg.Root) {
		t.Error("mounts are left")
	}
}

func TestVolatileAndLongPaths(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200))
	c := newImages(t, func(c *Config) { c.Root = filepath.Join(long, "root") })
	c.mustPull(t, r.Ref("app:1"))
	target := filepath.Join(long, "rootfs")
	imagetest.Must(t, c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(long, "c"), Target: target}))
	imagetest.WantFile(t, filepath.Join(target, "f"), "x")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	imagetest.Must(t, err)
	if i := strings.Index(string(mounts), target); i < 0 || !strings.Contains(strings.SplitN(string(mounts[i:]), "\n", 2)[0], "volatile") {
		t.Error("not volatile")
	}
	imagetest.Must(t, c.Unmount(t.Context(), target))
}

func TestUnmountBusy(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	target := filepath.Join(t.TempDir(), "rootfs")
	imagetest.Must(t, c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(t.TempDir(), "c"), Target: target}))
	f, err := os.Open(filepath.Join(target, "f"))
	imagetest.Must(t, err)
	defer f.Close()
	imagetest.Must(t, c.Unmount(t.Context(), target))
	if m, err := mountinfo.Mounted(target); err != nil || m {
		t.Error("still mounted", err)
	}
}

// TestUnmountFrees: the second mount that Unmount keeps for a moment goes too.
func TestUnmountFrees(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	target := filepath.Join(t.TempDir(), "rootfs")
	imagetest.Must(t, c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(t.TempDir(), "c"), Target: target}))
	imagetest.Must(t, c.Unmount(t.Context(), target))
	for end := time.Now().Add(time.Minute); unattached(t) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a mount is kept")
		}
	}
}

// unattached returns how many mounts this process has a descriptor of that are attached nowhere.
func unattached(t *testing.T) (n int) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	imagetest.Must(t, err)
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	imagetest.Must(t, err)
	for _, file := range files {
		info, _ := os.ReadFile(file)
		var pos, mount int
		var flags int64
		_, err := fmt.Sscanf(string(info), "pos: %d\nflags: 0%o\nmnt_id: %d", &pos, &flags, &mount)
		if err == nil && flags&unix.O_PATH != 0 && !strings.Contains("\n"+string(mounts), fmt.Sprintf("\n%d ", mount)) {
			n++
		}
	}
	return n
}

func TestCheckHost(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	imagetest.Must(t, CheckHost(root))
	if left, _ := os.ReadDir(root); len(left) > 0 {
		t.Error(left)
	}
	if err := CheckHost("/proc/nothing"); err == nil {
		t.Error("/proc will do")
	}
}

// TestImpliedDirectories checks that a layer without an entry for a directory does not change the
// metadata of that directory, and that images with different bases do not affect each other.
func TestImpliedDirectories(t *testing.T) {
	r := imagetest.NewRegistry(t)
	owned := func(h tar.Header) tar.Header { h.Uid, h.Gid = 7, 8; return h }
	base := imagetest.Gzip(imagetest.Tar(t, owned(imagetest.Dir("tmp", 0o1777)), imagetest.Dir("gone", 0o700), imagetest.Dir("opaque", 0o755), imagetest.Dir("opaque/d", 0o700)))
	middle := imagetest.Gzip(imagetest.Tar(t, imagetest.File(".wh.gone"), imagetest.File("opaque/.wh..wh..opq")))
	evil := imagetest.Gzip(imagetest.Tar(t, imagetest.Dir("tmp", 0o777), imagetest.Dir("gone", 0o777), imagetest.Dir("etc", 0o777)))
	top := imagetest.Gzip(imagetest.Tar(t, imagetest.File("tmp/f"), "x", imagetest.File("gone/f"), "x", imagetest.File("etc/f"), "x", imagetest.File("opaque/d/f"), "x"))
	first, _ := r.Build("evil", []imagetest.Layer{evil, top}, nil)
	good, _ := r.Build("good", []imagetest.Layer{base, middle, top}, nil)
	plain, _ := r.Build("plain", []imagetest.Layer{top}, nil)
	c := newImages(t, nil)
	for _, tag := range []string{"evil", "good", "plain"} {
		c.mustPull(t, r.Ref("app:"+tag))
	}
	c = reopen(t, c.cfg.Root)
	c.mustPull(t, r.Ref("app:good"))
	check := func(id, name, want string) {
		t.Helper()
		info, err := os.Stat(mounted(t, c, id)(name))
		imagetest.Must(t, err)
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
		imagetest.Must(t, c.Remove(t.Context(), id))
	}
	c.wantNothing(t)
}

func TestUsage(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 3<<20)), imagetest.Gzip(imagetest.Tar(t, imagetest.File("a/b/c"), "x", imagetest.Hard("d", "a/b/c")))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	for range 2 {
		u, err := c.Usage(t.Context())
		imagetest.Must(t, err)
		want := map[string]uint64{}
		for _, flag := range []string{"-sB1", "--inodes"} {
			out, err := exec.Command("du", append([]string{"-s", flag}, filepath.Join(c.cfg.Root, "content"), filepath.Join(c.cfg.Root, "layers"), filepath.Join(c.cfg.Root, "images"))...).Output()
			imagetest.Must(t, err)
			for line := range strings.Lines(string(out)) {
				n, err := strconv.ParseUint(strings.Fields(line)[0], 10, 64)
				imagetest.Must(t, err)
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
