package imageservice

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/imageservice/garbage"
	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/overlay"
)

const mappedRoot = 300000

// userNS returns a user namespace whose IDs are mapped to the host's from mappedRoot on.
func userNS(t *testing.T) *os.File {
	t.Helper()
	ids := []syscall.SysProcIDMap{{HostID: mappedRoot, Size: 65536}}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	imagetest.Must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	imagetest.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	imagetest.Must(t, unix.Lstat(path, &st))
	if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// TestMountMapped checks that an image's files belong to the IDs of a user namespace, with any
// number of layers, and that the layers are not changed.
func TestMountMapped(t *testing.T) {
	r := imagetest.NewRegistry(t)
	owned := imagetest.File("home/f")
	owned.Uid, owned.Gid = 7, 8
	layers := []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.Dir("./", 0o711), imagetest.File("f"), "x", owned, "y"))}
	for i := range 60 {
		layers = append(layers, imagetest.Gzip(imagetest.Tar(t, imagetest.Dir("./", 0o711), imagetest.File(fmt.Sprint("f", i)), fmt.Sprint(i))))
	}
	c := newImages(t, nil)
	ns := userNS(t)
	imagetest.Must(t, c.CheckIDMap(ns))
	for name, stack := range map[string][]imagetest.Layer{"none": {}, "one": layers[:1], "many": layers} {
		id, _ := r.Build(name, stack, nil)
		c.mustPull(t, r.Ref("app:"+name))
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ro=", readOnly), func(t *testing.T) {
				base := t.TempDir()
				target := filepath.Join(base, "rootfs")
				rootfs := Rootfs{ImageID: id, Dir: filepath.Join(base, "c"), Target: target, ReadOnly: readOnly, UserNS: ns}
				imagetest.Must(t, c.Mount(t.Context(), rootfs))
				defer c.Unmount(context.Background(), target)
				wantOwner(t, target, mappedRoot, mappedRoot)
				if name == "none" {
					return
				}
				mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
				imagetest.Must(t, err)
				names, err := c.Layers(id)
				imagetest.Must(t, err)
				if len(mounts) != 1 || !garbage.ShowsLayer(mounts[0].VFSOptions, names[len(names)-1]) {
					t.Errorf("the mount does not show its layers, and Open would delete them: %v", mounts)
				}
				if info, _ := os.Stat(target); info.Mode().Perm() != 0o755 {
					t.Error(info.Mode())
				}
				imagetest.WantFile(t, filepath.Join(target, "f"), "x")
				wantOwner(t, filepath.Join(target, "f"), mappedRoot, mappedRoot)
				wantOwner(t, filepath.Join(target, "home/f"), mappedRoot+7, mappedRoot+8)
				if name == "many" {
					imagetest.WantFile(t, filepath.Join(target, "f59"), "59")
				}
				if !readOnly { // a file that is copied up keeps its owner
					imagetest.Must(t, os.WriteFile(filepath.Join(target, "home/f"), []byte("z"), 0o644))
					wantOwner(t, filepath.Join(base, "c/upper/home/f"), mappedRoot+7, mappedRoot+8)
				}
				imagetest.Must(t, c.Unmount(t.Context(), target))
				imagetest.Must(t, c.Unmount(t.Context(), target))
			})
		}
		names, err := c.Layers(id)
		imagetest.Must(t, err)
		for _, l := range names {
			wantOwner(t, l, 0, 0)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), c.cfg.Root) {
		t.Error("mounts are left")
	}
}

// TestCheckIDMap checks that the error names a file system without id-mapped mounts.
func TestCheckIDMap(t *testing.T) {
	if err := overlay.CheckIDMap("/proc/sys", userNS(t)); err == nil || !strings.Contains(err.Error(), "/proc/sys") || !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}
