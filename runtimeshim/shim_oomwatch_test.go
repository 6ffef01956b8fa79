package runtimeshim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCounterWatch has the kernel change a file of a cgroup and then take the cgroup away: what was counted is still known.
func TestCounterWatch(t *testing.T) {
	root := ""
	for _, h := range cgroupMounts() {
		if h.names == nil {
			root = h.mount
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("cribox-test-watch-%d", os.Getpid()))
	if root == "" || os.Mkdir(dir, 0o755) != nil {
		t.Skip("no cgroup version 2 to write to")
	}
	defer unix.Rmdir(dir)
	populated := func(file string) uint64 {
		raw, _ := os.ReadFile(file)
		if strings.Contains(string(raw), "populated 1") {
			return 1
		}
		return 0
	}
	w := newCounterWatch(populated)
	go w.run(t.Context())
	file := filepath.Join(dir, "cgroup.events")
	w.addFile(file)
	if n := w.value(file); n != 0 {
		t.Fatalf("an empty cgroup has counted %d", n)
	}
	child := newChild(t)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(child)), 0); err != nil {
		t.Fatal(err)
	}
	h := host{t: t}
	h.eventually("the change is noted", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.last[file] == 1
	})
	if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(fmt.Sprint(child)), 0); err != nil {
		t.Fatal(err)
	}
	h.eventually("the cgroup is gone", func() bool { return unix.Rmdir(dir) == nil || !exists(dir) })
	if n := w.value(file); n != 1 {
		t.Errorf("the cgroup is gone and %d is counted, want 1", n)
	}
	w.drop(file)
	if n := w.value(file); n != 0 || len(w.files) > 0 {
		t.Errorf("dropped, and %d is counted in %v", n, w.files)
	}
	for _, none := range []string{"", "/sys/fs/cgroup/memory/x/memory.oom_control", filepath.Join(dir, "memory.events")} {
		if w.add(none); len(w.files) > 0 {
			t.Errorf("%q is watched", none)
		}
	}
	var off *counterWatch // no watches are left
	off.add(file)
	off.drop(file)
	if off.value(file) != 0 {
		t.Error("no file has counted something")
	}
}
