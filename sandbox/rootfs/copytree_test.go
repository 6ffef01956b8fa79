package rootfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/tree"
)

// describe is names, kinds, modes, owners, links, times, sizes and content of a tree.
func describe(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `cd "$0" && find . -printf '%p %y %m %U:%G %n %l %t\n' | sort && find . -type f -exec stat -c '%n %s' {} + | sort &&
		find . -type f -exec sha256sum {} + | sort`, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestCopyTree(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(from, name) }
	ok(os.MkdirAll(at("d/e"), 0o755))
	ok(os.WriteFile(at("d/f"), bytes.Repeat([]byte("text"), 100_000), 0o640))
	ok(os.Link(at("d/f"), at("d/e/again")))
	ok(os.Symlink("/nowhere", at("link")))
	ok(unix.Mkfifo(at("pipe"), 0o600))
	ok(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	ok(os.Lchown(at("link"), 7, 8))
	ok(os.Chown(at("d/f"), 1234, 5678))
	ok(unix.Chmod(at("d/f"), 0o4751))
	ok(unix.Chmod(at("d"), 0o1777))
	ok(unix.Setxattr(at("d/f"), "trusted.word", []byte("value"), 0))
	hole, err := os.Create(at("hole"))
	ok(err)
	ok(hole.Truncate(64 << 20))
	_, err = hole.WriteAt([]byte("end"), 32<<20)
	ok(err)
	ok(hole.Close())
	for _, name := range []string{"d/f", "d", "."} {
		ok(os.Chtimes(at(name), time.Unix(1234567, 0), time.Unix(1234567, 0)))
	}
	ok(copyTree(t.Context(), from+"/.", to))
	if got, want := describe(t, to), describe(t, from); got != want {
		t.Errorf("the copy is\n%s\nof\n%s", got, want)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(filepath.Join(to, "d/f"), "trusted.word", value); err != nil || string(value[:n]) != "value" {
		t.Errorf("extended attribute %q, %v", value[:max(n, 0)], err)
	}
	var st unix.Stat_t
	if ok(unix.Stat(filepath.Join(to, "hole"), &st)); st.Blocks > 1000 {
		t.Errorf("the copy of a hole has %d blocks", st.Blocks)
	}
}

func TestCopyTreeEndsWithItsContext(t *testing.T) {
	from := t.TempDir()
	f, err := os.Create(filepath.Join(from, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	c := &treeCopy{ctx: ctx}
	cancel()
	if err := copyTree(ctx, from, filepath.Join(t.TempDir(), "to")); !errors.Is(err, context.Canceled) {
		t.Errorf("a tree: %v", err)
	}
	if _, err := f.WriteString("something"); err != nil {
		t.Fatal(err)
	}
	if err := c.file(f.Name(), filepath.Join(t.TempDir(), "to"), 9); !errors.Is(err, context.Canceled) {
		t.Errorf("in a file: %v", err)
	}
}

// TestCopyTreeDeep: folders deeper than a path can say are copied, with a file that has a name at
// the top and one at the bottom.
func TestCopyTreeDeep(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	if err := errors.Join(os.Mkdir(from, 0o700), os.WriteFile(filepath.Join(from, "top"), []byte("text"), 0o640)); err != nil {
		t.Fatal(err)
	}
	const depth = 2500
	bottom := func(dir string, visit func(fd int) error) error {
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		for range depth {
			if err != nil {
				break
			}
			if err = visit(fd); err != nil {
				break
			}
			var down int
			down, err = unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			unix.Close(fd)
			fd = down
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return unix.Linkat(unix.AT_FDCWD, filepath.Join(dir, "top"), fd, "bottom", 0)
	}
	if err := bottom(from, func(fd int) error { return unix.Mkdirat(fd, "d", 0o751) }); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	var top, st unix.Stat_t
	err := bottom(to, func(fd int) error { return unix.Fstatat(fd, "d", &st, 0) })
	if !errors.Is(err, unix.EEXIST) || st.Mode&0o7777 != 0o751 {
		t.Errorf("the deepest folder of the copy has mode %o and no file: %v", st.Mode, err)
	}
	if err := unix.Stat(filepath.Join(to, "top"), &top); err != nil || top.Nlink != 2 || top.Mode&0o777 != 0o640 {
		t.Errorf("the file has %d names and mode %o, %v", top.Nlink, top.Mode, err)
	}
	if _, err := os.Lstat(to + ".links"); !os.IsNotExist(err) {
		t.Errorf("the further names stay: %v", err)
	}
	if err := errors.Join(tree.Remove(t.Context(), from), tree.Remove(t.Context(), to)); err != nil {
		t.Error(err)
	}
}
