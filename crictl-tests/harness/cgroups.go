package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// Hierarchies are the mount points of all cgroup hierarchies: one on version 2, one for each
// controller and name on version 1.
func Hierarchies(t testing.TB) []string {
	t.Helper()
	if OnUnified() {
		return []string{"/sys/fs/cgroup"}
	}
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join("/sys/fs/cgroup", e.Name()))
		}
	}
	return out
}

// OnUnified reports whether the host has the unified cgroup hierarchy.
func OnUnified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// ControllerIsUsed leaves out the hierarchies that only track: systemd's name and the unified one
// of a hybrid host.
func ControllerIsUsed(name string) bool {
	if OnUnified() {
		return true
	}
	return name != "" && name != "unified" && !strings.Contains(name, "systemd")
}

// SystemdRuns reports whether systemd is the host's first process. A daemon whose test says nothing
// else then leaves the making of cgroups to it.
func SystemdRuns() bool {
	_, err := os.Lstat("/run/systemd/system")
	return err == nil
}

// MakeCgroup makes what a kubelet makes for a pod, in every hierarchy, to be removed at the end of
// the test. It returns its path in the hierarchies; with systemd that is a slice.
func (d *Daemon) MakeCgroup() string {
	d.Helper()
	if SystemdRuns() {
		return d.makeSlice()
	}
	name := "/cribox-tests-" + filepath.Base(d.Dir)
	for _, folder := range Hierarchies(d) {
		path := filepath.Join(folder, name)
		d.Must(os.Mkdir(path, 0o755))
		d.Cgroups = append(d.Cgroups, path)
		CopyParentCgroup(d, path, "cpuset.cpus")
		CopyParentCgroup(d, path, "cpuset.mems")
	}
	return name
}

// makeSlice has systemd make a slice, with all controllers that a kubelet asks for.
func (d *Daemon) makeSlice() string {
	d.Helper()
	name := "cribox_tests_" + strings.ReplaceAll(filepath.Base(d.Dir), "-", "_") + ".slice"
	const manager = "org.freedesktop.systemd1"
	out, err := exec.Command("busctl", "call", manager, "/org/freedesktop/systemd1", manager+".Manager",
		"StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", "4", "CPUWeight", "t", "100", "MemoryAccounting", "b", "true",
		"TasksAccounting", "b", "true", "IOAccounting", "b", "true", "0").CombinedOutput()
	if err != nil {
		d.Fatalf("make %s: %v\n%s", name, err, out)
	}
	for _, folder := range Hierarchies(d) {
		path := filepath.Join(folder, name)
		Eventually(d, "systemd to make "+path, func() error {
			_, err := os.Stat(path)
			return err
		})
		d.Cgroups = append(d.Cgroups, path)
	}
	return "/" + name
}

// LimitProcesses says how many processes there may be in what MakeCgroup has made.
func (d *Daemon) LimitProcesses(parent string, most int) {
	d.Helper()
	if SystemdRuns() { // which would soon replace what is written into the file
		out, err := exec.Command("systemctl", "set-property", "--runtime", filepath.Base(parent), fmt.Sprintf("TasksMax=%d", most)).CombinedOutput()
		if err != nil {
			d.Fatalf("limit the processes of %s: %v\n%s", parent, err, out)
		}
		return
	}
	for _, path := range d.Cgroups {
		file := filepath.Join(path, "pids.max")
		if _, err := os.Stat(file); err == nil {
			d.Must(os.WriteFile(file, fmt.Append(nil, most), 0))
		}
	}
}

// removeCgroups removes what MakeCgroup has made.
func (d *Daemon) removeCgroups() error {
	if len(d.Cgroups) > 0 && SystemdRuns() {
		return exec.Command("systemctl", "stop", filepath.Base(d.Cgroups[0])).Run()
	}
	var err error
	for _, path := range d.Cgroups {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// CopyParentCgroup gives a new cpuset what it needs before anything may live in it.
func CopyParentCgroup(t testing.TB, path, file string) {
	t.Helper()
	value, err := os.ReadFile(filepath.Join(filepath.Dir(path), file))
	if err != nil || OnUnified() {
		return
	}
	if err := os.WriteFile(filepath.Join(path, file), value, 0); err != nil {
		t.Fatal(err)
	}
}

// MustLook is the first process of a container, as the host sees it.
func MustLook(c *Container) ledger.Process {
	c.Helper()
	p, err := ledger.Look(c.PID())
	c.Must(err)
	return p
}

// CgroupFile reads a file of the container's own cgroup: of the controller on version 1, of the one
// folder on version 2.
func (c *Container) CgroupFile(controller, file string) string {
	c.Helper()
	for _, line := range strings.Split(strings.TrimSpace(MustLook(c).Cgroup), "\n") {
		fields := strings.SplitN(line, ":", 3)
		folder := filepath.Join("/sys/fs/cgroup", controller)
		if OnUnified() {
			folder = "/sys/fs/cgroup"
		} else if fields[1] != controller {
			continue
		}
		data, err := os.ReadFile(filepath.Join(folder, fields[2], file))
		c.Must(err)
		return strings.TrimSpace(string(data))
	}
	c.Fatalf("container %s has no %s cgroup", c.ID, controller)
	return ""
}
