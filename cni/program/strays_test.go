package program

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

// TestStraySearchHangs: a process whose memory cannot be read now, because it waits for a dead disk
// for example, delays nobody. Searches that hang are counted, and end when the process continues.
func TestStraySearchHangs(t *testing.T) {
	readable := make(chan struct{})
	s := &straySearch{environ: func(int) ([]byte, error) { <-readable; return nil, nil }}
	child := exec.Command("sleep", "1000") // a process in our cgroup for the search to check
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	for range maxHung + 4 {
		s.kill("CRIBOX_TEST=hangs")
	}
	if n := s.hung.Load(); n != maxHung {
		t.Errorf("%d searches hang, want no more than %d", n, maxHung)
	}
	close(readable)
	for s.hung.Load() > 0 {
		runtime.Gosched()
	}
}

// TestStraysOfOtherCgroups: processes in a container's cgroup are not checked.
func TestStraysOfOtherCgroups(t *testing.T) {
	ours, theirs := exec.Command("sleep", "1000"), exec.Command("sleep", "1000")
	for _, c := range []*exec.Cmd{ours, theirs} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		end := func() { _ = c.Process.Kill(); _ = c.Wait() }
		t.Cleanup(end)
		if c == theirs {
			moveToCgroup(t, c.Process.Pid, end)
		}
	}
	var mu sync.Mutex
	seen := map[int]bool{}
	s := &straySearch{timeout: strayTimeout, environ: func(pid int) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		seen[pid] = true
		return nil, nil
	}}
	s.kill("CRIBOX_TEST=other")
	mu.Lock()
	defer mu.Unlock()
	if !seen[ours.Process.Pid] || seen[theirs.Process.Pid] {
		t.Errorf("looked at our own: %v, at a container's: %v", seen[ours.Process.Pid], seen[theirs.Process.Pid])
	}
}

// moveToCgroup moves the process into a new cgroup, which is removed after the test, once end has
// killed the process.
func moveToCgroup(t *testing.T, pid int, end func()) {
	t.Helper()
	base := "/sys/fs/cgroup"
	if _, err := os.Stat(base + "/pids/cgroup.procs"); err == nil {
		base += "/pids" // cgroup v1
	}
	dir := filepath.Join(base, "cribox-strays-"+strconv.Itoa(pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end()
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		t.Fatal(err)
	}
}
