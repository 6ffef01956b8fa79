package runtimeshim

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
)

// hierarchy is one mounted cgroup file system.
type hierarchy struct {
	mount string
	names []string // v1: its controllers, or "name=systemd"; nil = v2
}

// cgroupMounts returns what readCgroupMounts finds.
func cgroupMounts() []hierarchy {
	found, _ := readCgroupMounts()
	return found
}

// readCgroupMounts reads the cgroup file systems from /proc/self/mountinfo (proc(5)).
func readCgroupMounts() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for cgroups: %w", err)
	}
	defer f.Close()
	var found []hierarchy
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
			found = append(found, hierarchy{mount: l[4]})
		case "cgroup":
			found = append(found, hierarchy{mount: l[4], names: strings.Split(r[2], ",")})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("look for cgroups: %w", err)
	}
	return found, nil
}

// cgroups finds the cgroups of tasks, and never our own ones.
type cgroups struct {
	env
	hierarchies []hierarchy
	born        []string // the cgroups of this process when it began
}

func newCgroups(e env) (*cgroups, error) {
	g := &cgroups{env: e}
	var err error
	if g.hierarchies, err = readCgroupMounts(); err != nil {
		return nil, err
	}
	g.born, err = processCgroups(g.hierarchies, os.Getpid())
	return g, err
}

// cgroupsOf lists the cgroup directories of a task: what the runtime recorded,
// else those that its spec asks for and its process is in. The roots and
// the shim's own cgroups are never in the list: everything in it may be killed.
// An error means that they cannot be known now.
func (g *cgroups) cgroupsOf(d taskDir, pid int) ([]string, error) {
	dirs, err := runtimeCgroups(filepath.Join(g.state.runcRoot(), d.id(), "state.json"))
	if err == nil {
		dirs, err = g.foreign(dirs)
	}
	if err != nil || len(dirs) > 0 {
		return dirs, err
	}
	if dirs, err = specCgroups(g.hierarchies, d.config()); err != nil {
		return nil, err
	}
	if pid > 0 {
		in, err := processCgroups(g.hierarchies, pid) // of a zombie: some are roots already
		if err != nil && !isGone(err) {
			return nil, err
		}
		dirs = append(dirs, in...)
	}
	dirs, err = g.foreign(dirs)
	slices.Sort(dirs)
	return slices.Compact(dirs), err
}

// foreign takes the roots and our own cgroups out of dirs: those that we are in
// now, and those that we were born in, which are the daemon's.
func (g *cgroups) foreign(dirs []string) ([]string, error) {
	own, err := processCgroups(g.hierarchies, os.Getpid())
	if err != nil {
		return nil, err
	}
	own = append(own, g.born...)
	return slices.DeleteFunc(dirs, func(dir string) bool {
		return slices.Contains(own, dir) ||
			slices.ContainsFunc(g.hierarchies, func(h hierarchy) bool { return filepath.Clean(dir) == h.mount })
	}), nil
}

// runtimeCgroups reads runc's state file; nothing of another runtime's.
func runtimeCgroups(name string) ([]string, error) {
	var st struct {
		Paths map[string]string `json:"cgroup_paths"`
	}
	if err := readJSON(name, &st); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
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

// processCgroups reads /proc/PID/cgroup (cgroups(7)).
func processCgroups(all []hierarchy, pid int) ([]string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return cgroupsIn(all, raw), err
}

// inCgroups tells whether a process is in one of dirs or below.
func inCgroups(all []hierarchy, pid int, dirs []string) (bool, error) {
	in, err := processCgroups(all, pid)
	return slices.ContainsFunc(in, func(at string) bool { return within(dirs, at) }), err
}

func cgroupsIn(all []hierarchy, raw []byte) []string {
	var dirs []string
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || strings.Contains(f[2], "..") {
			continue
		}
		for _, h := range all {
			if (h.names == nil) == (f[1] == "") && (f[1] == "" || slices.Contains(h.names, strings.Split(f[1], ",")[0])) {
				dirs = append(dirs, filepath.Join(h.mount, strings.TrimSuffix(f[2], " (deleted)")))
			}
		}
	}
	return dirs
}

// CgroupOf returns where below the cgroup mounts a spec's linux.cgroupsPath is.
// Of systemd's form SLICE:PREFIX:NAME that is the scope PREFIX-NAME in the
// slice; the slice a-b.slice lies in a.slice, and -.slice is the root. "" when
// it is neither that nor an absolute path.
func CgroupOf(cgroupsPath string) string {
	if filepath.IsAbs(cgroupsPath) {
		return filepath.Clean(cgroupsPath)
	}
	part := strings.Split(cgroupsPath, ":")
	if len(part) != 3 || strings.Contains(cgroupsPath, "/") || part[1] == "" || part[2] == "" {
		return ""
	}
	slice, ok := expandSlice(part[0])
	if !ok {
		return ""
	}
	return filepath.Join(slice, part[1]+"-"+part[2]+".scope")
}

