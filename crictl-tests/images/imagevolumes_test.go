package images

import (
	"context"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// models pulls an image of one layer that holds data only.
func models(d *harness.Daemon, name string) string {
	d.Helper()
	archive, err := fixture.Tar(
		fixture.Entry{Name: "top", Data: []byte("of the image\n")},
		fixture.Entry{Name: "dir/"}, fixture.Entry{Name: "dir/file", Data: []byte("in a folder\n"), UID: 7, GID: 8},
		fixture.Entry{Name: "dir/tool", Mode: 0o755, Data: []byte("#!/bin/sh\necho ran\n")},
		harness.SymlinkEntry("link", "/dir"), harness.SymlinkEntry("to-file", "dir/../link/file"))
	d.Must(err)
	layer, err := fixture.NewLayer(archive, fixture.Gzip)
	d.Must(err)
	img, err := fixture.FromLayers(v1.Config{}, nil, layer)
	d.Must(err)
	id, err := d.TryHostile(name, img)
	d.Must(err)
	return id
}

func tryRemoveImage(d *harness.Daemon, id string) error {
	_, err := d.Images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
	return err
}

// TestImageVolumes: images are there with what they hold, read-only, whole or in part, and in use as long as the container is.
func TestImageVolumes(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	one, many := models(d, "volumes:1"), d.Pulled("layers:50")
	d.Pulled(harness.Busybox)
	p := d.RunPod()
	before := d.Ledger()
	noexec, recursive := harness.Volume(one, "dir", "/noexec"), harness.Volume(one, "", "/recursive")
	noexec.MountOptions, recursive.RecursiveReadOnly = []string{"noexec", "nosuid"}, true
	byName := harness.Volume(d.Ref("volumes:1"), "", "/named")
	asked := []*cri.Mount{
		harness.Volume(one, "", "/whole"), harness.Volume(many, "", "/many"), harness.Volume(one, "dir", "/part"), harness.Volume(one, "dir/file", "/etc/one/file"),
		harness.Volume(one, "link", "/linked"), harness.Volume(one, "to-file", "/linked-file"), harness.Volume(one, "./dir/", "/plain"), noexec, recursive, byName,
		{ContainerPath: "/host", HostPath: d.Logs()},
	}
	c, other := p.Run(harness.Idle(), harness.Mounted(asked...)), p.Run(harness.Idle(), harness.Mounted(harness.Volume(one, "", "/whole")))
	for path, want := range map[string]string{
		"/whole/top": "of the image\n", "/whole/dir/file": "in a folder\n", "/many/top": "50\n", "/part/file": "in a folder\n", "/etc/one/file": "in a folder\n",
		"/linked/file": "in a folder\n", "/linked-file": "in a folder\n", "/plain/file": "in a folder\n", "/recursive/top": "of the image\n", "/named/top": "of the image\n",
	} {
		if got := c.Exec("cat", path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	if got := c.Exec("stat", "-c", "%u:%g", "/part/file"); got != "7:8\n" {
		t.Errorf("the file's owner is %q", got)
	}
	lines := c.MountLines()
	for _, m := range asked[:len(asked)-1] {
		if !strings.HasPrefix(lines[m.ContainerPath]+",", "ro,") || strings.Contains(lines[m.ContainerPath], "shared") {
			t.Errorf("%s is mounted %q", m.ContainerPath, lines[m.ContainerPath])
		}
		if r, err := c.TryExec(10, "sh", "-c", "echo x >> "+m.ContainerPath+"; touch "+m.ContainerPath+"/x"); err != nil || r.Code == 0 {
			t.Errorf("%s can be written: %v, %v", m.ContainerPath, r, err)
		}
	}
	if got := c.Exec("/part/tool"); got != "ran\n" {
		t.Errorf("a program of an image: %q", got)
	}
	if r, err := c.TryExec(10, "/noexec/tool"); err != nil || r.Code == 0 {
		t.Errorf("a program of a noexec mount ran: %v, %v", r, err)
	}
	told := c.Status().Mounts
	for i, want := range asked {
		if want.Image != nil {
			want.Image.Image = one
			if i == 1 {
				want.Image.Image = many
			}
			want.Image.ImageRef = want.Image.Image
		}
		harness.WantEqual(t, "a mount of the status", told[i], want)
	}

	harness.WantCode(t, tryRemoveImage(d, many), codes.FailedPrecondition, c.ID)
	c.Stop(0)
	harness.WantCode(t, tryRemoveImage(d, many), codes.FailedPrecondition, c.ID)
	c.Remove()
	harness.WantCode(t, tryRemoveImage(d, one), codes.FailedPrecondition, other.ID)
	if got := other.Exec("cat", "/whole/top"); got != "of the image\n" {
		t.Errorf("after another container was removed: %q", got)
	}
	other.Remove()
	d.WantFlat(before)
	d.Must(tryRemoveImage(d, one))
	d.Must(tryRemoveImage(d, many))
}

// TestImageVolumesOfTheDead: an exited container keeps no mount, and its images.
func TestImageVolumesOfTheDead(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	id := models(d, "volumes-of-the-dead:1")
	c := d.RunPod().Run(harness.Shell("cat /v/top"), harness.Mounted(harness.Volume(id, "", "/v")))
	c.WaitExit()
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "of the image\n" {
		t.Errorf("it saw %q", got)
	}
	harness.Eventually(t, "its mounts to go", func() error {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		d.Must(err)
		return harness.Unless(!strings.Contains(string(mounts), c.ID), "still mounted")
	})
	harness.WantCode(t, tryRemoveImage(d, id), codes.FailedPrecondition, c.ID)
}

// TestImageVolumesOutliveTheDaemon: one that runs and one that was created have theirs after kill -9.
func TestImageVolumesOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	id := models(d, "volumes-outlive:1")
	d.Pulled(harness.Busybox)
	flat := d.Ledger()
	p := d.RunPod()
	up, made := p.Run(harness.Idle(), harness.Mounted(harness.Volume(id, "", "/v"))), p.Create(harness.Idle(), harness.Mounted(harness.Volume(id, "dir", "/v")))
	d.Restart()
	made.Start()
	if got := up.Exec("cat", "/v/top") + made.Exec("cat", "/v/file"); got != "of the image\nin a folder\n" {
		t.Errorf("after a restart: %q", got)
	}
	for _, c := range []*harness.Container{up, made} {
		harness.WantCode(t, tryRemoveImage(d, id), codes.FailedPrecondition, "in use by container")
		if got := c.Status().Mounts[0].Image.GetImage(); got != id {
			t.Errorf("the status says image %q", got)
		}
		c.Remove()
	}
	p.Stop()
	p.Remove()
	d.WantFlat(flat)
	d.Must(tryRemoveImage(d, id))
}

// TestImageVolumesFail: a kubelet knows these failures by their first word.
func TestImageVolumesFail(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	id := models(d, "volumes-fail:1")
	d.Pulled(harness.Busybox)
	p := d.RunPod()
	before := d.Ledger()
	for _, row := range []struct {
		name  string
		mount *cri.Mount
		code  codes.Code
		words []string
	}{
		{"not pulled", harness.Volume("sha256:"+strings.Repeat("1", 64), "", "/v"), codes.NotFound, []string{"mount /v", "1111"}},
		{"no reference", harness.Volume("NOT A NAME", "", "/v"), codes.InvalidArgument, []string{"NOT A NAME"}},
		{"no such folder", harness.Volume(id, "dir/none", "/v"), codes.InvalidArgument, []string{`image_sub_path "dir/none"`, "no such file"}},
		{"below a file", harness.Volume(id, "top/x", "/v"), codes.InvalidArgument, []string{`image_sub_path "top/x"`}},
	} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Mounted(harness.Volume(id, "", "/good"), row.mount)))
		harness.WantCode(t, err, row.code, row.words...)
		if err != nil && !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: ") {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	d.WantNoContainers()
	d.WantFlat(before)
	d.Must(tryRemoveImage(d, id)) // nothing holds it
}

