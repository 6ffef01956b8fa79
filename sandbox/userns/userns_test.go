package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// inside runs a command in a pinned namespace.
func inside(t *testing.T, path string, args ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--user=" + path}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

func TestPinned(t *testing.T) {
	s, err := New(pausing(t), IDs{100000, 65536}, IDs{200000, 1000}, true)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "userns")
	t.Cleanup(func() { _ = Unpin(path) })
	for range 2 { // a second time over what a crash left
		if err := Pin(s.User, path); err != nil {
			t.Fatal(err)
		}
	}
	owner, err := unix.IoctlRetInt(int(s.Net.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(owner)
	if a, b := inode(t, owner), inode(t, int(s.User.Fd())); a != b {
		t.Errorf("the network namespace belongs to user namespace %d, not to %d", a, b)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(inside(t, path, "cat", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups")); strings.Join(got, " ") != "0 100000 65536 0 200000 1000 allow" {
		t.Errorf("mappings %q", got)
	}
	for range 2 {
		if err := Unpin(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// TestNamespacesOutliveHelper: a process that has ended with its namespaces open leaves nobody in them.
func TestNamespacesOutliveHelper(t *testing.T) {
	s, err := New(pausing(t), IDs{100000, 10}, IDs{100000, 10}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Net != nil {
		t.Error("a network namespace that nobody asked for")
	}
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: %d %v", pid, err)
	}
}

// TestCanMapTmpfs: as of any file system, the answer is yes, or says that the kernel cannot.
func TestCanMapTmpfs(t *testing.T) {
	ids := IDs{1, 1}
	ns, err := New(pausing(t), ids, ids, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	err = CanMapTmpfs(ns.User)
	if able := major > 6 || major == 6 && minor >= 3; able != (err == nil) || err != nil && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Linux %d.%d: %v", major, minor, err)
	}
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := CanMapTmpfs(file); err == nil {
		t.Error("the ids of a file that is no namespace were taken")
	}
}

func TestNoProgram(t *testing.T) {
	if _, err := New([]byte("no program"), IDs{0, 1}, IDs{0, 1}, true); !errors.Is(err, unix.ENOEXEC) {
		t.Error(err)
	}
}

// TestDescriptorsMove: other goroutines open and close files meanwhile, so that the descriptors of
// the new process get any numbers.
func TestDescriptorsMove(t *testing.T) {
	program := pausing(t)
	done := make(chan struct{})
	var others sync.WaitGroup
	defer others.Wait()
	defer close(done)
	for range 4 {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				var held []*os.File
				for range 8 {
					if f, err := os.Open(os.DevNull); err == nil {
						held = append(held, f)
					}
				}
				for _, f := range held {
					f.Close()
				}
			}
		})
	}
	for range 200 {
		s, err := New(program, IDs{100000, 1}, IDs{100000, 1}, false)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
}

// pausing is a program that waits.
func pausing(t *testing.T) []byte {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	program, err := os.ReadFile("../pause/pause_" + runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
