// Package cgroup finds, reads, signals, limits and removes the cgroups of tasks, of both cgroup
// versions. It never touches the cgroups of this process.
package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// Hierarchy is one mounted cgroup file system.
type Hierarchy struct {
	Mount string
	Names []string // v1: its controllers, or "name=systemd"; v2: nil
}

// Mounts returns the mounted cgroup file systems; none if they cannot be read.
func Mounts() []Hierarchy {
	found, _ := readCgroupMounts()
	return found
}

// readCgroupMounts reads the cgroup file systems from /proc/self/mountinfo (proc(5)).
func readCgroupMounts() ([]Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for cgroups: %w", err)
	}
	defer f.Close()
	var found []Hierarchy
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || l[3] != "/" {
			continue
		}
		switch r[0] {
		case "cgroup2":
			found = append(found, Hierarchy{Mount: l[4]})
		case "cgroup":
			found = append(found, Hierarchy{Mount: l[4], Names: strings.Split(r[2], ",")})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("look for cgroups: %w", err)
	}
	return found, nil
}

// runtimeCgroups returns the cgroups in runc's state file; none for other runtimes.
func runtimeCgroups(name string) ([]string, error) {
	var st struct {
		Paths map[string]string `json:"cgroup_paths"`
	}
	if err := statedir.ReadJSON(name, &st); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
		return nil, err
	}
	var dirs []string
	for _, dir := range st.Paths {
		if strings.HasPrefix(dir, "/sys/fs/cgroup/") && !slices.Contains(dirs, dir) {
			dirs = append(dirs, filepath.Clean(dir))
		}
	}
	return dirs, nil
}

// processCgroups returns the cgroups in /proc/PID/cgroup (cgroups(7)).
func processCgroups(all []Hierarchy, pid int) ([]string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return cgroupsIn(all, raw), err
}

func cgroupsIn(all []Hierarchy, raw []byte) []string {
	var dirs []string
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || strings.Contains(f[2], "..") {
			continue
		}
		for _, h := range all {
			if (h.Names == nil) == (f[1] == "") && (f[1] == "" || slices.Contains(h.Names, strings.Split(f[1], ",")[0])) {
				dirs = append(dirs, filepath.Join(h.Mount, strings.TrimSuffix(f[2], " (deleted)")))
			}
		}
	}
	return dirs
}

// specCgroups derives the cgroups from the spec's linux.cgroupsPath, whether they exist or not.
func specCgroups(all []Hierarchy, config string) ([]string, error) {
	var spec struct {
		Linux struct{ CgroupsPath string }
	}
	if err := statedir.ReadJSON(config, &spec); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
		return nil, err
	}
	path := runtimeshim.CgroupOf(spec.Linux.CgroupsPath)
	if path == "" || path == "/" {
		return nil, nil
	}
	var dirs []string
	for _, h := range all {
		dirs = append(dirs, filepath.Join(h.Mount, path))
	}
	return dirs, nil
}

// Signal sends sig to every process in dirs and below, and returns the number of processes reached.
func Signal(dirs []string, sig unix.Signal) int {
	sent := map[int]bool{}
	for _, dir := range dirs {
		listed := Procs(dir)
		if sig == unix.SIGKILL && os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
			for _, pid := range listed {
				sent[pid] = true
			}
			continue
		}
		listed = slices.DeleteFunc(listed, func(pid int) bool { return sent[pid] || pid == os.Getpid() })
		for some := range slices.Chunk(listed, signalChunk) {
			for _, pid := range signalListed(dir, some, sig) {
				sent[pid] = true
			}
		}
	}
	return len(sent)
}

const signalChunk = 256 // pidfds open at a time

// afterListing is a hook for tests, called between listing a cgroup and opening its processes.
var afterListing = func() {}

// signalListed sends sig to the processes of a list that are in dir, and returns those that got it.
// A pid may be reused before it is opened, so the cgroup is listed again afterwards.
func signalListed(dir string, pids []int, sig unix.Signal) (sent []int) {
	afterListing()
	opened := procfd.OpenAll(pids)
	still := map[int]bool{}
	for _, pid := range Procs(dir) {
		still[pid] = true
	}
	for pid, f := range opened {
		if still[pid] && procfd.Signal(f, sig) == nil {
			sent = append(sent, pid)
		}
		f.Close()
	}
	return sent
}

// Freeze freezes or thaws all processes of the cgroups where the kernel has a freezer, so that a
// fork bomb cannot outrun the kill. Thawing includes the cgroups below that were frozen on their
// own.
func Freeze(dirs []string, on bool) {
	v1, v2 := "THAWED", "0"
	if on {
		v1, v2 = "FROZEN", "1"
	}
	for _, dir := range dirs {
		for name, value := range map[string]string{freezerV1: v1, "cgroup.freeze": v2} {
			tryWrite(filepath.Join(dir, name), value) // without a freezer the kill follows anyway
		}
		if _, err := os.Lstat(filepath.Join(dir, freezerV1)); err == nil && !on {
			thawBelow(dir)
		}
	}
}

// freezerV1 is the freezer file of cgroup version 1. There a frozen process does not die, not even
// by SIGKILL.
const freezerV1 = "freezer.state"

// tryWrite writes to a file of a cgroup, if it exists, and ignores errors.
func tryWrite(name, value string) {
	if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString(value)
		f.Close()
	}
}

// Remove kills the processes in dirs and below and removes the cgroups, until it succeeds or ctx
// ends. It returns nil if there is nothing to remove.
func Remove(ctx context.Context, dirs []string) error {
	pause := 2 * time.Millisecond
	for {
		var left []string
		for _, dir := range dirs {
			if RemoveEmpty(dir) != nil {
				left = append(left, dir)
			}
		}
		if len(left) == 0 {
			return nil
		}
		Freeze(left, true)
		Signal(left, unix.SIGKILL)
		Freeze(left, false)
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %v: %w", left[0], ctx.Err(), errdefs.ErrUnavailable)
		case <-time.After(pause):
		}
		pause = min(2*pause, 200*time.Millisecond)
	}
}

// OOMKills returns the counter oom_kill of a memory.oom_control (v1) or memory.events (v2) file; 0
// when the cgroup is gone.
func OOMKills(name string) (uint64, error) { return readCounter(name, os.ReadFile, ParseOOMKills) }

// ParseOOMKills returns the value of oom_kill in the text; 0 when it is missing.
func ParseOOMKills(text []byte) uint64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}
