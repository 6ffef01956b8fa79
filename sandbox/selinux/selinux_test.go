package selinux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

func TestWith(t *testing.T) {
	pod := Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	for name, row := range map[string]struct {
		asked Options
		want  Labels
	}{
		"nothing": {Options{}, pod},
		"a type":  {Options{Type: "spc_t"}, Labels{"system_u:system_r:spc_t:s0:c1,c2", pod.Mount}},
		"a role":  {Options{Role: "r"}, Labels{"system_u:r:container_t:s0:c1,c2", pod.Mount}},
		"a level": {Options{Level: "s0:c7"}, Labels{"system_u:system_r:container_t:s0:c7", "system_u:object_r:container_file_t:s0:c7"}},
		"a user":  {Options{User: "u"}, Labels{"u:system_r:container_t:s0:c1,c2", "u:object_r:container_file_t:s0:c1,c2"}},
		"all":     {Options{"u", "r", "t", "s1"}, Labels{"u:r:t:s1", "u:object_r:container_file_t:s1"}},
	} {
		if got, err := pod.With(row.asked); err != nil || got != row.want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, row.want)
		}
	}
	if got := Level(pod.Mount); got != "s0:c1,c2" {
		t.Error(got)
	}
	for label, want := range map[string]string{pod.Mount: "system_u:object_r:container_file_t:s0", "u:r:t": "u:r:t", "": ""} {
		if got := Shared(label); got != want {
			t.Errorf("shared %s: %s", label, got)
		}
	}
	if _, err := (Labels{}).Container(Options{Type: "t"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in a pod without labels: %v", err)
	}
	if got := MountOptions("mode=1777", pod.Mount); got != `mode=1777,context="`+pod.Mount+`"` {
		t.Error(got)
	}
	if got := MountOptions("mode=1777", ""); got != "mode=1777" {
		t.Error(got)
	}
}

func TestRelabel(t *testing.T) {
	const many = 1000
	const label, old = "system_u:object_r:container_file_t:s0:c1,c2", "system_u:object_r:var_t:s0"
	outside, top := filepath.Join(t.TempDir(), "outside"), filepath.Join(t.TempDir(), "top")
	must(t, os.WriteFile(outside, nil, 0o600))
	must(t, os.MkdirAll(filepath.Join(top, "a", "b"), 0o700))
	must(t, os.WriteFile(filepath.Join(top, "a", "b", "file"), nil, 0o600))
	must(t, unix.Mkfifo(filepath.Join(top, "a", "fifo"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(top, "link")))
	for i := range many {
		must(t, os.WriteFile(filepath.Join(top, "a", fmt.Sprint(i)), nil, 0o600))
	}
	if err := SetLabel(outside, old); err != nil {
		t.Skip("no attributes of this kind can be set here: ", err)
	}

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Relabel(gone, top, label); !errors.Is(err, context.Canceled) {
		t.Errorf("without time: %v", err)
	}
	if got := labelOf(t, top); got == label {
		t.Error("the top has its label although the rest has not")
	}
	must(t, Relabel(t.Context(), top, label))
	for _, name := range []string{".", "a", "a/b", "a/b/file", "a/fifo", "a/0", fmt.Sprint("a/", many-1), "link"} {
		if got := labelOf(t, filepath.Join(top, name)); got != label {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := labelOf(t, outside); got != old {
		t.Errorf("what a link leads to: %q", got)
	}

	must(t, SetLabel(filepath.Join(top, "a"), old))
	must(t, Relabel(t.Context(), top, label))
	if got := labelOf(t, filepath.Join(top, "a")); got != old {
		t.Errorf("a top that has its label was walked: %q", got)
	}
	must(t, Relabel(t.Context(), filepath.Join(top, "a"), ""))
}

func TestRelabelRefusesTheHost(t *testing.T) {
	for path, want := range map[string]bool{
		"/": true, "/etc": true, "/usr": true, "/usr/lib/x": true, "/proc/1": true, "/var/lib/": true, "/sys/fs": true, "/home": true,
		"/etc/cribox": false, "/var/lib/kubelet/pods/x": false, "/data": false, "/home/me": false, "/usr2": false, "/opt/x": false,
	} {
		if got := isSystem(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	if err := Relabel(t.Context(), "/etc", "l"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

// TestRelabelDeep: what lies deeper than there are descriptors gets its label too, and what is
// mounted in the tree.
func TestRelabelDeep(t *testing.T) {
	const label, depth = "system_u:object_r:container_file_t:s0:c1,c2", 3000
	dir := t.TempDir()
	if err := SetLabel(dir, "system_u:object_r:var_t:s0"); err != nil {
		t.Skip("no attributes of this kind can be set here: ", err)
	}
	must(t, os.Mkdir(filepath.Join(dir, "mnt"), 0o700))
	if err := unix.Mount("test", filepath.Join(dir, "mnt"), "tmpfs", 0, "size=1m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(dir, "mnt"), unix.MNT_DETACH)) })
	must(t, os.WriteFile(filepath.Join(dir, "mnt", "file"), nil, 0o600))
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(fd, "d", 0o700))
		below, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = below
	}
	must(t, Relabel(t.Context(), dir, label))
	for _, path := range []string{dir, filepath.Join(dir, "mnt", "file"), fmt.Sprintf("/proc/self/fd/%d/.", fd)} {
		if got := labelOf(t, path); got != label {
			t.Errorf("%s: %q", path, got)
		}
	}
	must(t, unix.Close(fd))
	must(t, tree.Remove(t.Context(), filepath.Join(dir, "d")))
}

func labelOf(t *testing.T, path string) string {
	t.Helper()
	b := make([]byte, 200)
	n, err := unix.Lgetxattr(path, attribute, b)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	must(t, err)
	return strings.TrimRight(string(b[:n]), "\x00")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
