package badinput

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

type pullRequest = *cri.PullImageRequest

func askForImage(d *harness.Daemon, r pullRequest) (string, error) {
	reply, err := d.Images.PullImage(context.Background(), r)
	return reply.GetImageRef(), err
}

// badPulls is PullImage: what is wrong with the request, and what the registry says to a right one.
func badPulls(d *harness.Daemon) []harness.BadRequest[pullRequest] {
	image := func(ref string) func(pullRequest) { return func(r pullRequest) { r.Image.Image = ref } }
	auth := func(a *cri.AuthConfig) func(pullRequest) { return func(r pullRequest) { r.Auth = a } }
	return []harness.BadRequest[pullRequest]{
		{Name: "no image", Change: func(r pullRequest) { r.Image = nil }, Field: "image"},
		{Name: "empty image", Change: image(""), Field: "image"},
		{Name: "upper case", Change: image("docker.io/UPPER/case:1"), Field: "UPPER/case:1"},
		{Name: "blank", Change: image("bad ref"), Field: "bad ref"},
		{Name: "no name", Change: image(":tag"), Field: ":tag"},
		{Name: "path", Change: image("../../etc/passwd"), Field: "../../etc/passwd"},
		{Name: "NUL", Change: image("busybox\x00"), Field: "busybox"},
		{Name: "10 KiB", Change: image(strings.Repeat("a", 10<<10)), Field: "aaaa"},
		{Name: "short digest", Change: image("busybox@sha256:1234"), Field: "busybox@sha256:1234"},
		{Name: "digest of another kind", Change: image("busybox@md5:" + strings.Repeat("a", 32)), Field: "busybox@md5"},
		{Name: "id", Change: image("sha256:" + strings.Repeat("a", 64)), Field: "image id"},

		{Name: "user of two lines", Change: auth(&cri.AuthConfig{Username: "a\nb", Password: "c"}), Field: "username"},
		{Name: "password of two lines", Change: auth(&cri.AuthConfig{Username: "a", Password: "b\r\nX: y"}), Field: "password"},
		{Name: "token of two lines", Change: auth(&cri.AuthConfig{RegistryToken: "a\nb"}), Field: "registry_token"},
		{Name: "server of two lines", Change: auth(&cri.AuthConfig{ServerAddress: "a\nb"}), Field: "server_address"},
		{Name: "auth is not base64", Change: auth(&cri.AuthConfig{Auth: "%%%"}), Field: "auth"},
		{Name: "auth is one word", Change: auth(&cri.AuthConfig{Auth: "YWxpY2U="}), Field: "auth"},

		{Name: "unknown tag", Change: image(d.Ref("busybox:no-such-tag")), Field: "no-such-tag", Code: codes.NotFound},
		{Name: "unknown repository", Change: image(d.Ref("no-such-image:1")), Field: "no-such-image", Code: codes.NotFound},
		{Name: "no such platform", Change: image(d.Ref("busybox:foreign")), Field: "linux/", Code: codes.NotFound},
		{Name: "no credentials", Change: image(d.Ref("private:1")), Field: "had no credentials", Code: codes.Unauthenticated},
		{Name: "nobody may, and no credentials", Change: image(d.Ref("forbidden:1")), Field: "had no credentials", Code: codes.PermissionDenied},
		{Name: "credentials for elsewhere", Change: func(r pullRequest) {
			r.Image.Image = d.Ref("private:1")
			r.Auth = &cri.AuthConfig{Username: "alice", Password: "not-the-word", ServerAddress: "https://elsewhere.test/v1/"}
		}, Field: "for \"elsewhere.test\" and were not sent", Code: codes.Unauthenticated},
		{Name: "wrong credentials", Change: func(r pullRequest) {
			r.Image.Image, r.Auth = d.Ref("private:1"), &cri.AuthConfig{Username: "alice", Password: "not-the-word"}
		}, Field: "had a user name and password", Code: codes.Unauthenticated},
		{Name: "unknown handler", Change: func(r pullRequest) { r.Image.RuntimeHandler = "no-such-handler" }, Field: `runtime_handler "no-such-handler"`},
		{Name: "nobody may", Change: image(d.Ref("forbidden:1")), Field: "forbidden", Code: codes.PermissionDenied},
		{Name: "layer is not what the config says", Change: image(d.Ref("broken:diff-id")), Field: "broken:diff-id", Code: codes.DataLoss},
		{Name: "bomb", Change: image(d.Ref("hostile:bomb")), Field: "hostile:bomb", Code: codes.ResourceExhausted},
		{Name: "bomb-zstd", Change: image(d.Ref("hostile:bomb-zstd")), Field: "hostile:bomb-zstd", Code: codes.ResourceExhausted},
	}
}

