package imageservice

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestNothingLeaks: pulls that succeed, fail, stall and are cancelled leave no goroutine and no descriptor.
func TestNothingLeaks(t *testing.T) {
	r := newRegistry(t)
	good := gzipLayer(noise(t, 100_000))
	bad := zstdLayer(noise(t, 100_000))
	bad.diffID = digest.FromString("lie")
	slow := gzipLayer(noise(t, 200_000))
	id, _ := r.build("good", []testLayer{good}, nil)
	r.build("bad", []testLayer{good, bad}, nil)
	r.build("slow", []testLayer{good, slow}, nil)
	r.intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if isBlobGet(q, digest.FromBytes(slow.blob)) {
			w.Header().Set("Content-Length", "1000000")
			w.Write(slow.blob[:1000])
			w.(http.Flusher).Flush()
			<-q.Context().Done()
			return true
		}
		return false
	})
	c, hasty := newImages(t, nil), newImages(t, func(c *Config) { c.StallTimeout = 200 * time.Millisecond })
	round := func() {
		c.mustPull(t, r.ref("app:good"))
		mounted := filepath.Join(t.TempDir(), "m")
		must(t, c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(t.TempDir(), "c"), Target: mounted}))
		must(t, c.Unmount(t.Context(), mounted))
		for tag, images := range map[string]*Images{"bad": c, "slow": hasty, "none": c} {
			if _, err := images.Pull(t.Context(), r.ref("app:"+tag), nil); err == nil {
				t.Errorf("%s is pulled", tag)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := c.Pull(ctx, r.ref("app:slow"), nil); err == nil {
			t.Error("slow is pulled")
		}
		must(t, c.Remove(t.Context(), id))
	}
	round()
	count := func() (int, int) {
		fds, _ := os.ReadDir("/proc/self/fd")
		return runtime.NumGoroutine(), len(fds)
	}
	r.CloseClientConnections()
	goroutines, fds := count()
	for range 5 {
		round()
	}
	r.CloseClientConnections()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		g, f := count()
		if g <= goroutines && f <= fds {
			return
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, were %d; %d descriptors, were %d\n%s", g, goroutines, f, fds, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// TestFullDisk: a pull that fills the disk says so and gives everything back; removing works without a free byte.
func TestFullDisk(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o700))
	must(t, unix.Mount("tmpfs", root, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	r := newRegistry(t)
	small, _ := r.build("small", []testLayer{gzipLayer(tarOf(t, reg("f"), "x"))}, nil)
	r.build("blob", []testLayer{gzipLayer(noise(t, 6<<20))}, nil)
	r.build("unpacked", []testLayer{gzipLayer(tarOf(t, reg("f"), strings.Repeat("x", 6<<20)))}, nil)
	c := newImages(t, func(c *Config) { c.Root = root })
	c.mustPull(t, r.ref("app:small"))
	var before, after unix.Statfs_t
	must(t, unix.Statfs(root, &before))
	for _, tag := range []string{"blob", "unpacked"} {
		if _, err := c.Pull(t.Context(), r.ref("app:"+tag), nil); !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", tag, err)
		}
		must(t, unix.Statfs(root, &after))
		if after.Bfree < before.Bfree || after.Ffree < before.Ffree {
			t.Errorf("%s: %d blocks and %d inodes are not given back", tag, before.Bfree-after.Bfree, before.Ffree-after.Ffree)
		}
	}
	f, err := os.Create(filepath.Join(root, "filler"))
	must(t, err)
	defer f.Close()
	for b := make([]byte, 4096); ; {
		if _, err := f.Write(b); err != nil {
			break
		}
	}
	if len(reopen(t, root).List()) != 1 {
		t.Error("the image is not listed on a full disk")
	}
	must(t, c.Remove(t.Context(), small))
	c.wantNothing(t)
}

// TestSyncFails: write errors are told once, so what they may be about is neither listed nor kept for the next pull. The disk that fails is
// a system call that does.
func TestSyncFails(t *testing.T) {
	r := newRegistry(t)
	kept := gzipLayer(tarOf(t, reg("kept"), "x"))
	old, _ := r.build("old", []testLayer{kept}, nil)
	id, _ := r.build("1", []testLayer{kept, gzipLayer(noise(t, 100_000))}, nil)
	c := newImages(t, nil)
	c.mustPull(t, r.ref("app:old"))
	c.puller.syncfs = func(int) error { return unix.EIO }
	_, err := c.Pull(t.Context(), r.ref("app:1"), nil)
	if err == nil || !strings.Contains(err.Error(), unix.EIO.Error()) {
		t.Error(err)
	}
	if layers, _ := filepath.Glob(filepath.Join(c.cfg.Root, "layers", "[0-9]*")); len(layers) != 1 {
		t.Errorf("layers %q", layers)
	}
	if l := c.List(); len(l) != 1 || l[0].ID != old {
		t.Error(l)
	}
	c.puller.syncfs = unix.Syncfs
	c.mustPull(t, r.ref("app:1"))
	if info, err := os.Stat(mounted(t, c, id)("noise")); err != nil || info.Size() != 100_000 {
		t.Error(info, err)
	}
	wantFile(t, mounted(t, c, old)("kept"), "x")
}
