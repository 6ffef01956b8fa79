package crictltests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

// hierarchies are the mount points of all cgroup hierarchies: one on version 2, one for each controller and name on version 1.
func hierarchies(t testing.TB) []string {
	t.Helper()
	if onUnified() {
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

func onUnified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// controllerIsUsed leaves out the hierarchies that only track: systemd's name and the unified one of a hybrid host.
func controllerIsUsed(name string) bool {
	if onUnified() {
		return true
	}
	return name != "" && name != "unified" && !strings.Contains(name, "systemd")
}

// makeCgroup makes what a kubelet makes for a pod, in every hierarchy, to be removed at the end of the test.
func (d *daemon) makeCgroup() string {
	d.Helper()
	name := "/cribox-tests-" + filepath.Base(d.dir)
	for _, folder := range hierarchies(d) {
		path := filepath.Join(folder, name)
		d.must(os.Mkdir(path, 0o755))
		d.cgroups = append(d.cgroups, path)
		copyParent(d, path, "cpuset.cpus")
		copyParent(d, path, "cpuset.mems")
	}
	return name
}

// copyParent gives a new cpuset what it needs before anything may live in it.
func copyParent(t testing.TB, path, file string) {
	t.Helper()
	value, err := os.ReadFile(filepath.Join(filepath.Dir(path), file))
	if err != nil || onUnified() {
		return
	}
	if err := os.WriteFile(filepath.Join(path, file), value, 0); err != nil {
		t.Fatal(err)
	}
}

// mustLook is the first process of a container, as the host sees it.
func mustLook(c *container) ledger.Process {
	c.Helper()
	p, err := ledger.Look(c.pid())
	c.must(err)
	return p
}

// cgroupFile reads a file of the container's own cgroup: of the controller on version 1, of the one folder on version 2.
func (c *container) cgroupFile(controller, file string) string {
	c.Helper()
	for _, line := range strings.Split(strings.TrimSpace(mustLook(c).Cgroup), "\n") {
		fields := strings.SplitN(line, ":", 3)
		folder := filepath.Join("/sys/fs/cgroup", controller)
		if onUnified() {
			folder = "/sys/fs/cgroup"
		} else if fields[1] != controller {
			continue
		}
		data, err := os.ReadFile(filepath.Join(folder, fields[2], file))
		c.must(err)
		return strings.TrimSpace(string(data))
	}
	c.Fatalf("container %s has no %s cgroup", c.id, controller)
	return ""
}
