package crictltests

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// TestPullVariants: every form in which registries serve an image becomes the same files.
func TestPullVariants(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	for _, name := range []string{"busybox:1", "busybox:zstd", "busybox:plain", "busybox:docker", "busybox:docker-plain", "busybox:multi", "busybox:multi-docker"} {
		id := d.pulled(name)
		if want := d.idOf(name); id != want {
			t.Errorf("%s: PullImage says %s, want the configuration's digest %s", name, id, want)
		}
		c := p.run(shell("grep -c app /etc/passwd; ls -l /bin/sh >/dev/null && echo $PATH"), with(func(c *cri.ContainerConfig) { c.Image.Image = id }))
		c.waitExit()
		if got := text(c.finalLog(), "stdout"); got != "1\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" {
			t.Errorf("%s: a container of it prints %q", name, got)
		}
	}
}

// idOf is the id that the image must get, for the platform of this machine.
func (d *daemon) idOf(name string) string {
	d.Helper()
	img, err := d.registry().Image(name)
	d.must(err)
	if n := len(img.Platforms); n > 0 {
		return img.Platforms[n-1].ConfigDigest.String() // the catalogue names this machine's last
	}
	return img.ConfigDigest.String()
}

func TestImageIdentities(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ref := d.ref("app:1")
	id := d.pulled("app:1")
	digest, err := d.registry().RefByDigest("app:1")
	d.must(err)
	for _, asked := range []string{id, strings.TrimPrefix(id, "sha256:"), strings.TrimPrefix(id, "sha256:")[:12], ref, digest} {
		i := d.imageStatus(asked)
		if i == nil || i.Id != id {
			t.Errorf("ImageStatus of %s: %v, want %s", asked, i, id)
			continue
		}
		if !slices.Equal(i.RepoTags, []string{ref}) || !slices.Equal(i.RepoDigests, []string{digest}) || i.Size == 0 {
			t.Errorf("ImageStatus of %s: tags %v, digests %v, size %d", asked, i.RepoTags, i.RepoDigests, i.Size)
		}
		if i.Username != "app" || i.Uid != nil {
			t.Errorf("the image runs as app, the status says username %q, uid %v", i.Username, i.Uid)
		}
	}
	if list := d.listImages(); len(list) != 1 || list[0].Id != id {
		t.Errorf("ListImages: %v", list)
	}
	if i := d.imageStatus(d.ref("busybox:1")); i != nil {
		t.Errorf("an image that was never pulled: %v", i)
	}
	c := d.runPod().run(idle(), with(func(c *cri.ContainerConfig) { c.Image.Image = ref }))
	if s := c.status(); s.ImageId != id || s.ImageRef != digest {
		t.Errorf("container status: image_id %s, image_ref %s; want %s, %s", s.ImageId, s.ImageRef, id, digest)
	}
}

func TestPullByDigest(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, name := range []string{"busybox:1", "busybox:multi"} {
		digest, err := d.registry().RefByDigest(name)
		d.must(err)
		id, err := d.tryPull(digest, nil)
		d.must(err)
		i := d.imageStatus(id)
		if i == nil || i.Id != d.idOf(name) {
			t.Fatalf("%s: %v", name, i)
		}
		if len(i.RepoTags) != 0 || !slices.Contains(i.RepoDigests, digest) {
			t.Errorf("%s pulled by digest: tags %v, digests %v", name, i.RepoTags, i.RepoDigests)
		}
		_, err = d.images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
		d.must(err)
	}
}

// TestRemoveImage: by id, every name goes; what is not there is not an error.
func TestRemoveImage(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	before := d.ledger()
	id := d.pulled("busybox:1")
	if again := d.pulled("busybox:latest"); again != id {
		t.Fatalf("the same image under another tag is %s, not %s", again, id)
	}
	if i := d.imageStatus(id); i == nil || len(i.RepoTags) != 2 {
		t.Errorf("after two pulls: %v", i)
	}
	for range 2 {
		_, err := d.images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
		d.must(err)
	}
	if i := d.imageStatus(d.ref("busybox:1")); i != nil {
		t.Errorf("after RemoveImage by id: %v", i)
	}
	d.wantFlat(before)
}

func TestListImagesFilter(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.pulled("busybox:1")
	d.pulled("app:1")
	for asked, want := range map[string]int{"": 2, d.ref("app:1"): 1, d.idOf("busybox:1"): 1, d.ref("web:1"): 0} {
		filter := &cri.ImageFilter{Image: &cri.ImageSpec{Image: asked}}
		r, err := d.images.ListImages(context.Background(), &cri.ListImagesRequest{Filter: filter})
		d.must(err)
		wantEqual(t, "the stream with filter "+asked, d.imageStream(filter), r)
		if len(r.Images) != want {
			t.Errorf("filter %q: %d images, want %d", asked, len(r.Images), want)
		}
	}
}