// TestImageVolumesInUserNamespace: files of an image belong to the same users inside as without a namespace.
func TestImageVolumesInUserNamespace(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	id, many := models(d, "volumes-userns:1"), d.Pulled("layers:50")
	p := d.RunPod(harness.InUserNamespace)
	mappedToo := harness.Volume(id, "dir", "/part")
	mappedToo.UidMappings, mappedToo.GidMappings = harness.UserMapping(), harness.GroupMapping()
	c := p.Run(harness.Idle(), harness.Mounted(harness.Volume(id, "", "/whole"), mappedToo, harness.Volume(many, "", "/many"), harness.Volume(id, "dir/file", "/one")))
	if got := c.Exec("stat", "-c", "%u:%g", "/whole", "/whole/dir/file", "/part/file", "/many/top", "/one"); got != "0:0\n7:8\n7:8\n0:0\n7:8\n" {
		t.Errorf("owners inside: %q", strings.Fields(got))
	}
	if got := c.Exec("cat", "/whole/top", "/one", "/many/top"); got != "of the image\nin a folder\n50\n" {
		t.Errorf("files: %q", got)
	}
	other := harness.Volume(id, "", "/v")
	other.UidMappings, other.GidMappings = []*cri.IDMapping{{HostId: 5, Length: 6}}, harness.GroupMapping()
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Mounted(other)))
	harness.WantCode(t, err, codes.InvalidArgument, "mounts.uidMappings")
}