func TestBadPulls(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs, harness.WithImages(`layer_size_max = "512Mi"`))
	before := d.Ledger()
	harness.WantRefused(t, badPulls(d), func() pullRequest { return &cri.PullImageRequest{Image: &cri.ImageSpec{Image: d.Ref(harness.Busybox)}} },
		func(r pullRequest) (string, error) { return askForImage(d, r) }, func(id string) { d.Must(d.RemoveImage(id)) })
	if list := d.ListImages(); len(list) > 0 {
		t.Errorf("images after refused pulls: %v", list)
	}
	d.WantFlat(before)
	if log, err := os.ReadFile(d.LogFile()); err != nil || strings.Contains(string(log), "not-the-word") {
		t.Errorf("a password is in the daemon's log (%v)", err)
	}
}

// TestBadRegistries: a kubelet tells a registry that is away by the first word of the message, and only when the code is Unknown. What the
// registry says about the request itself has a code.
func TestBadRegistries(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	before := d.Ledger()
	away := "RegistryUnavailable: "
	for _, row := range []struct {
		name  string
		fault fixture.Fault
		code  codes.Code
		start string
	}{
		{"500", fixture.Fault{Status: 500}, codes.Unknown, away},
		{"502 for a manifest", fixture.Fault{Match: ".*/manifests/", Status: 502}, codes.Unknown, away},
		{"503 for blobs", fixture.Fault{Match: "GET .*/blobs/", Status: 503}, codes.Unknown, away},
		{"504", fixture.Fault{Status: 504}, codes.Unknown, away},
		{"429", fixture.Fault{Status: 429}, codes.Unknown, away},
		{"closed before the answer", fixture.Fault{Truncate: true}, codes.Unknown, away},
		{"closed in every blob", fixture.Fault{Match: "GET .*/blobs/", Truncate: true}, codes.Unknown, away},
		{"401", fixture.Fault{Status: 401}, codes.Unauthenticated, "pull "},
		{"403", fixture.Fault{Status: 403}, codes.PermissionDenied, "pull "},
		{"404", fixture.Fault{Status: 404}, codes.NotFound, "pull "},
		{"other bytes in every blob", fixture.Fault{Match: "GET .*/blobs/", Corrupt: true}, codes.DataLoss, "pull "},
	} {
		r := fixture.ForTest(t)
		r.Inject(row.fault)
		_, err := d.TryPull(r.Ref(harness.Busybox), nil)
		if status.Code(err) != row.code || !strings.HasPrefix(status.Convert(err).Message(), row.start) {
			t.Errorf("%s: want %s and a message that begins with %q, got: %v", row.name, row.code, row.start, err)
		}
	}
	dead := harness.DeadAddress(t)
	_, err := d.TryPull(dead+"/library/busybox:1", nil)
	harness.WantCode(t, err, codes.Unknown, dead)
	if !strings.HasPrefix(status.Convert(err).Message(), away) {
		t.Errorf("nobody listens: a kubelet wants the prefix: %v", err)
	}
	// SignatureValidationFailed, the other word that a kubelet knows, is never said: cribox checks no signatures.
	if list := d.ListImages(); len(list) > 0 {
		t.Errorf("images after failed pulls: %v", list)
	}
	d.WantFlat(before)
}

// TestForeignCredentials: what is meant for another server is not sent to this one.
func TestForeignCredentials(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	auth := &cri.AuthConfig{Username: fixture.Username, Password: fixture.Password, ServerAddress: "https://elsewhere.test/v1/"}
	_, err := d.TryPull(d.Ref("private:1"), auth)
	harness.WantCode(t, err, codes.Unauthenticated)
	auth.ServerAddress = d.Registry().Addr
	_, err = d.TryPull(d.Ref("private:1"), auth)
	d.Must(err)
}

