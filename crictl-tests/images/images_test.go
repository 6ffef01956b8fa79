package images

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
	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestPullVariants: every form in which registries serve an image becomes the same files.
func TestPullVariants(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, name := range []string{"busybox:1", "busybox:zstd", "busybox:plain", "busybox:docker", "busybox:docker-plain", "busybox:multi", "busybox:multi-docker"} {
		id := d.Pulled(name)
		if want := d.IDOf(name); id != want {
			t.Errorf("%s: PullImage says %s, want the configuration's digest %s", name, id, want)
		}
		c := p.Run(harness.Shell("grep -c app /etc/passwd; ls -l /bin/sh >/dev/null && echo $PATH"), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = id }))
		c.WaitExit()
		if got := harness.TextOf(c.FinalLog(), "stdout"); got != "1\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" {
			t.Errorf("%s: a container of it prints %q", name, got)
		}
	}
}

func TestImageIdentities(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ref := d.Ref("app:1")
	id := d.Pulled("app:1")
	digest, err := d.Registry().RefByDigest("app:1")
	d.Must(err)
	for _, asked := range []string{id, strings.TrimPrefix(id, "sha256:"), strings.TrimPrefix(id, "sha256:")[:12], ref, digest} {
		i := d.ImageStatus(asked)
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
	if list := d.ListImages(); len(list) != 1 || list[0].Id != id {
		t.Errorf("ListImages: %v", list)
	}
	if i := d.ImageStatus(d.Ref("busybox:1")); i != nil {
		t.Errorf("an image that was never pulled: %v", i)
	}
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = ref }))
	if s := c.Status(); s.ImageId != id || s.ImageRef != digest {
		t.Errorf("container status: image_id %s, image_ref %s; want %s, %s", s.ImageId, s.ImageRef, id, digest)
	}
}

func TestPullByDigest(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	for _, name := range []string{"busybox:1", "busybox:multi"} {
		digest, err := d.Registry().RefByDigest(name)
		d.Must(err)
		id, err := d.TryPull(digest, nil)
		d.Must(err)
		i := d.ImageStatus(id)
		if i == nil || i.Id != d.IDOf(name) {
			t.Fatalf("%s: %v", name, i)
		}
		if len(i.RepoTags) != 0 || !slices.Contains(i.RepoDigests, digest) {
			t.Errorf("%s pulled by digest: tags %v, digests %v", name, i.RepoTags, i.RepoDigests)
		}
		_, err = d.Images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
		d.Must(err)
	}
}

// TestRemoveImage: by id, every name goes; what is not there is not an error.
func TestRemoveImage(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	before := d.Ledger()
	id := d.Pulled("busybox:1")
	if again := d.Pulled("busybox:latest"); again != id {
		t.Fatalf("the same image under another tag is %s, not %s", again, id)
	}
	if i := d.ImageStatus(id); i == nil || len(i.RepoTags) != 2 {
		t.Errorf("after two pulls: %v", i)
	}
	for range 2 {
		_, err := d.Images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
		d.Must(err)
	}
	if i := d.ImageStatus(d.Ref("busybox:1")); i != nil {
		t.Errorf("after RemoveImage by id: %v", i)
	}
	d.WantFlat(before)
}

func TestListImagesFilter(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled("busybox:1")
	d.Pulled("app:1")
	for asked, want := range map[string]int{"": 2, d.Ref("app:1"): 1, d.IDOf("busybox:1"): 1, d.Ref("web:1"): 0} {
		filter := &cri.ImageFilter{Image: &cri.ImageSpec{Image: asked}}
		r, err := d.Images.ListImages(context.Background(), &cri.ListImagesRequest{Filter: filter})
		d.Must(err)
		harness.WantEqual(t, "the stream with filter "+asked, imageStream(d, filter), r)
		if len(r.Images) != want {
			t.Errorf("filter %q: %d images, want %d", asked, len(r.Images), want)
		}
	}
}

