package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cribox/cribox/config"
)

// folders returns a configuration with a new root and state folder.
func folders(t *testing.T) config.Config {
	t.Helper()
	c := config.Default()
	c.Root, c.State = filepath.Join(t.TempDir(), "root"), filepath.Join(t.TempDir(), "state")
	return c
}

func lock(t *testing.T, c *config.Config) (release func()) {
	t.Helper()
	release, err := lockFolders(c)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

func put(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestSecondDaemonIsRefused checks that a second daemon with the same root or state fails, with the
// pid of the first.
func TestSecondDaemonIsRefused(t *testing.T) {
	first := folders(t)
	release := lock(t, &first)
	otherState, otherRoot := folders(t), folders(t)
	otherState.Root, otherRoot.State = first.Root, first.State
	for _, c := range []config.Config{first, otherState, otherRoot} {
		if _, err := lockFolders(&c); err == nil || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
			t.Errorf("root %s, state %s: %v", c.Root, c.State, err)
		}
	}
	release()
	lock(t, &first)()
}

// TestStateBelongsToItsRoot checks that a state folder with tasks cannot be used with another root,
// because all running containers would look like orphans.
func TestStateBelongsToItsRoot(t *testing.T) {
	c := folders(t)
	lock(t, &c)()
	wrong := folders(t)
	wrong.State = c.State
	lock(t, &wrong)() // without tasks, the state may get another root
	lock(t, &c)()
	put(t, c.State, "shim", "abc", "task.json")
	if _, err := lockFolders(&wrong); err == nil || !strings.Contains(err.Error(), "of a root folder other than") {
		t.Fatalf("a state with tasks of another root: %v", err)
	}
	lock(t, &c)()
}

func TestStateIsEmptiedByAReboot(t *testing.T) {
	for _, row := range []struct {
		name, boot string
		emptied    bool
	}{
		{"same boot", "", false},
		{"reboot", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n", true},
		{"mark that a full disk left empty", "\x00", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := folders(t)
			lock(t, &c)()
			old := put(t, c.State, "shim", "abc", "task.json")
			kept := put(t, c.Root, "pods", "abc", "state")
			if row.boot != "" {
				if err := os.WriteFile(filepath.Join(c.State, bootFile), []byte(strings.TrimSuffix(row.boot, "\x00")), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			lock(t, &c)()
			if isThere(old) == row.emptied || !isThere(kept) {
				t.Fatalf("state emptied: %v, want %v; root kept: %v", !isThere(old), row.emptied, isThere(kept))
			}
			lock(t, &c)() // the folder has its mark again
		})
	}
}

// TestStateThatCannotBeRead checks that an unreadable folder does not count as empty.
func TestStateThatCannotBeRead(t *testing.T) {
	c := folders(t)
	lock(t, &c)()
	wrong := folders(t)
	wrong.State = c.State
	if err := os.WriteFile(filepath.Join(c.State, "shim"), nil, 0o600); err != nil { // reading it as a folder fails
		t.Fatal(err)
	}
	if _, err := lockFolders(&wrong); err == nil || !strings.Contains(err.Error(), "cannot tell") {
		t.Errorf("tasks that cannot be listed, of another root: %v", err)
	}
	lock(t, &c)()
	if err := errors.Join(os.Remove(filepath.Join(c.State, bootFile)), os.Mkdir(filepath.Join(c.State, bootFile), 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := lockFolders(&c); err == nil || !strings.Contains(err.Error(), "cannot tell") {
		t.Errorf("a mark of the boot that cannot be read: %v", err)
	}
}

// TestFoldersThroughLinks checks that two paths of one folder are the same instance.
func TestFoldersThroughLinks(t *testing.T) {
	c := folders(t)
	lock(t, &c)()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(c.State, link); err != nil {
		t.Fatal(err)
	}
	other := c
	other.State = link
	lock(t, &other)()
	if other.Instance() != c.Instance() {
		t.Fatalf("%s and %s are instances %s and %s", c.State, link, c.Instance(), other.Instance())
	}
}
