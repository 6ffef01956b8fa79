package crictltests

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
)

type pullRequest = *cri.PullImageRequest

func (d *daemon) askForImage(r pullRequest) (string, error) {
	reply, err := d.images.PullImage(context.Background(), r)
	return reply.GetImageRef(), err
}

func (d *daemon) removeImage(ref string) error {
	_, err := d.images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return err
}

// badPulls is PullImage: what is wrong with the request, and what the registry says to a right one.
func badPulls(d *daemon) []bad[pullRequest] {
	image := func(ref string) func(pullRequest) { return func(r pullRequest) { r.Image.Image = ref } }
	auth := func(a *cri.AuthConfig) func(pullRequest) { return func(r pullRequest) { r.Auth = a } }
	return []bad[pullRequest]{
		{name: "no image", change: func(r pullRequest) { r.Image = nil }, field: "image"},
		{name: "empty image", change: image(""), field: "image"},
		{name: "upper case", change: image("docker.io/UPPER/case:1"), field: "UPPER/case:1"},
		{name: "blank", change: image("bad ref"), field: "bad ref"},
		{name: "no name", change: image(":tag"), field: ":tag"},
		{name: "path", change: image("../../etc/passwd"), field: "../../etc/passwd"},
		{name: "NUL", change: image("busybox\x00"), field: "busybox"},
		{name: "10 KiB", change: image(strings.Repeat("a", 10<<10)), field: "aaaa"},
		{name: "short digest", change: image("busybox@sha256:1234"), field: "busybox@sha256:1234"},
		{name: "digest of another kind", change: image("busybox@md5:" + strings.Repeat("a", 32)), field: "busybox@md5"},
		{name: "id", change: image("sha256:" + strings.Repeat("a", 64)), field: "image id"},

		{name: "user of two lines", change: auth(&cri.AuthConfig{Username: "a\nb", Password: "c"}), field: "username"},
		{name: "password of two lines", change: auth(&cri.AuthConfig{Username: "a", Password: "b\r\nX: y"}), field: "password"},
		{name: "token of two lines", change: auth(&cri.AuthConfig{RegistryToken: "a\nb"}), field: "registry_token"},
		{name: "server of two lines", change: auth(&cri.AuthConfig{ServerAddress: "a\nb"}), field: "server_address"},
		{name: "auth is not base64", change: auth(&cri.AuthConfig{Auth: "%%%"}), field: "auth"},
		{name: "auth is one word", change: auth(&cri.AuthConfig{Auth: "YWxpY2U="}), field: "auth"},

		{name: "unknown tag", change: image(d.ref("busybox:no-such-tag")), field: "no-such-tag", code: codes.NotFound},
		{name: "unknown repository", change: image(d.ref("no-such-image:1")), field: "no-such-image", code: codes.NotFound},
		{name: "no such platform", change: image(d.ref("busybox:foreign")), field: "linux/", code: codes.NotFound},
		{name: "no credentials", change: image(d.ref("private:1")), field: "brought no credentials", code: codes.Unauthenticated},
		{name: "nobody may, and no credentials", change: image(d.ref("forbidden:1")), field: "brought no credentials", code: codes.PermissionDenied},
		{name: "credentials for elsewhere", change: func(r pullRequest) {
			r.Image.Image = d.ref("private:1")
			r.Auth = &cri.AuthConfig{Username: "alice", Password: "not-the-word", ServerAddress: "https://elsewhere.test/v1/"}
		}, field: "for \"elsewhere.test\" and were not shown", code: codes.Unauthenticated},
		{name: "wrong credentials", change: func(r pullRequest) {
			r.Image.Image, r.Auth = d.ref("private:1"), &cri.AuthConfig{Username: "alice", Password: "not-the-word"}
		}, field: "brought a user name and password", code: codes.Unauthenticated},
		{name: "unknown handler", change: func(r pullRequest) { r.Image.RuntimeHandler = "no-such-handler" }, field: `runtime_handler "no-such-handler"`},
		{name: "nobody may", change: image(d.ref("forbidden:1")), field: "forbidden", code: codes.PermissionDenied},
		{name: "layer is not what the config says", change: image(d.ref("broken:diff-id")), field: "broken:diff-id", code: codes.DataLoss},
		{name: "bomb", change: image(d.ref("hostile:bomb")), field: "hostile:bomb", code: codes.ResourceExhausted},
		{name: "bomb-zstd", change: image(d.ref("hostile:bomb-zstd")), field: "hostile:bomb-zstd", code: codes.ResourceExhausted},
	}
}

func TestBadPulls(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs, withImages(`layer_size_max = "512Mi"`))
	before := d.ledger()
	wantRefused(t, badPulls(d), func() pullRequest { return &cri.PullImageRequest{Image: &cri.ImageSpec{Image: d.ref(busybox)}} },
		d.askForImage, func(id string) { d.must(d.removeImage(id)) })
	if list := d.listImages(); len(list) > 0 {
		t.Errorf("images after refused pulls: %v", list)
	}
	d.wantFlat(before)
	if log, err := os.ReadFile(d.logFile()); err != nil || strings.Contains(string(log), "not-the-word") {
		t.Errorf("a password is in the daemon's log (%v)", err)
	}
}