// expandSlice returns the path of a slice: systemd.slice(5).
func expandSlice(name string) (path string, ok bool) {
	bare, ok := strings.CutSuffix(name, ".slice")
	if !ok || bare == "" {
		return "", false
	}
	if bare == "-" {
		return "/", true
	}
	path, whole := "/", ""
	for i, part := range strings.Split(bare, "-") {
		if part == "" {
			return "", false
		}
		if i > 0 {
			whole += "-"
		}
		whole += part
		path = filepath.Join(path, whole+".slice")
	}
	return path, true
}

// specCgroups guesses from linux.cgroupsPath.
func specCgroups(all []hierarchy, config string) ([]string, error) {
	var spec struct {
		Linux struct{ CgroupsPath string }
	}
	if err := readJSON(config, &spec); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) {
		return nil, err
	}
	path := CgroupOf(spec.Linux.CgroupsPath)
	if path == "" || path == "/" {
		return nil, nil
	}
	var dirs []string
	for _, h := range all {
		dirs = append(dirs, filepath.Join(h.mount, path))
	}
	return dirs, nil
}

// signalCgroups sends sig to every process in dirs and below and returns how
// many it reached.
func signalCgroups(dirs []string, sig unix.Signal) int {
	sent := map[int]bool{}
	for _, dir := range dirs {
		listed := cgroupProcs(dir)
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

const signalChunk = 256 // descriptors at a time

// afterListing is called between the two looks at a cgroup, by tests.
var afterListing = func() {}

// signalListed sends sig to the processes of a list that are in dir, and returns which got it. By the
// time that a number is opened it may be a stranger's, so the cgroup is asked again afterwards.
func signalListed(dir string, pids []int, sig unix.Signal) (sent []int) {
	afterListing()
	opened := openAll(pids)
	still := map[int]bool{}
	for _, pid := range cgroupProcs(dir) {
		still[pid] = true
	}
	for pid, f := range opened {
		if still[pid] && signalPidfd(f, sig) == nil {
			sent = append(sent, pid)
		}
		f.Close()
	}
	return sent
}

// freezeCgroups stops or continues all processes of the cgroups where the kernel has
// a freezer, so that a fork bomb cannot outrun the kill. What is continued is with all below that was stopped by itself.
func freezeCgroups(dirs []string, on bool) {
	v1, v2 := "THAWED", "0"
	if on {
		v1, v2 = "FROZEN", "1"
	}
	for _, dir := range dirs {
		for name, value := range map[string]string{freezerV1: v1, "cgroup.freeze": v2} {
			tryWrite(filepath.Join(dir, name), value) // the kill comes all the same
		}
		if _, err := os.Lstat(filepath.Join(dir, freezerV1)); err == nil && !on {
			thawBelow(dir)
		}
	}
}

// freezerV1 stops the processes of a cgroup of version 1, which do not die then, not even by SIGKILL.
const freezerV1 = "freezer.state"

// tryWrite writes to a file of a cgroup, if there is one.
func tryWrite(name, value string) {
	if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString(value)
		f.Close()
	}
}

// liftQuota takes the CPU quota off the cgroups of a task that has ended. With
// cgroups of version 1 a parent's quota cannot be less than a child's, and a
// child counts for some 20 ms after its removal. Whoever lowers the pod's quota
// as soon as the task is gone would be refused (the kubelet does so for a resize
// in place whose policy is RestartContainer).
func (g *cgroups) liftQuota(d taskDir) {
	if !slices.ContainsFunc(g.hierarchies, func(h hierarchy) bool { return slices.Contains(h.names, "cpu") }) {
		return
	}
	dirs, _ := g.cgroupsOf(d, 0) // best effort
	for _, dir := range dirs {
		tryWrite(filepath.Join(dir, "cpu.cfs_quota_us"), "-1") // else it is refused as before
	}
}

// removeCgroups kills what is left in dirs and removes them with everything
// below. Nothing there = nil. Bounded by ctx.
func removeCgroups(ctx context.Context, dirs []string) error {
	pause := 2 * time.Millisecond
	for {
		var left []string
		for _, dir := range dirs {
			if rmCgroup(dir) != nil {
				left = append(left, dir)
			}
		}
		if len(left) == 0 {
			return nil
		}
		freezeCgroups(left, true)
		signalCgroups(left, unix.SIGKILL)
		freezeCgroups(left, false)
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %v: %w", left[0], ctx.Err(), errdefs.ErrUnavailable)
		case <-time.After(pause):
		}
		pause = min(2*pause, 200*time.Millisecond)
	}
}

// oomKills reads the counter oom_kill of a memory.oom_control (v1) or
// memory.events (v2) file; 0 when the cgroup is gone.
func oomKills(name string) (uint64, error) { return readCounter(name, os.ReadFile, parseOOMKills) }

// parseOOMKills finds it in the text; 0 when there is none.
func parseOOMKills(text []byte) uint64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}