// TestImageFsInfo compares with what the files really take.
func TestImageFsInfo(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.pulled("app:1")
	d.pulled("layers:50")
	d.wantImageFs()
	d.pulled("busybox:zstd")
	d.must(d.removeImage(d.ref("layers:50")))
	d.wantImageFs()
	d.restart()
	d.wantImageFs()
}

// wantImageFs compares ImageFsInfo with what du says of content, layers and records.
func (d *daemon) wantImageFs() {
	d.Helper()
	r, err := d.images.ImageFsInfo(context.Background(), &cri.ImageFsInfoRequest{})
	d.must(err)
	if len(r.ImageFilesystems) == 0 {
		d.Fatal("no image filesystem")
	}
	f := r.ImageFilesystems[0]
	var s syscall.Statfs_t
	if err := syscall.Statfs(f.GetFsId().GetMountpoint(), &s); err != nil {
		d.Errorf("mountpoint %q: %v", f.GetFsId().GetMountpoint(), err)
	}
	var bytes, inodes float64
	for _, folder := range []string{"content", "layers", "images"} {
		b, i := diskUsage(d, filepath.Join(d.root, folder))
		bytes, inodes = bytes+b, inodes+i
	}
	if got := float64(f.UsedBytes.GetValue()); got < 0.98*bytes || got > 1.02*bytes {
		d.Errorf("used bytes %.0f, but the files take %.0f", got, bytes)
	}
	if got := float64(f.InodesUsed.GetValue()); got < 0.9*inodes || got > 1.1*inodes {
		d.Errorf("used inodes %.0f, but there are %.0f", got, inodes)
	}
	if f.Timestamp == 0 {
		d.Error("no timestamp")
	}
}

// diskUsage is what du counts, hard links once.
func diskUsage(t testing.TB, dir string) (bytes, inodes float64) {
	t.Helper()
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok && !seen[s.Ino] {
			seen[s.Ino] = true
			bytes += float64(s.Blocks) * 512
			inodes++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes, inodes
}

func TestImageLayers(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	many := p.run(idle(), with(func(c *cri.ContainerConfig) { c.Image.Image = d.pulled("layers:50") }))
	if got := many.exec("sh", "-c", "cat /top; ls /layers | wc -l"); strings.Join(strings.Fields(got), " ") != "50 49" {
		t.Errorf("fifty layers: the top one and the number of files are %q", got)
	}
	out := p.run(idle(), with(func(c *cri.ContainerConfig) { c.Image.Image = d.pulled("whiteouts:1") }))
	if got := out.exec("sh", "-c", "cd /w && find . -type f | sort && cat again dir"); got != "./again\n./dir\n./kept\n./opaque/new\nsecondnow a file" {
		t.Errorf("whiteouts leave %q", got)
	}
}

func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	good := &cri.AuthConfig{Username: fixture.Username, Password: fixture.Password}
	wrong := &cri.AuthConfig{Username: fixture.Username, Password: "not-the-word"}
	for _, row := range []struct {
		image string
		auth  *cri.AuthConfig
		want  codes.Code
	}{
		{"private:1", nil, codes.Unauthenticated},
		{"private:1", wrong, codes.Unauthenticated},
		{"private:1", good, codes.OK},
		{"token:1", wrong, codes.Unauthenticated},
		{"token:1", good, codes.OK},
		{"token:1", &cri.AuthConfig{IdentityToken: fixture.IdentityToken}, codes.OK},
		{"forbidden:1", good, codes.PermissionDenied},
	} {
		_, err := d.tryPull(d.ref(row.image), row.auth)
		wantCode(t, err, row.want)
		if err != nil && strings.Contains(err.Error(), "not-the-word") {
			t.Errorf("%s: the error tells the password: %v", row.image, err)
		}
	}
	if log, err := os.ReadFile(d.logFile()); err != nil || strings.Contains(string(log), fixture.Password) || strings.Contains(string(log), "not-the-word") {
		t.Errorf("a password is in the daemon's log (%v)", err)
	}
}

func TestPullFromAMirror(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.must(d.registry().WriteCertsD(d.registryConfig(), "docker.io", "registry.test"))
	for asked, name := range map[string]string{
		"docker.io/library/busybox:1":         "docker.io/library/busybox:1",
		"busybox":                             "docker.io/library/busybox:latest",
		"registry.test/library/busybox:zstd":  "registry.test/library/busybox:zstd",
		"registry.test/library/busybox:plain": "registry.test/library/busybox:plain",
	} {
		id, err := d.tryPull(asked, nil)
		if err != nil {
			t.Errorf("%s: %v", asked, err)
			continue
		}
		if i := d.imageStatus(id); i == nil || !slices.Contains(i.RepoTags, name) {
			t.Errorf("%s: tags %v, want %s", asked, i.GetRepoTags(), name)
		}
		if i := d.imageStatus(asked); i == nil || i.Id != id {
			t.Errorf("%s: not found under the name it was asked by", asked)
		}
	}
}