// TestImageFsInfo compares with what the files really take.
func TestImageFsInfo(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled("app:1")
	d.Pulled("layers:50")
	wantImageFs(d)
	d.Pulled("busybox:zstd")
	d.Must(d.RemoveImage(d.Ref("layers:50")))
	wantImageFs(d)
	d.Restart()
	wantImageFs(d)
}

// wantImageFs compares ImageFsInfo with what du says of content, layers and records.
func wantImageFs(d *harness.Daemon) {
	d.Helper()
	r, err := d.Images.ImageFsInfo(context.Background(), &cri.ImageFsInfoRequest{})
	d.Must(err)
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
		b, i := diskUsage(d, filepath.Join(d.Root, folder))
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
	d := harness.NewDaemon(t)
	p := d.RunPod()
	many := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = d.Pulled("layers:50") }))
	if got := many.Exec("sh", "-c", "cat /top; ls /layers | wc -l"); strings.Join(strings.Fields(got), " ") != "50 49" {
		t.Errorf("fifty layers: the top one and the number of files are %q", got)
	}
	out := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = d.Pulled("whiteouts:1") }))
	if got := out.Exec("sh", "-c", "cd /w && find . -type f | sort && cat again dir"); got != "./again\n./dir\n./kept\n./opaque/new\nsecondnow a file" {
		t.Errorf("whiteouts leave %q", got)
	}
}

func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
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
		_, err := d.TryPull(d.Ref(row.image), row.auth)
		harness.WantCode(t, err, row.want)
		if err != nil && strings.Contains(err.Error(), "not-the-word") {
			t.Errorf("%s: the error tells the password: %v", row.image, err)
		}
	}
	if log, err := os.ReadFile(d.LogFile()); err != nil || strings.Contains(string(log), fixture.Password) || strings.Contains(string(log), "not-the-word") {
		t.Errorf("a password is in the daemon's log (%v)", err)
	}
}

func TestPullFromAMirror(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Must(d.Registry().WriteCertsD(d.RegistryConfig(), "docker.io", "registry.test"))
	for asked, name := range map[string]string{
		"docker.io/library/busybox:1":         "docker.io/library/busybox:1",
		"busybox":                             "docker.io/library/busybox:latest",
		"registry.test/library/busybox:zstd":  "registry.test/library/busybox:zstd",
		"registry.test/library/busybox:plain": "registry.test/library/busybox:plain",
	} {
		id, err := d.TryPull(asked, nil)
		if err != nil {
			t.Errorf("%s: %v", asked, err)
			continue
		}
		if i := d.ImageStatus(id); i == nil || !slices.Contains(i.RepoTags, name) {
			t.Errorf("%s: tags %v, want %s", asked, i.GetRepoTags(), name)
		}
		if i := d.ImageStatus(asked); i == nil || i.Id != id {
			t.Errorf("%s: not found under the name it was asked by", asked)
		}
	}
}

// TestDeadMirror: the next one is asked.
func TestDeadMirror(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	dir := filepath.Join(d.RegistryConfig(), "registry.test")
	d.Must(os.MkdirAll(dir, 0o755))
	dead := harness.DeadAddress(t)
	d.Must(os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(`server = "http://`+d.Registry().Addr+`"
[host."http://`+dead+`"]
capabilities = ["pull", "resolve"]
`), 0o600))
	_, err := d.TryPull("registry.test/library/busybox:1", nil)
	d.Must(err)
}

// TestIdenticalPullsAreJoined: ten requests, each blob fetched once.
func TestIdenticalPullsAreJoined(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	r := fixture.ForTest(t)
	img, err := r.Image("app:1")
	d.Must(err)
	held := r.Inject(fixture.Fault{Match: "GET .*/blobs/", Times: 1, Stall: true})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if _, err := d.TryPull(r.Ref("app:1"), nil); err != nil {
				t.Error(err)
			}
		})
	}
	d.Must(held.Wait(t.Context()))
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
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := fixture.ForTest(t)
	held := r.Inject(fixture.Fault{Match: "GET .*/blobs/", Times: 1, Stall: true, StallAfter: 100})
	impatient, leave := context.WithCancel(context.Background())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := d.PullWith(impatient, r.Ref("app:1"), nil); first <- err }()
	d.Must(held.Wait(t.Context()))
	go func() { _, err := d.TryPull(r.Ref("app:1"), nil); second <- err }()
	leave()
	harness.WantCode(t, <-first, codes.Canceled)
	held.Remove()
	d.Must(<-second)
}

