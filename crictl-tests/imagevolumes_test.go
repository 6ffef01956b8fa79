package crictltests

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// volume is a mount of an image, or of what sub names in it, as a kubelet asks for it.
func volume(image, sub, inside string) *cri.Mount {
	return &cri.Mount{ContainerPath: inside, Image: &cri.ImageSpec{Image: image}, ImageSubPath: sub, Readonly: true}
}

func mounted(mounts ...*cri.Mount) containerOption {
	return func(c *cri.ContainerConfig) { c.Mounts = append(c.Mounts, mounts...) }
}

// models pulls an image of one layer that holds data only.
func (d *daemon) models(name string) string {
	d.Helper()
	archive, err := fixture.Tar(
		fixture.Entry{Name: "top", Data: []byte("of the image\n")},
		fixture.Entry{Name: "dir/"}, fixture.Entry{Name: "dir/file", Data: []byte("in a folder\n"), UID: 7, GID: 8},
		fixture.Entry{Name: "dir/tool", Mode: 0o755, Data: []byte("#!/bin/sh\necho ran\n")},
		symlink("link", "/dir"), symlink("to-file", "dir/../link/file"))
	d.must(err)
	layer, err := fixture.NewLayer(archive, fixture.Gzip)
	d.must(err)
	img, err := fixture.FromLayers(v1.Config{}, nil, layer)
	d.must(err)
	id, err := d.tryHostile(name, img)
	d.must(err)
	return id
}

// mountLines returns of mountinfo, as a container sees it, the options by mountpoint: of the mount itself, then what propagates.
func (c *container) mountLines() map[string]string {
	c.Helper()
	all := map[string]string{}
	for line := range strings.Lines(c.exec("cat", "/proc/self/mountinfo")) {
		f := strings.Fields(line)
		end := slices.Index(f, "-")
		all[f[4]] = strings.Join(f[5:end], " ")
	}
	return all
}

func (d *daemon) tryRemoveImage(id string) error {
	_, err := d.images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
	return err
}

