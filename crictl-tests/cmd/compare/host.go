package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
func (r *runtime) cpu() (time.Duration, error) {
	if !unified() {
		text, err := os.ReadFile(filepath.Join(cgroupFolder(r.cgroup), "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(ns), err
	}
	text, err := os.ReadFile(filepath.Join(cgroupFolder(r.cgroup), "cpu.stat"))
	if err != nil {
		return 0, err
	}
	var us int64
	_, err = fmt.Sscanf(string(text), "usage_usec %d", &us)
	return time.Duration(us) * time.Microsecond, err
}

// processes are those of the runtime, without the workload, with the KiB of memory of each (PSS: what
// several share is divided among them).
func (r *runtime) processes() (map[int]int, error) {
	found := map[int]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue // no process
		}
		kib, ours, err := r.memoryOf(filepath.Join("/proc", e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH): // it has just ended
		case err != nil:
			return nil, err
		case ours:
			found[pid] = kib
		}
	}
	return found, nil
}

// memoryOf reads one process.
func (r *runtime) memoryOf(proc string) (kib int, ours bool, err error) {
	in, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil || !strings.Contains(string(in), r.cgroup+"/") {
		return 0, false, err
	}
	command, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil || len(command) == 0 || strings.HasPrefix(string(command), "sleep\x00") {
		return 0, false, err
	}
	text, err := os.ReadFile(filepath.Join(proc, "smaps_rollup"))
	if err != nil {
		return 0, false, err
	}
	_, pss, _ := strings.Cut(string(text), "\nPss:")
	_, err = fmt.Sscanf(pss, "%d", &kib)
	return kib, true, err
}

// answer asks, and complains of a list that lacks something.
func answer(ctx context.Context, row figure, want int, ask func(context.Context) (int, error)) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	got, err := ask(ctx)
	if err == nil && got != want {
		err = fmt.Errorf("%s has %d entries, not %d", row.text, got, want)
	}
	return err
}