// TestBadRegistries: a kubelet tells a registry that is away by the first word of the message, and only when the code is Unknown. What the
// registry says about the request itself has a code.
func TestBadRegistries(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	before := d.ledger()
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
		_, err := d.tryPull(r.Ref(busybox), nil)
		if status.Code(err) != row.code || !strings.HasPrefix(status.Convert(err).Message(), row.start) {
			t.Errorf("%s: want %s and a message that begins with %q, got: %v", row.name, row.code, row.start, err)
		}
	}
	dead := deadAddress(t)
	_, err := d.tryPull(dead+"/library/busybox:1", nil)
	wantCode(t, err, codes.Unknown, dead)
	if !strings.HasPrefix(status.Convert(err).Message(), away) {
		t.Errorf("nobody listens: a kubelet wants the prefix: %v", err)
	}
	// SignatureValidationFailed, the other word that a kubelet knows, is never said: cribox checks no signatures.
	if list := d.listImages(); len(list) > 0 {
		t.Errorf("images after failed pulls: %v", list)
	}
	d.wantFlat(before)
}

// TestForeignCredentials: what is meant for another server is not sent to this one.
func TestForeignCredentials(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	auth := &cri.AuthConfig{Username: fixture.Username, Password: fixture.Password, ServerAddress: "https://elsewhere.test/v1/"}
	_, err := d.tryPull(d.ref("private:1"), auth)
	wantCode(t, err, codes.Unauthenticated)
	auth.ServerAddress = d.registry().Addr
	_, err = d.tryPull(d.ref("private:1"), auth)
	d.must(err)
}

func TestBadImageRequests(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	look := func(image *cri.ImageSpec) error {
		_, err := d.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: image})
		return err
	}
	remove := func(image *cri.ImageSpec) error {
		_, err := d.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: image})
		return err
	}
	for name, ask := range map[string]func(*cri.ImageSpec) error{"ImageStatus": look, "RemoveImage": remove} {
		wantCode(t, ask(nil), codes.InvalidArgument, "image")
		wantCode(t, ask(&cri.ImageSpec{}), codes.InvalidArgument, "image")
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
	if i := d.imageStatus("docker.io/library/never-pulled:1"); i != nil {
		t.Errorf("an image that was never pulled: %v", i)
	}
}

// TestRemoveWhatIsNeeded: an image stays as long as a container, or the daemon itself, needs it, and keeps all its names.
func TestRemoveWhatIsNeeded(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.pulled(busybox)
	d.pulled("busybox:latest")
	p := d.runPod(onHostNetwork)
	c := p.create(idle())
	for _, ref := range []string{id, d.ref(busybox)} {
		wantCode(t, d.removeImage(ref), codes.FailedPrecondition, c.id)
	}
	if i := d.imageStatus(id); i == nil || len(i.RepoTags) != 2 {
		t.Errorf("after a removal that was refused: %v", i)
	}
	c.remove()
	d.must(d.removeImage(id))

	pinned := prepareDaemon(t)
	config, err := os.ReadFile(pinned.configFile())
	d.must(err)
	ref := pinned.ref("pause:1")
	d.must(os.WriteFile(pinned.configFile(), slices.Concat([]byte("pause_image = \""+ref+"\"\n"), config), 0o600))
	pinned.start()
	pinned.empty = pinned.ledger()
	pinned.pulled("pause:1")
	if i := pinned.imageStatus(ref); i == nil || !i.Pinned {
		t.Errorf("the pause image is not pinned: %v", i)
	}
	// As long as a pod runs on it, it stays; then the client may have its way.
	box := pinned.runPod(onHostNetwork)
	wantCode(t, pinned.removeImage(ref), codes.FailedPrecondition, box.id)
	box.remove()
	pinned.must(pinned.removeImage(ref))
	if i := pinned.imageStatus(ref); i != nil {
		t.Errorf("a pinned image after its removal: %v", i)
	}
}

// TestImageFsGone: figures of a disk that is not there are an error; everything else goes on.
func TestImageFsGone(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.pulled(busybox)
	d.must(os.Rename(d.root, d.root+".away"))
	_, err := d.images.ImageFsInfo(context.Background(), &cri.ImageFsInfoRequest{})
	wantCode(t, err, codes.Internal, d.root)
	if list := d.listImages(); len(list) != 1 || d.imageStatus(id) == nil {
		t.Errorf("images are not listed any more: %v", list)
	}
	if left := d.listed(); len(left) > 0 {
		t.Errorf("listed: %v", left)
	}
	d.must(os.Rename(d.root+".away", d.root))
	_, err = d.images.ImageFsInfo(context.Background(), &cri.ImageFsInfoRequest{})
	d.must(err)
}
