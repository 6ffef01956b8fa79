package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

// TestTooManyVolumes: an image cannot have itself copied as often as it likes.
func TestTooManyVolumes(t *testing.T) {
	m := &Mounts{Layout: layout.Layout{Root: t.TempDir()}}
	p, c := table.NewPodEntry("p", &runtimeapi.PodSandboxConfig{}), table.NewContainerEntry("p", store.Container{ID: "c"}, &runtimeapi.ContainerConfig{})
	img := imageservice.Image{}
	img.Config.Config.Volumes = map[string]struct{}{}
	for i := range maxVolumes {
		img.Config.Config.Volumes[fmt.Sprint("/v", i)] = struct{}{}
	}
	if all, err := m.MakeVolumes(t.Context(), p, c, t.TempDir(), img); err != nil || len(all) != maxVolumes {
		t.Errorf("%d volumes: %v", len(all), err)
	}
	if err := os.RemoveAll(m.Layout.Root); err != nil {
		t.Fatal(err)
	}
	img.Config.Config.Volumes["/more"] = struct{}{}
	if _, err := m.MakeVolumes(t.Context(), p, c, t.TempDir(), img); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if _, err := os.Stat(m.Layout.Root); err == nil {
		t.Error("something was made")
	}
	c.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/more"}}
	if _, err := m.MakeVolumes(t.Context(), p, c, t.TempDir(), img); err != nil {
		t.Errorf("with a mount on one of them: %v", err)
	}
}

// TestVolumeSource: what a path does to the search for it is the request's fault, what the machine
// lacks is not.
func TestVolumeSource(t *testing.T) {
	root := t.TempDir()
	if err := os.Symlink("loop", filepath.Join(root, "loop")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{"none": "no such file", "file/x": "not a directory", "loop": "too many", strings.Repeat("n", 256): "too long"} {
		if _, err := resolveInVolume(root, sub); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.10s: %v, want %s", sub, err, want)
		}
	}
	for _, err := range []error{unix.EMFILE, unix.EIO, unix.ENOMEM} {
		if blamed := blamePath(err); errdefs.IsInvalidArgument(blamed) || blamed != err {
			t.Errorf("%v: %v", err, blamed)
		}
	}
}
