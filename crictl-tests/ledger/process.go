package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// Process is one entry of /proc.
type Process struct {
	Pid, Parent int
	State       byte     // as in /proc/PID/stat: R, S, Z …
	Began       uint64   // in clock ticks since the boot
	Args        []string // empty for a zombie
	Cgroup      string   // the text of /proc/PID/cgroup
}

// Name is what a reader knows the process by.
func (p Process) Name() string {
	switch {
	case p.State == 'Z':
		return "zombie"
	case len(p.Args) == 0:
		return "(no arguments)"
	default:
		return strings.Join(append([]string{filepath.Base(p.Args[0])}, p.Args[1:]...), " ")
	}
}

// List returns every process of the host.
func List() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := Look(pid); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// Look reads one process. A process that is gone is an error.
func Look(pid int) (Process, error) {
	folder := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(folder + "stat")
	if err != nil {
		return Process{}, err
	}
	// The second field is the name in brackets, and may hold anything, brackets and spaces included.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("process %d: short stat %q", pid, stat)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return Process{}, fmt.Errorf("process %d: parent: %w", pid, err)
	}
	began, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	p := Process{Pid: pid, Parent: parent, State: fields[0][0], Began: began}
	if args, err := os.ReadFile(folder + "cmdline"); err == nil && len(args) > 0 {
		p.Args = strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00")
	}
	if cgroup, err := os.ReadFile(folder + "cgroup"); err == nil {
		p.Cgroup = string(cgroup)
	}
	return p, nil
}

// Belonging returns the processes that carry a mark in their arguments or their cgroup, and the zombies of those.
func Belonging(s Scope) ([]Process, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	ours := map[int]bool{s.Daemon: s.Daemon != 0}
	for _, p := range all {
		if p.Pid != os.Getpid() && (s.owns(p.Cgroup) || isRuntime(p) && s.owns(strings.Join(p.Args, "\x00"))) {
			ours[p.Pid] = true
		}
	}
	var out []Process
	for _, p := range all {
		if ours[p.Pid] || p.State == 'Z' && ours[p.Parent] {
			out = append(out, p)
		}
	}
	return out, nil
}

// isRuntime keeps out the editor, the shell or the crictl that merely names our folder.
func isRuntime(p Process) bool {
	if len(p.Args) == 0 {
		return false
	}
	name := filepath.Base(p.Args[0])
	return strings.HasPrefix(name, "cribox") || strings.HasPrefix(name, "runc") || name == "exe"
}

func processes(s Scope) ([]string, error) {
	ours, err := Belonging(s)
	var out []string
	for _, p := range ours {
		out = append(out, p.Name())
	}
	return out, err
}

// ourProcesses are the long-lived ones: daemon, shim, logger.
func ourProcesses(s Scope) ([]int, error) {
	ours, err := Belonging(s)
	var out []int
	for _, p := range ours {
		if Role(p) != "" {
			out = append(out, p.Pid)
		}
	}
	return out, err
}

// Role is "serve", "shim" or "logger" for a process of cribox, else "".
func Role(p Process) string {
	if len(p.Args) < 2 || p.State == 'Z' {
		return ""
	}
	switch p.Args[1] {
	case "serve", "shim", "logger":
		return p.Args[1]
	default:
		return ""
	}
}

// fds are the open descriptors of daemon, shim and logger, by what they lead to; numbers that
// differ each time are left out.
func fds(s Scope) ([]string, error) {
	ours, err := Belonging(s)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range ours {
		role := Role(p)
		if role == "" {
			continue
		}
		folder := fmt.Sprintf("/proc/%d/fd", p.Pid)
		entries, err := os.ReadDir(folder)
		if err != nil && !gone(err) {
			return nil, err
		}
		for _, e := range entries {
			if to, err := os.Readlink(filepath.Join(folder, e.Name())); err == nil {
				out = append(out, role+" "+withoutNumbers.ReplaceAllString(to, "$1"))
			}
		}
	}
	return out, nil
}

var withoutNumbers = regexp.MustCompile(`^(socket|pipe|net|mnt|pid):.*`)

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV)
}
