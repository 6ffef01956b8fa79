package namespace

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestNetNS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "netns")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "a")
	if err := New(path); err != nil {
		t.Fatal(err)
	}
	if !pinnedNow(path) {
		t.Fatal("not a namespace")
	}
	within(t, path, func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0") // works only if lo is up
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		c.Close()
		links, err := net.Interfaces()
		if err != nil || len(links) != 1 {
			return fmt.Errorf("links %v %w", links, err)
		}
		return nil
	})
	if err := New(path); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("a second one: %v", err)
	}
	if !pinnedNow(path) {
		t.Fatal("a second call took the namespace away")
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("file is left")
	}
	// What a crash between creating the file and mounting leaves, and stacked mounts.
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := New(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, path, "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestNetNSFolder: the folder is one shared mount, however many namespaces are created at once.
func TestNetNSFolder(t *testing.T) {
	for round := range 10 {
		dir := filepath.Join(t.TempDir(), fmt.Sprint("netns", round))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				<-begin
				if err := shareFolder(dir); err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		wg.Wait()
		if got := mountsOf(t, dir); len(got) != 1 || !strings.Contains(got[0], "shared:") {
			t.Fatalf("mounts of the folder: %q", got)
		}
	}
}

// TestNetNSFolderLocked: whoever holds the folder's lock, such as `ip netns`, may be about to mount
// it.
func TestNetNSFolderLocked(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := lockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- shareFolder(dir) }()
	for range 100 {
		if got := mountsOf(t, dir); len(got) > 0 {
			t.Fatalf("mounted without the lock: %v", got)
		}
	}
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := mountsOf(t, dir); len(got) != 1 || !strings.Contains(got[0], "shared:") {
		t.Fatalf("mounts of the folder: %q", got)
	}
}

func mountsOf(t *testing.T, path string) (found []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Fields(line)[4] == path {
			found = append(found, line)
		}
	}
	return found
}

func TestNetNSConcurrently(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "netns")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			path := filepath.Join(dir, fmt.Sprint(i))
			if err := New(path); err != nil {
				t.Error(err)
			}
			if err := Remove(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
}

// TestNetNSFails: a path that cannot be created leaves nothing behind.
func TestNetNSFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := New(filepath.Join(dir, "file", "a")); err == nil {
		t.Fatal("no error")
	}
}

func pinnedNow(path string) bool {
	pinned, err := Is(path)
	return pinned && err == nil
}