// TestImageVolumes: images are there with what they hold, read-only, whole or in part, and in use as long as the container is.
func TestImageVolumes(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	one, many := d.models("volumes:1"), d.pulled("layers:50")
	d.pulled(busybox)
	p := d.runPod()
	before := d.ledger()
	noexec, recursive := volume(one, "dir", "/noexec"), volume(one, "", "/recursive")
	noexec.MountOptions, recursive.RecursiveReadOnly = []string{"noexec", "nosuid"}, true
	byName := volume(d.ref("volumes:1"), "", "/named")
	asked := []*cri.Mount{
		volume(one, "", "/whole"), volume(many, "", "/many"), volume(one, "dir", "/part"), volume(one, "dir/file", "/etc/one/file"),
		volume(one, "link", "/linked"), volume(one, "to-file", "/linked-file"), volume(one, "./dir/", "/plain"), noexec, recursive, byName,
		{ContainerPath: "/host", HostPath: d.logs()},
	}
	c, other := p.run(idle(), mounted(asked...)), p.run(idle(), mounted(volume(one, "", "/whole")))
	for path, want := range map[string]string{
		"/whole/top": "of the image\n", "/whole/dir/file": "in a folder\n", "/many/top": "50\n", "/part/file": "in a folder\n", "/etc/one/file": "in a folder\n",
		"/linked/file": "in a folder\n", "/linked-file": "in a folder\n", "/plain/file": "in a folder\n", "/recursive/top": "of the image\n", "/named/top": "of the image\n",
	} {
		if got := c.exec("cat", path); got != want {
			t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	if got := c.exec("stat", "-c", "%u:%g", "/part/file"); got != "7:8\n" {
		t.Errorf("the file's owner is %q", got)
	}
	lines := c.mountLines()
	for _, m := range asked[:len(asked)-1] {
		if !strings.HasPrefix(lines[m.ContainerPath]+",", "ro,") || strings.Contains(lines[m.ContainerPath], "shared") {
			t.Errorf("%s is mounted %q", m.ContainerPath, lines[m.ContainerPath])
		}
		if r, err := c.tryExec(10, "sh", "-c", "echo x >> "+m.ContainerPath+"; touch "+m.ContainerPath+"/x"); err != nil || r.code == 0 {
			t.Errorf("%s can be written: %v, %v", m.ContainerPath, r, err)
		}
	}
	if got := c.exec("/part/tool"); got != "ran\n" {
		t.Errorf("a program of an image: %q", got)
	}
	if r, err := c.tryExec(10, "/noexec/tool"); err != nil || r.code == 0 {
		t.Errorf("a program of a noexec mount ran: %v, %v", r, err)
	}
	told := c.status().Mounts
	for i, want := range asked {
		if want.Image != nil {
			want.Image.Image = one
			if i == 1 {
				want.Image.Image = many
			}
			want.Image.ImageRef = want.Image.Image
		}
		wantEqual(t, "a mount of the status", told[i], want)
	}

	wantCode(t, d.tryRemoveImage(many), codes.FailedPrecondition, c.id)
	c.stop(0)
	wantCode(t, d.tryRemoveImage(many), codes.FailedPrecondition, c.id)
	c.remove()
	wantCode(t, d.tryRemoveImage(one), codes.FailedPrecondition, other.id)
	if got := other.exec("cat", "/whole/top"); got != "of the image\n" {
		t.Errorf("after another container was removed: %q", got)
	}
	other.remove()
	d.wantFlat(before)
	d.must(d.tryRemoveImage(one))
	d.must(d.tryRemoveImage(many))
}

// TestImageVolumesOfTheDead: an exited container keeps no mount, and its images.
func TestImageVolumesOfTheDead(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.models("volumes-of-the-dead:1")
	c := d.runPod().run(shell("cat /v/top"), mounted(volume(id, "", "/v")))
	c.waitExit()
	if got := text(c.finalLog(), "stdout"); got != "of the image\n" {
		t.Errorf("it saw %q", got)
	}
	eventually(t, "its mounts to go", func() error {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		d.must(err)
		return unless(!strings.Contains(string(mounts), c.id), "still mounted")
	})
	wantCode(t, d.tryRemoveImage(id), codes.FailedPrecondition, c.id)
}

// TestImageVolumesOutliveTheDaemon: one that runs and one that was created have theirs after kill -9.
func TestImageVolumesOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.models("volumes-outlive:1")
	d.pulled(busybox)
	flat := d.ledger()
	p := d.runPod()
	up, made := p.run(idle(), mounted(volume(id, "", "/v"))), p.create(idle(), mounted(volume(id, "dir", "/v")))
	d.restart()
	made.start()
	if got := up.exec("cat", "/v/top") + made.exec("cat", "/v/file"); got != "of the image\nin a folder\n" {
		t.Errorf("after a restart: %q", got)
	}
	for _, c := range []*container{up, made} {
		wantCode(t, d.tryRemoveImage(id), codes.FailedPrecondition, "in use by container")
		if got := c.status().Mounts[0].Image.GetImage(); got != id {
			t.Errorf("the status says image %q", got)
		}
		c.remove()
	}
	p.stop()
	p.remove()
	d.wantFlat(flat)
	d.must(d.tryRemoveImage(id))
}

// TestImageVolumesFail: a kubelet knows these failures by their first word.
func TestImageVolumesFail(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id := d.models("volumes-fail:1")
	d.pulled(busybox)
	p := d.runPod()
	before := d.ledger()
	for _, row := range []struct {
		name  string
		mount *cri.Mount
		code  codes.Code
		words []string
	}{
		{"not pulled", volume("sha256:"+strings.Repeat("1", 64), "", "/v"), codes.NotFound, []string{"mount /v", "1111"}},
		{"no reference", volume("NOT A NAME", "", "/v"), codes.InvalidArgument, []string{"NOT A NAME"}},
		{"no such folder", volume(id, "dir/none", "/v"), codes.InvalidArgument, []string{`image_sub_path "dir/none"`, "no such file"}},
		{"below a file", volume(id, "top/x", "/v"), codes.InvalidArgument, []string{`image_sub_path "top/x"`}},
	} {
		_, err := p.tryCreate(p.containerConfig(idle(), mounted(volume(id, "", "/good"), row.mount)))
		wantCode(t, err, row.code, row.words...)
		if err != nil && !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: ") {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	d.wantNoContainers()
	d.wantFlat(before)
	d.must(d.tryRemoveImage(id)) // nothing holds it
}

// TestImageVolumesInUserNamespace: files of an image belong to the same users inside as without a namespace.
func TestImageVolumesInUserNamespace(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	id, many := d.models("volumes-userns:1"), d.pulled("layers:50")
	p := d.runPod(inUserNamespace)
	mappedToo := volume(id, "dir", "/part")
	mappedToo.UidMappings, mappedToo.GidMappings = userMapping(), groupMapping()
	c := p.run(idle(), mounted(volume(id, "", "/whole"), mappedToo, volume(many, "", "/many"), volume(id, "dir/file", "/one")))
	if got := c.exec("stat", "-c", "%u:%g", "/whole", "/whole/dir/file", "/part/file", "/many/top", "/one"); got != "0:0\n7:8\n7:8\n0:0\n7:8\n" {
		t.Errorf("owners inside: %q", strings.Fields(got))
	}
	if got := c.exec("cat", "/whole/top", "/one", "/many/top"); got != "of the image\nin a folder\n50\n" {
		t.Errorf("files: %q", got)
	}
	other := volume(id, "", "/v")
	other.UidMappings, other.GidMappings = []*cri.IDMapping{{HostId: 5, Length: 6}}, groupMapping()
	_, err := p.tryCreate(p.containerConfig(idle(), mounted(other)))
	wantCode(t, err, codes.InvalidArgument, "mounts.uidMappings")
}