// TestDeadMirror: the next one is asked.
func TestDeadMirror(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	dir := filepath.Join(d.registryConfig(), "registry.test")
	d.must(os.MkdirAll(dir, 0o755))
	dead := deadAddress(t)
	d.must(os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(`server = "http://`+d.registry().Addr+`"
[host."http://`+dead+`"]
capabilities = ["pull", "resolve"]
`), 0o600))
	_, err := d.tryPull("registry.test/library/busybox:1", nil)
	d.must(err)
}

// TestIdenticalPullsAreJoined: ten requests, each blob fetched once.
func TestIdenticalPullsAreJoined(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	r := fixture.ForTest(t)
	img, err := r.Image("app:1")
	d.must(err)
	held := r.Inject(fixture.Fault{Match: "GET .*/blobs/", Times: 1, Stall: true})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if _, err := d.tryPull(r.Ref("app:1"), nil); err != nil {
				t.Error(err)
			}
		})
	}
	d.must(held.Wait(t.Context()))
	held.Remove()
	all.Wait()
	for _, l := range img.Layers {
		if n, _ := r.Fetched(l.Digest.String()); n != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
}

// TestCallerLeavesAPull: one who leaves does not take the others' pull away.
func TestCallerLeavesAPull(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	r := fixture.ForTest(t)
	held := r.Inject(fixture.Fault{Match: "GET .*/blobs/", Times: 1, Stall: true, StallAfter: 100})
	impatient, leave := context.WithCancel(context.Background())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := d.pullWith(impatient, r.Ref("app:1"), nil); first <- err }()
	d.must(held.Wait(t.Context()))
	go func() { _, err := d.tryPull(r.Ref("app:1"), nil); second <- err }()
	leave()
	wantCode(t, <-first, codes.Canceled)
	held.Remove()
	d.must(<-second)
}

// TestTruncatedBlob: a connection that breaks is taken up again.
func TestTruncatedBlob(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	r := fixture.ForTest(t)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/", Times: 2, Truncate: true, TruncateAfter: 1000})
	_, err := d.tryPull(r.Ref("app:1"), nil)
	d.must(err)
}

// acceptable are broken images that a runtime may take: no layers, and a compression that its bytes tell.
var acceptable = []string{"broken:no-layers", "broken:plain-as-zstd"}

func TestBrokenImages(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	before := d.ledger()
	for _, name := range fixture.Names() {
		if kind, _, _ := strings.Cut(name, ":"); kind != "broken" || slices.Contains(acceptable, name) {
			continue
		}
		if _, err := d.tryPull(d.ref(name), nil); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if list := d.listImages(); len(list) > 0 {
		t.Errorf("images after failed pulls: %v", list)
	}
	d.wantFlat(before)
}

// TestImagesOutliveTheDaemon: what was listed is there after kill -9, and usable.
func TestImagesOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.pulled(busybox)
	d.restart()
	if list := d.listImages(); len(list) != 1 || list[0].Id != id || !slices.Equal(list[0].RepoTags, []string{d.ref(busybox)}) {
		t.Errorf("after a restart: %v", list)
	}
	d.runPod().run(idle()).exec("true")
}

// TestStalledPull: no bytes move, so the pull ends by itself, and says so.
func TestStalledPull(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for the runtime's own stall timer")
	}
	d := prepareDaemon(t, keepsBlobs)
	d.dropIn("[images]\nstall_time = '10s'\n")
	d.start()
	before := d.ledger()
	d.empty = before
	r := fixture.ForTest(t)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/", Stall: true, StallAfter: 100})
	_, err := d.tryPull(r.Ref("busybox:1"), nil)
	if err == nil {
		t.Fatal("pulled although no bytes moved")
	}
	wantCode(t, err, codes.Unknown, "RegistryUnavailable: ")
	d.wantFlat(before)
}

// TestSlowRegistry: one that sends next to nothing delays neither the same layers from elsewhere nor other images.
func TestSlowRegistry(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	slow := fixture.ForTest(t)
	held := slow.Inject(fixture.Fault{Match: "GET .*/blobs/", Stall: true, StallAfter: 2000}) // the configuration is smaller
	slowly := make(chan error, 1)
	go func() { _, err := d.tryPull(slow.Ref("app:1"), nil); slowly <- err }()
	d.must(held.Wait(t.Context()))
	for _, name := range []string{"app:1", "layers:50"} {
		if id := d.pulled(name); id != d.idOf(name) {
			t.Errorf("%s: %s", name, id)
		}
	}
	select {
	case err := <-slowly:
		t.Fatalf("others waited until the slow pull had ended: %v", err)
	default:
	}
	held.Remove()
	d.must(<-slowly)
	if i := d.imageStatus(slow.Ref("app:1")); i == nil || len(i.RepoTags) != 2 {
		t.Errorf("the image of both registries: %v", i)
	}
}
