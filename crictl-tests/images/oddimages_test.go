package images

import (
	"archive/tar"
	"fmt"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestOddUsers: a name in the image's passwd is a name, only digits are a number, and the image's status says what a container runs as.
func TestOddUsers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	files := harness.UserFiles("root:x:0:0::/:/bin/sh\n1user:x:1500:1501::/:/bin/sh\nüser:x:1502:1503::/:/bin/sh\n+33:x:1504:1505::/:/bin/sh\nfour:x:1506:1507\n",
		"root:x:0:\n1group:x:1600:\n")
	for i, row := range []struct{ user, ids, name string }{
		{"1user", "1500 1501", "1user"}, {"üser", "1502 1503", "üser"}, {"+33", "1504 1505", "+33"}, {"four", "1506 1507", "four"},
		{"1user:1group", "1500 1600", "1user"}, {"007", "7 0", "7"}, {":1600", "0 1600", ""},
	} {
		id := d.Hostile(fmt.Sprintf("users:%d", i), v1.Config{User: row.user}, files)
		img := d.ImageStatus(id)
		shown := img.Username
		if img.Uid != nil {
			shown += fmt.Sprint(img.Uid.Value)
		}
		got := p.OutputOf(harness.OfImage(id), harness.Shell("echo $(id -u) $(id -g)"), harness.With(func(c *cri.ContainerConfig) {
			// What a kubelet makes of the image's status.
			if img.Uid != nil {
				c.Linux.SecurityContext.RunAsUser = img.Uid
			}
			c.Linux.SecurityContext.RunAsUsername = img.Username
		}))
		if row.user == "1user:1group" { // the kubelet asks for the user alone
			got = p.OutputOf(harness.OfImage(id), harness.Shell("echo $(id -u) $(id -g)"))
		}
		if row.user == ":1600" {
			shown = ""
		}
		if got != row.ids+"\n" || shown != row.name {
			t.Errorf("USER %q runs as %q and is shown as %q, want %q and %q", row.user, got, shown, row.ids, row.name)
		}
	}
}

// TestClosedRoot: the root of an image whose layers say 0700 can be entered by every user, in a container and as a volume.
func TestClosedRoot(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	id := d.Hostile("closed:1", v1.Config{User: "33"}, []fixture.Entry{{Name: "./", Type: tar.TypeDir, Mode: 0o700}, {Name: "f", Data: []byte("open\n")}})
	if got := p.OutputOf(harness.OfImage(id), harness.Shell("cat /f; ls -d /bin")); got != "open\n/bin\n" {
		t.Errorf("the container prints %q", got)
	}
}

// TestEmptyEntrypoint: an ENTRYPOINT of one empty string is none.
func TestEmptyEntrypoint(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	id := d.Hostile("entrypoint:1", v1.Config{Entrypoint: []string{""}, Cmd: []string{"echo", "from CMD"}})
	nothing := harness.With(func(c *cri.ContainerConfig) { c.Command, c.Args = nil, nil })
	if got := p.OutputOf(harness.OfImage(id), nothing); got != "from CMD\n" {
		t.Errorf("the image's own command prints %q", got)
	}
	if got := p.OutputOf(harness.OfImage(id), harness.With(func(c *cri.ContainerConfig) { c.Command, c.Args = nil, []string{"echo", "from args"} })); got != "from args\n" {
		t.Errorf("args print %q", got)
	}
}
