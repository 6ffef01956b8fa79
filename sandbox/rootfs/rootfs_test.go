package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestPropagationOfTheMountAbove(t *testing.T) {
	table := []*mountinfo.Info{{Mountpoint: "/", Optional: "shared:1"}, {Mountpoint: "/a", Optional: ""}, {Mountpoint: "/a/b", Optional: "master:7"}, {Mountpoint: "/a/b", Optional: "shared:2 master:3"}}
	for path, want := range map[string][2]bool{"/x": {true, false}, "/ab": {true, false}, "/a": {false, false}, "/a/c": {false, false}, "/a/b/c": {true, true}} {
		if shared, slave := propagation(table, path); [2]bool{shared, slave} != want {
			t.Errorf("%s: shared %v, slave %v, want %v", path, shared, slave, want)
		}
	}
}

// SEC-04: an image decides what lies at /etc/passwd; nothing of the host is read through it, and
// nothing blocks or fills memory.
func TestUserFilesStayInTheImage(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("canary:x:0:0::/:/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		place func(passwd string)
		class error
	}{
		{"link to the host", func(p string) { must(os.Symlink(outside, p)) }, nil},
		{"link that climbs", func(p string) { must(os.Symlink(strings.Repeat("../", 20)+outside, p)) }, nil},
		{"fifo", func(p string) { must(unix.Mkfifo(p, 0o600)) }, errdefs.ErrInvalidArgument},
		{"device", func(p string) { must(unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))) }, errdefs.ErrInvalidArgument},
		{"folder", func(p string) { must(os.Mkdir(p, 0o700)) }, errdefs.ErrInvalidArgument},
		{"2 GiB", func(p string) { must(os.WriteFile(p, nil, 0o600)); must(os.Truncate(p, 2<<30)) }, errdefs.ErrInvalidArgument},
		{"missing", func(string) {}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			must(os.Mkdir(filepath.Join(root, "etc"), 0o755))
			c.place(filepath.Join(root, "etc", "passwd"))
			b, err := readInRoot(root, "/etc/passwd")
			if strings.Contains(string(b), "canary") {
				t.Fatal("a file of the host was read")
			}
			if c.class == nil && err != nil || !errors.Is(err, c.class) {
				t.Fatalf("%v, want %v", err, c.class)
			}
		})
	}
}

// A link inside the image is followed inside the image, absolute or not: some distributions keep
// passwd elsewhere.
func TestUserFilesThroughLinks(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "store"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "store", "passwd"), []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/store/passwd", filepath.Join(root, "etc", "passwd")); err != nil {
		t.Fatal(err)
	}
	if b, err := readInRoot(root, "/etc/passwd"); err != nil || string(b) != "inside" {
		t.Fatalf("%q, %v", b, err)
	}
}
