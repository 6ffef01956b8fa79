package cgroup

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRemoveCgroups: cgroups that a container with a writable cgroup file system creates in its own
// are removed with it.
func TestRemoveCgroups(t *testing.T) {
	for name, c := range map[string]struct {
		names  []string // of nested cgroups
		freeze bool
	}{
		"one": {},
		// The path is longer than PATH_MAX.
		"deep":           {names: slices.Repeat([]string{strings.Repeat("n", 100)}, 60)},
		"frozen":         {freeze: true},
		"frozen child":   {names: []string{"a", "b"}, freeze: true},
		"frozen and far": {names: slices.Repeat([]string{"n"}, 60), freeze: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := testCgroup(t)
			cmd := exec.Command("sleep", "1000")
			must(t, cmd.Start())
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() { _ = cmd.Process.Kill() }()
			at := makeCgroups(t, dir, c.names)
			defer unix.Close(at)
			writeAt(t, at, "cgroup.procs", strconv.Itoa(cmd.Process.Pid))
			if c.freeze {
				writeAt(t, at, freezerV1, "FROZEN")
				defer func() { // in case the test fails
					if fd, err := unix.Openat(at, freezerV1, unix.O_WRONLY, 0); err == nil {
						_, _ = unix.Write(fd, []byte("THAWED"))
						unix.Close(fd)
					}
				}()
			}
			if procs := Procs(dir); !slices.Equal(procs, []int{cmd.Process.Pid}) {
				t.Errorf("it has the processes %v, want %d", procs, cmd.Process.Pid)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			must(t, Remove(ctx, []string{dir}))
			<-ended
			if _, err := os.Lstat(dir); err == nil {
				t.Error("the cgroup is still there")
			}
		})
	}
}

// testCgroup makes a cgroup with the freezer of version 1.
func testCgroup(t *testing.T) string {
	t.Helper()
	for _, h := range Mounts() {
		if slices.Contains(h.Names, "freezer") {
			dir := filepath.Join(h.Mount, "cribox-test-"+filepath.Base(filepath.Dir(t.TempDir())))
			must(t, unix.Mkdir(dir, 0o755))
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				_ = Remove(ctx, []string{dir})
			})
			return dir
		}
	}
	t.Skip("no freezer (v1)")
	return ""
}

// makeCgroups makes nested cgroups and returns a descriptor of the innermost.
func makeCgroups(t *testing.T, dir string, names []string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for _, name := range names {
		must(t, unix.Mkdirat(fd, name, 0o755))
		below, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = below
	}
	return fd
}

func writeAt(t *testing.T, at int, name, value string) {
	t.Helper()
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	must(t, err)
}