// TestTruncatedBlob: a connection that breaks is taken up again.
func TestTruncatedBlob(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := fixture.ForTest(t)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/", Times: 2, Truncate: true, TruncateAfter: 1000})
	_, err := d.TryPull(r.Ref("app:1"), nil)
	d.Must(err)
}

// acceptable are broken images that a runtime may take: no layers, and a compression that its bytes tell.
var acceptable = []string{"broken:no-layers", "broken:plain-as-zstd"}

func TestBrokenImages(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	before := d.Ledger()
	for _, name := range fixture.Names() {
		if kind, _, _ := strings.Cut(name, ":"); kind != "broken" || slices.Contains(acceptable, name) {
			continue
		}
		if _, err := d.TryPull(d.Ref(name), nil); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if list := d.ListImages(); len(list) > 0 {
		t.Errorf("images after failed pulls: %v", list)
	}
	d.WantFlat(before)
}

// TestImagesOutliveTheDaemon: what was listed is there after kill -9, and usable.
func TestImagesOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	id := d.Pulled(harness.Busybox)
	d.Restart()
	if list := d.ListImages(); len(list) != 1 || list[0].Id != id || !slices.Equal(list[0].RepoTags, []string{d.Ref(harness.Busybox)}) {
		t.Errorf("after a restart: %v", list)
	}
	d.RunPod().Run(harness.Idle()).Exec("true")
}

// TestStalledPull: no bytes move, so the pull ends by itself, and says so.
func TestStalledPull(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for the runtime's own stall timer")
	}
	d := harness.PrepareDaemon(t, harness.KeepsBlobs)
	dropIn(d, "[images]\nstall_time = '10s'\n")
	d.Start()
	before := d.Ledger()
	d.Empty = before
	r := fixture.ForTest(t)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/", Stall: true, StallAfter: 100})
	_, err := d.TryPull(r.Ref("busybox:1"), nil)
	if err == nil {
		t.Fatal("pulled although no bytes moved")
	}
	harness.WantCode(t, err, codes.Unknown, "RegistryUnavailable: ")
	d.WantFlat(before)
}

// TestSlowRegistry: one that sends next to nothing delays neither the same layers from elsewhere nor other images.
func TestSlowRegistry(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	slow := fixture.ForTest(t)
	held := slow.Inject(fixture.Fault{Match: "GET .*/blobs/", Stall: true, StallAfter: 2000}) // the configuration is smaller
	slowly := make(chan error, 1)
	go func() { _, err := d.TryPull(slow.Ref("app:1"), nil); slowly <- err }()
	d.Must(held.Wait(t.Context()))
	for _, name := range []string{"app:1", "layers:50"} {
		if id := d.Pulled(name); id != d.IDOf(name) {
			t.Errorf("%s: %s", name, id)
		}
	}
	select {
	case err := <-slowly:
		t.Fatalf("others waited until the slow pull had ended: %v", err)
	default:
	}
	held.Remove()
	d.Must(<-slowly)
	if i := d.ImageStatus(slow.Ref("app:1")); i == nil || len(i.RepoTags) != 2 {
		t.Errorf("the image of both registries: %v", i)
	}
}

// imageStream is what StreamImages sends, as one list.
func imageStream(d *harness.Daemon, f *cri.ImageFilter) *cri.ListImagesResponse {
	d.Helper()
	stream, err := d.Images.StreamImages(context.Background(), &cri.StreamImagesRequest{Filter: f})
	d.Must(err)
	all := &cri.ListImagesResponse{}
	d.EachPiece(stream, func() error {
		piece, err := stream.Recv()
		all.Images = append(all.Images, piece.GetImages()...)
		return harness.HasItems(err, len(piece.GetImages()))
	})
	return all
}