func TestBadImageRequests(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	look := func(image *cri.ImageSpec) error {
		_, err := d.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: image})
		return err
	}
	remove := func(image *cri.ImageSpec) error {
		_, err := d.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
		return err
	}
	for name, ask := range map[string]func(*cri.ImageSpec) error{"ImageStatus": look, "RemoveImage": remove} {
		harness.WantCode(t, ask(nil), codes.InvalidArgument, "image")
		harness.WantCode(t, ask(&cri.ImageSpec{}), codes.InvalidArgument, "image")
		for _, ref := range []string{"BAD REF", ":tag", "../../etc/passwd", "busybox@sha256:1234", "a\x00b", strings.Repeat("a", 10<<10)} {
			err := ask(&cri.ImageSpec{Image: ref})
			if message := status.Convert(err).Message(); status.Code(err) != codes.InvalidArgument || !strings.Contains(message, "image reference") || len(message) > 1000 {
				t.Errorf("%s of %.30q: want InvalidArgument that names it, got: %.300v", name, ref, err)
			}
		}
		// What is not here: nothing to tell, nothing to remove.
		for _, ref := range []string{"docker.io/library/never-pulled:1", "sha256:" + strings.Repeat("a", 64)} {
			if err := ask(&cri.ImageSpec{Image: ref}); err != nil {
				t.Errorf("%s of %s, which was never pulled: %v", name, ref, err)
			}
		}
	}
	if i := d.ImageStatus("docker.io/library/never-pulled:1"); i != nil {
		t.Errorf("an image that was never pulled: %v", i)
	}
}

// TestRemoveImageInUse: an image stays as long as a container, or the daemon itself, needs it, and keeps all its names.
func TestRemoveImageInUse(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	id := d.Pulled(harness.Busybox)
	d.Pulled("busybox:latest")
	p := d.RunPod(harness.OnHostNetwork)
	c := p.Create(harness.Idle())
	for _, ref := range []string{id, d.Ref(harness.Busybox)} {
		harness.WantCode(t, d.RemoveImage(ref), codes.FailedPrecondition, c.ID)
	}
	if i := d.ImageStatus(id); i == nil || len(i.RepoTags) != 2 {
		t.Errorf("after a removal that was refused: %v", i)
	}
	c.Remove()
	d.Must(d.RemoveImage(id))

	pinned := harness.PrepareDaemon(t)
	config, err := os.ReadFile(pinned.ConfigFile())
	d.Must(err)
	ref := pinned.Ref("pause:1")
	d.Must(os.WriteFile(pinned.ConfigFile(), slices.Concat([]byte("pause_image = \""+ref+"\"\n"), config), 0o600))
	pinned.Start()
	pinned.Empty = pinned.Ledger()
	pinned.Pulled("pause:1")
	if i := pinned.ImageStatus(ref); i == nil || !i.Pinned {
		t.Errorf("the pause image is not pinned: %v", i)
	}
	// As long as a pod runs on it, it stays; then the client may have its way.
	box := pinned.RunPod(harness.OnHostNetwork)
	harness.WantCode(t, pinned.RemoveImage(ref), codes.FailedPrecondition, box.ID)
	box.Remove()
	pinned.Must(pinned.RemoveImage(ref))
	if i := pinned.ImageStatus(ref); i != nil {
		t.Errorf("a pinned image after its removal: %v", i)
	}
}

// TestImageFsGone: figures of a disk that is not there are an error; everything else goes on.
func TestImageFsGone(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	id := d.Pulled(harness.Busybox)
	d.Must(os.Rename(d.Root, d.Root+".away"))
	_, err := d.Images.ImageFsInfo(context.Background(), &cri.ImageFsInfoRequest{})
	harness.WantCode(t, err, codes.Internal, d.Root)
	if list := d.ListImages(); len(list) != 1 || d.ImageStatus(id) == nil {
		t.Errorf("images are not listed any more: %v", list)
	}
	if left := d.Listed(); len(left) > 0 {
		t.Errorf("listed: %v", left)
	}
	d.Must(os.Rename(d.Root+".away", d.Root))
	_, err = d.Images.ImageFsInfo(context.Background(), &cri.ImageFsInfoRequest{})
	d.Must(err)
}
