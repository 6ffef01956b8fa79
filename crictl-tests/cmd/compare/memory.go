package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

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

// memory is of the processes of the runtime, in KiB.
type memory struct{ daemon, helpers, added int }

// memoryNow also says how much of it belongs to processes that were not there before.
func (r *runtime) memoryNow(before map[int]int) (memory, error) {
	now, err := r.processes()
	var m memory
	for pid, kib := range now {
		if pid == r.daemon.Process.Pid {
			m.daemon += kib
		} else {
			m.helpers += kib
		}
		if _, old := before[pid]; !old {
			m.added += kib
		}
	}
	return m, err
}

func sum(kib map[int]int) int {
	n := 0
	for _, k := range kib {
		n += k
	}
	return n
}
