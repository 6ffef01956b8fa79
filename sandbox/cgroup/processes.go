package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What is looked at of one container, at most: beyond it the figure is left out rather than let one
// container cost all others.
const (
	maxProcesses = 1024
	maxLinks     = 4096 // descriptors that are told apart
)

// processes counts the processes in a cgroup, without those in a cgroup below it, and what they
// have open. It goes to the processes that the files name, and to no others.
func (r *reader) processes(d *Detail, files ...string) {
	var pids []int
	known := false
	for _, file := range files {
		b := r.readList(file)
		known = known || b != nil
		eachLine(b, func(line []byte) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil && pid > 0 { // 0: of another PID namespace
				pids = append(pids, pid)
			}
		})
	}
	if !known {
		return
	}
	d.Processes = new(uint64(len(pids)))
	if len(pids) == 0 {
		return
	}
	d.MaxFiles = maxFiles(pids[0])
	if len(pids) > maxProcesses {
		return
	}
	var open, sockets uint64
	for _, pid := range pids {
		n, names, ok := descriptors(pid, maxLinks-min(open, maxLinks))
		if !ok {
			return
		}
		open += n
		sockets += countSockets(pid, names)
	}
	d.Descriptors = &open
	if open <= maxLinks {
		d.Sockets = &sockets
	}
}

// descriptors counts what a process has open, and names it when it is not more than the budget; a
// process that is gone has nothing. Before Linux 6.2, which tells the number by itself, more than
// the budget cannot be counted.
func descriptors(pid int, budget uint64) (n uint64, names []string, counted bool) {
	dir, err := os.Open(fdDir(pid))
	if err != nil {
		return 0, nil, true
	}
	defer dir.Close()
	if info, err := dir.Stat(); err == nil && uint64(info.Size()) > budget {
		return uint64(info.Size()), nil, true
	}
	names, err = dir.Readdirnames(int(budget) + 1)
	if err != nil {
		return 0, nil, true // it is gone, or has nothing open
	}
	n = uint64(len(names))
	return n, names, n <= budget
}

func countSockets(pid int, names []string) uint64 {
	var n uint64
	for _, name := range names {
		if target, err := os.Readlink(filepath.Join(fdDir(pid), name)); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

func fdDir(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/fd" }

// maxFiles returns the soft limit of open files of a process, nil without one.
func maxFiles(pid int) *uint64 {
	var l unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l) != nil || l.Cur == unix.RLIM_INFINITY {
		return nil
	}
	return &l.Cur
}
