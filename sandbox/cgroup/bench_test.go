package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkCgroup reads a cgroup of its own, in which nothing lives, from this machine's kernel.
func BenchmarkCgroup(b *testing.B) {
	root := "/sys/fs/cgroup"
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	tree := Tree{Root: root, V2: err == nil}
	const name = "cribox-bench/burstable/pod"
	hierarchies := []string{filepath.Join(root, name)}
	if !tree.V2 {
		hierarchies = nil
		for _, controller := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
			hierarchies = append(hierarchies, filepath.Join(root, controller, name))
		}
	}
	for _, dir := range hierarchies {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Skipf("cannot make a cgroup: %v", err)
		}
		b.Cleanup(func() {
			for range 3 {
				_ = os.Remove(dir)
				dir = filepath.Dir(dir)
			}
		})
	}
	b.Run("Usage", func(b *testing.B) {
		for b.Loop() {
			if tree.Usage("/" + name).None() {
				b.Fatal("nothing was read")
			}
		}
	})
	b.Run("Detail", func(b *testing.B) {
		for b.Loop() {
			tree.Detail("/"+name, nil)
		}
	})
}
