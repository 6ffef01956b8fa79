package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCounterWatch has the kernel change a file of a cgroup and then removes the cgroup: the count
// is still known.
func TestCounterWatch(t *testing.T) {
	forbidInotify(t)
	root := ""
	for _, h := range Mounts() {
		if h.Names == nil {
			root = h.Mount
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("cribox-test-watch-%d", os.Getpid()))
	if root == "" || os.Mkdir(dir, 0o755) != nil {
		t.Skip("no cgroup version 2 to write to")
	}
	defer unix.Rmdir(dir)
	populated := func(text []byte) uint64 {
		if strings.Contains(string(text), "populated 1") {
			return 1
		}
		return 0
	}
	w, err := NewCounterWatch(populated)
	if err != nil {
		t.Fatal(err)
	}
	go w.Run(t.Context())
	file := filepath.Join(dir, "cgroup.events")
	w.addFile(file)
	if n, err := w.Value(file); n != 0 || err != nil {
		t.Fatalf("an empty cgroup has counted %d (%v)", n, err)
	}
	child := childOf(t)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(child)), 0); err != nil {
		t.Fatal(err)
	}
	awaitThat(t, "the change is noted", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.last[file] == 1
	})
	if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(fmt.Sprint(child)), 0); err != nil {
		t.Fatal(err)
	}
	awaitThat(t, "the cgroup is gone", func() bool { return errors.Is(unix.Rmdir(dir), unix.ENOENT) })
	if n, err := w.Value(file); n != 1 || err != nil {
		t.Errorf("the cgroup is gone and %d is counted (%v), want 1", n, err)
	}
	w.Drop(file)
	if n, err := w.Value(file); n != 0 || err != nil || len(w.files) > 0 {
		t.Errorf("dropped, and %d is counted (%v) in %v", n, err, w.files)
	}
	for _, none := range []string{"", "/sys/fs/cgroup/memory/x/memory.oom_control", filepath.Join(dir, "memory.events")} {
		if w.Add(none); len(w.files) > 0 {
			t.Errorf("%q is watched", none)
		}
	}
}

// TestCounterWatchWithoutInotify is the same in a user namespace that has no inotify watch left.
func TestCounterWatchWithoutInotify(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestCounterWatch$", "-test.v")
	cmd.Env = append(os.Environ(), noInotifyEnv+"=1")
	all := []syscall.SysProcIDMap{{Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: all, GidMappings: all}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip(string(out))
	}
}

// noInotifyEnv makes the test set the number of inotify instances of its user namespace to 0.
const noInotifyEnv = "CRIBOX_TEST_NO_INOTIFY"

func forbidInotify(t *testing.T) {
	t.Helper()
	if os.Getenv(noInotifyEnv) == "" {
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.InotifyInit1(unix.IN_CLOEXEC); err == nil {
		unix.Close(fd)
		t.Fatal("there still are watches")
	}
}

// childOf starts a process that runs, and is not reaped, until the end of the test.
func childOf(t *testing.T) int {
	t.Helper()
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "1d"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	return p.Pid
}

// awaitThat polls until ok, for conditions without an event.
func awaitThat(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
