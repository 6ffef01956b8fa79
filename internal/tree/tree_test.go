package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// nest creates a chain of nested folders, which may be too deep for a path, with a file in the
// deepest one.
func nest(t *testing.T, dir, name string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, openFlags, 0)
	for range depth {
		if err == nil {
			err = unix.Mkdirat(fd, name, 0o755)
		}
		var below int
		if err == nil {
			below, err = unix.Openat(fd, name, openFlags, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = below
	}
	file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		_, err = unix.Write(file, make([]byte, 64<<10))
	}
	if err := errors.Join(err, unix.Close(file), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

// fewDescriptors lowers the descriptor limit to 2*maxOpen above what is open, until the test ends.
func fewDescriptors(t *testing.T) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	few := old
	few.Cur = uint64(len(open) + 2*maxOpen)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
}

func TestRemove(t *testing.T) {
	for name, fill := range map[string]func(t *testing.T, dir string){
		"nothing": func(t *testing.T, dir string) {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
		},
		"a file": func(t *testing.T, dir string) {
			if err := errors.Join(os.Remove(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
		"an empty folder": func(*testing.T, string) {},
		"just as deep":    func(t *testing.T, dir string) { nest(t, dir, "d", maxOpen) },
		"one deeper":      func(t *testing.T, dir string) { nest(t, dir, "d", maxOpen+1) },
		"deep":            func(t *testing.T, dir string) { nest(t, dir, "d", 5000) },
		"deep twice":      func(t *testing.T, dir string) { nest(t, dir, "d", 3000); nest(t, dir, "e", 3000) },
		"our own names": func(t *testing.T, dir string) {
			nest(t, dir, number(1), 200)
			nest(t, dir, number(2), 1)
			if err := os.WriteFile(filepath.Join(dir, number(3)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			nest(t, dir, "a", 200)
		},
		"wide and deep": func(t *testing.T, dir string) {
			for i := range 20 {
				nest(t, dir, fmt.Sprint(i), 70)
			}
		},
		"links": func(t *testing.T, dir string) {
			if err := errors.Join(os.Symlink("/", filepath.Join(dir, "l")), os.Symlink("gone", filepath.Join(dir, "m"))); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "x")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			fill(t, dir)
			fewDescriptors(t)
			if err := Remove(t.Context(), dir); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
}

// TestRemoveOutside checks that Remove does not follow links, and does not touch what is mounted in
// the tree.
func TestRemoveOutside(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	mnt := filepath.Join(dir, "x", "mnt")
	err := errors.Join(os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600), os.MkdirAll(mnt, 0o700),
		os.Symlink(outside, filepath.Join(dir, "x", "link")), os.WriteFile(filepath.Join(dir, "x", "zz"), nil, 0o600))
	if err == nil {
		err = unix.Mount(outside, mnt, "", unix.MS_BIND, "")
	}
	if err != nil {
		t.Skip(err)
	}
	err = Remove(t.Context(), filepath.Join(dir, "x"))
	if uerr := unix.Unmount(mnt, 0); uerr != nil {
		t.Error(uerr)
	}
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
		t.Errorf("removal of a folder with a mount in it: %v", err)
	}
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Error(err)
	}
	if left := list(t, filepath.Join(dir, "x")); !slices.Equal(left, []string{"mnt"}) {
		t.Errorf("beside the mount %q stay", left)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestUsage checks that Usage counts deeply nested files and files with two names correctly.
func TestUsage(t *testing.T) {
	flat, deep := t.TempDir(), t.TempDir()
	const depth = 3000
	for i := range depth {
		if err := os.Mkdir(filepath.Join(flat, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	big := filepath.Join(flat, "file")
	if err := errors.Join(os.WriteFile(big, make([]byte, 64<<10), 0o600), os.Link(big, big+"2")); err != nil {
		t.Fatal(err)
	}
	nest(t, deep, "d", depth/2)
	nest(t, deep, "e", depth/2)
	fewDescriptors(t)
	for _, c := range []struct {
		dir    string
		inodes uint64
		least  uint64
	}{{flat, depth + 2, 64 << 10}, {deep, depth + 3, 128 << 10}, {filepath.Join(flat, "gone"), 0, 0}} {
		bytes, inodes, err := Usage(c.dir)
		if err != nil || inodes != c.inodes || bytes < c.least {
			t.Errorf("Usage(%s) = %d bytes, %d inodes, %v; want %d inodes and at least %d bytes", c.dir, bytes, inodes, err, c.inodes, c.least)
		}
	}
}

// TestWalkOrder checks that Walk enters and leaves every folder, and continues in a closed folder
// at the right position.
func TestWalkOrder(t *testing.T) {
	dir := t.TempDir()
	deep := dir
	for range 3 * maxOpen {
		for i := range 3 {
			if err := os.MkdirAll(filepath.Join(deep, fmt.Sprint(i)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		deep = filepath.Join(deep, "1")
	}
	fewDescriptors(t)
	root, err := unix.Open(dir, openFlags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	depth, entries, left := 0, 0, 0
	err = Walk(root, Visitor{
		Entry: func(int, string, *unix.Stat_t) error { entries++; return nil },
		Enter: func(string) error { depth++; return nil },
		Leave: func(int) error { depth--; left++; return nil },
	})
	if want := 9 * maxOpen; err != nil || depth != 0 || entries != want || left != want {
		t.Errorf("%v, ends at depth %d, saw %d entries and left %d folders, want %d of each", err, depth, entries, left, want)
	}
}

// TestTrash checks that Put takes one rename, and that a process deletes what an earlier one left.
func TestTrash(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "trash")
	full := filepath.Join(root, "full")
	for _, d := range []string{dir, filepath.Join(dir, "left"), full} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	nest(t, filepath.Join(dir, "left"), "d", 3000)
	nest(t, full, "d", 3000)
	idle := &Trash{dir: dir, wake: make(chan struct{}, 1)} // without the goroutine that empties it
	for range 2 {
		if err := idle.Put(t.Context(), full); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(full); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("it is still there: %v", err)
	}
	if n := len(list(t, dir)); n != 2 {
		t.Fatalf("%d things in the trash, want 2", n)
	}
	fewDescriptors(t)
	if err := idle.empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := list(t, dir); len(left) > 0 {
		t.Errorf("%q stay in the trash", left)
	}
}
