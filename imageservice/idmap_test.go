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
)

const mappedRoot = 300000

// userNS makes a user namespace whose ids are the host's from mappedRoot on.
func userNS(t *testing.T) *os.File {
	t.Helper()
	ids := []syscall.SysProcIDMap{{HostID: mappedRoot, Size: 65536}}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	if st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// TestMountMapped: an image's files belong to the ids of a user namespace, in any number of layers, and the layers stay as they are.
func TestMountMapped(t *testing.T) {
	r := newRegistry(t)
	owned := reg("home/f")
	owned.Uid, owned.Gid = 7, 8
	layers := []testLayer{gzipLayer(tarOf(t, dir("./", 0o711), reg("f"), "x", owned, "y"))}
	for i := range 60 {
		layers = append(layers, gzipLayer(tarOf(t, dir("./", 0o711), reg(fmt.Sprint("f", i)), fmt.Sprint(i))))
	}
	c := newImages(t, nil)
	ns := userNS(t)
	must(t, c.CheckIDMap(ns))
	for name, stack := range map[string][]testLayer{"none": {}, "one": layers[:1], "many": layers} {
		id, _ := r.build(name, stack, nil)
		c.mustPull(t, r.ref("app:"+name))
		for _, readOnly := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ro=", readOnly), func(t *testing.T) {
				base := t.TempDir()
				target := filepath.Join(base, "rootfs")
				rootfs := Rootfs{ImageID: id, Dir: filepath.Join(base, "c"), Target: target, ReadOnly: readOnly, UserNS: ns}
				must(t, c.Mount(t.Context(), rootfs))
				defer c.Unmount(context.Background(), target)
				wantOwner(t, target, mappedRoot, mappedRoot)
				mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
				must(t, err)
				names, err := c.Layers(id)
				must(t, err)
				if len(mounts) != 1 || !showsLayer(mounts[0].VFSOptions, names[len(names)-1]) {
					t.Errorf("the mount does not show its layers, and Open would delete them: %v", mounts)
				}
				if name == "none" {
					return
				}
				if info, _ := os.Stat(target); info.Mode().Perm() != 0o755 {
					t.Error(info.Mode())
				}
				wantFile(t, filepath.Join(target, "f"), "x")
				wantOwner(t, filepath.Join(target, "f"), mappedRoot, mappedRoot)
				wantOwner(t, filepath.Join(target, "home/f"), mappedRoot+7, mappedRoot+8)
				if name == "many" {
					wantFile(t, filepath.Join(target, "f59"), "59")
				}
				if !readOnly { // what is copied up keeps its owner
					must(t, os.WriteFile(filepath.Join(target, "home/f"), []byte("z"), 0o644))
					wantOwner(t, filepath.Join(base, "c/upper/home/f"), mappedRoot+7, mappedRoot+8)
				}
				must(t, c.Unmount(t.Context(), target))
				must(t, c.Unmount(t.Context(), target))
			})
		}
		names, err := c.Layers(id)
		must(t, err)
		for _, l := range names {
			wantOwner(t, l, 0, 0)
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), c.cfg.Root) {
		t.Error("mounts are left")
	}
}

// TestCheckIDMap: a file system without id-mapped mounts is named.
func TestCheckIDMap(t *testing.T) {
	if _, err := idMapped("/proc/sys", userNS(t)); err == nil || !strings.Contains(err.Error(), "/proc/sys") || !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}
