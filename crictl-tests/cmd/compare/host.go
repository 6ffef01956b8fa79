package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const cgroups = "/sys/fs/cgroup"

// unified says whether the host has cgroup v2 alone.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers"))
	return err == nil
}

// cgroupFolder is where the processor time of a cgroup is counted.
func cgroupFolder(cgroup string) string {
	if unified() {
		return filepath.Join(cgroups, cgroup)
	}
	return filepath.Join(cgroups, "cpuacct", cgroup)
}

// cgroupFolders are all folders of a cgroup that there may be.
func cgroupFolders(cgroup string) []string {
	if unified() {
		return []string{filepath.Join(cgroups, cgroup)}
	}
	found, _ := filepath.Glob(filepath.Join(cgroups, "*", cgroup)) // the pattern is a good one
	return found
}

// cpu is the processor time of the daemon, of what it has started, and of its pods, living and dead.
// Other processes of the machine, and threads of the kernel, are not in it.
func (r *runtime) cpu() (time.Duration, error) { return cpuOf(r.cgroup) }

// ownCPU is the same without the pods.
func (r *runtime) ownCPU() (time.Duration, error) { return cpuOf(r.daemonCgroup()) }

func cpuOf(cgroup string) (time.Duration, error) {
	if !unified() {
		text, err := os.ReadFile(filepath.Join(cgroupFolder(cgroup), "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(ns), err
	}
	text, err := os.ReadFile(filepath.Join(cgroupFolder(cgroup), "cpu.stat"))
	if err != nil {
		return 0, err
	}
	var us int64
	_, err = fmt.Sscanf(string(text), "usage_usec %d", &us)
	return time.Duration(us) * time.Microsecond, err
}
