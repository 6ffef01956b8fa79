package imageservice

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/imagetest"
)

// TestNothingLeaks checks that successful, failed, stalled and cancelled pulls leave no goroutines
// and no descriptors.
func TestNothingLeaks(t *testing.T) {
	r := imagetest.NewRegistry(t)
	good := imagetest.Gzip(imagetest.Noise(t, 100_000))
	bad := imagetest.Zstd(imagetest.Noise(t, 100_000))
	bad.DiffID = digest.FromString("lie")
	slow := imagetest.Gzip(imagetest.Noise(t, 200_000))
	id, _ := r.Build("good", []imagetest.Layer{good}, nil)
	r.Build("bad", []imagetest.Layer{good, bad}, nil)
	r.Build("slow", []imagetest.Layer{good, slow}, nil)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if imagetest.IsBlobGet(q, digest.FromBytes(slow.Blob)) {
			w.Header().Set("Content-Length", "1000000")
			w.Write(slow.Blob[:1000])
			w.(http.Flusher).Flush()
			<-q.Context().Done()
			return true
		}
		return false
	})
	c, hasty := newImages(t, nil), newImages(t, func(c *Config) { c.StallTimeout = 200 * time.Millisecond })
	round := func() {
		c.mustPull(t, r.Ref("app:good"))
		mounted := filepath.Join(t.TempDir(), "m")
		imagetest.Must(t, c.Mount(t.Context(), Rootfs{ImageID: id, Dir: filepath.Join(t.TempDir(), "c"), Target: mounted}))
		imagetest.Must(t, c.Unmount(t.Context(), mounted))
		for tag, images := range map[string]*Images{"bad": c, "slow": hasty, "none": c} {
			if _, err := images.Pull(t.Context(), r.Ref("app:"+tag), nil); err == nil {
				t.Errorf("%s is pulled", tag)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := c.Pull(ctx, r.Ref("app:slow"), nil); err == nil {
			t.Error("slow is pulled")
		}
		imagetest.Must(t, c.Remove(t.Context(), id))
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

// TestFullDisk checks that a pull that fills the disk returns the right error and frees its space,
// and that removal needs no free space.
func TestFullDisk(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	imagetest.Must(t, os.Mkdir(root, 0o700))
	imagetest.Must(t, unix.Mount("tmpfs", root, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	r := imagetest.NewRegistry(t)
	small, _ := r.Build("small", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	r.Build("blob", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 6<<20))}, nil)
	r.Build("unpacked", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), strings.Repeat("x", 6<<20)))}, nil)
	c := newImages(t, func(c *Config) { c.Root = root })
	c.mustPull(t, r.Ref("app:small"))
	var before, after unix.Statfs_t
	imagetest.Must(t, unix.Statfs(root, &before))
	for _, tag := range []string{"blob", "unpacked"} {
		if _, err := c.Pull(t.Context(), r.Ref("app:"+tag), nil); !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", tag, err)
		}
		imagetest.Must(t, unix.Statfs(root, &after))
		if after.Bfree < before.Bfree || after.Ffree < before.Ffree {
			t.Errorf("%s: %d blocks and %d inodes are not given back", tag, before.Bfree-after.Bfree, before.Ffree-after.Ffree)
		}
	}
	f, err := os.Create(filepath.Join(root, "filler"))
	imagetest.Must(t, err)
	defer f.Close()
	for b := make([]byte, 4096); ; {
		if _, err := f.Write(b); err != nil {
			break
		}
	}
	if len(reopen(t, root).List()) != 1 {
		t.Error("the image is not listed on a full disk")
	}
	imagetest.Must(t, c.Remove(t.Context(), small))
	c.wantNothing(t)
}

// TestSyncFails checks that, after a failed sync, data that may be incomplete on disk is neither
// listed nor kept for the next pull. The test replaces the system call by one that fails.
func TestSyncFails(t *testing.T) {
	r := imagetest.NewRegistry(t)
	kept := imagetest.Gzip(imagetest.Tar(t, imagetest.File("kept"), "x"))
	old, _ := r.Build("old", []imagetest.Layer{kept}, nil)
	id, _ := r.Build("1", []imagetest.Layer{kept, imagetest.Gzip(imagetest.Noise(t, 100_000))}, nil)
	fail := atomic.Bool{}
	c := newImages(t, func(c *Config) {
		c.syncfs = func(fd int) error {
			if fail.Load() {
				return unix.EIO
			}
			return unix.Syncfs(fd)
		}
	})
	c.mustPull(t, r.Ref("app:old"))
	fail.Store(true)
	_, err := c.Pull(t.Context(), r.Ref("app:1"), nil)
	if err == nil || !strings.Contains(err.Error(), unix.EIO.Error()) {
		t.Error(err)
	}
	if layers, _ := filepath.Glob(filepath.Join(c.cfg.Root, "layers", "[0-9]*")); len(layers) != 1 {
		t.Errorf("layers %q", layers)
	}
	if blobs, _ := filepath.Glob(filepath.Join(c.cfg.Root, "content/blobs/sha256/*")); len(blobs) != 3 {
		t.Errorf("%d blobs, want the three of the image before", len(blobs))
	}
	if l := c.List(); len(l) != 1 || l[0].ID != old {
		t.Error(l)
	}
	fail.Store(false)
	c.mustPull(t, r.Ref("app:1"))
	if info, err := os.Stat(mounted(t, c, id)("noise")); err != nil || info.Size() != 100_000 {
		t.Error(info, err)
	}
	imagetest.WantFile(t, mounted(t, c, old)("kept"), "x")
}

// TestSyncOfAnotherPullFails checks that a pull is not recorded when a sync has failed since it
// began, even if its own succeeds: all data that may be incomplete on disk was deleted, its
// documents among it.
func TestSyncOfAnotherPullFails(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 50_000))}, nil)
	r.Build("2", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 60_000))}, nil)
	var syncs atomic.Int32
	syncing, failed := make(chan struct{}), make(chan struct{})
	c := newImages(t, func(c *Config) {
		c.syncfs = func(fd int) error {
			switch syncs.Add(1) {
			case 1:
				close(syncing)
				<-failed
			case 2:
				return unix.EIO
			}
			return unix.Syncfs(fd)
		}
	})
	pulled := make(chan error, 1)
	go func() {
		_, err := c.Pull(t.Context(), r.Ref("app:1"), nil)
		pulled <- err
	}()
	<-syncing
	if _, err := c.Pull(t.Context(), r.Ref("app:2"), nil); err == nil {
		t.Error("the sync of the second image fails, and its pull does not")
	}
	close(failed)
	if err := <-pulled; !errdefs.IsAborted(err) || len(c.List()) != 0 {
		t.Errorf("a pull during which a sync failed: %v, listed %v", err, c.List())
	}
	c.mustPull(t, r.Ref("app:1"))
	if info, err := os.Stat(mounted(t, c, id)("noise")); err != nil || info.Size() != 50_000 {
		t.Error(info, err)
	}
	if blobs, _ := filepath.Glob(filepath.Join(c.cfg.Root, "content/blobs/sha256/*")); len(blobs) != 3 {
		t.Errorf("%d blobs, want those of one image: manifest, config and layer", len(blobs))
	}
}
