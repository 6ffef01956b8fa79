package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// oomRounds limits how often SetOOMScore lists the processes again, to find those forked by a
// process that it had not changed yet.
const oomRounds = 10

// SetOOMScore sets the oom_score_adj of every process in dirs and below. On error it restores those
// that it has changed.
func (g *Finder) SetOOMScore(dirs []string, adj int) error {
	was := map[int]string{}
	for range oomRounds {
		before := len(was)
		for _, pid := range AllProcs(dirs) {
			if _, done := was[pid]; done {
				continue
			}
			old, err := g.setProcessOOMScore(pid, dirs, strconv.Itoa(adj))
			if err != nil {
				for pid, old := range was {
					// The process may have ended; otherwise it accepts its old value.
					_, _ = g.setProcessOOMScore(pid, dirs, old)
				}
				return fmt.Errorf("set oom_score_adj of process %d to %d: %v: %w", pid, adj, err, errdefs.ErrFailedPrecondition)
			}
			was[pid] = old
		}
		if len(was) == before {
			break
		}
	}
	return nil
}

// setProcessOOMScore returns the old oom_score_adj. It does nothing for a process that has ended,
// or whose pid belongs to a process outside dirs.
func (g *Finder) setProcessOOMScore(pid int, dirs []string, adj string) (old string, err error) {
	// proc stays bound to this process even if the pid is reused.
	proc, err := os.OpenRoot(fmt.Sprintf("/proc/%d", pid))
	if err == nil {
		defer proc.Close()
		old, err = g.swapOOMScore(proc, dirs, adj)
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return "", nil
	}
	return old, err
}

func (g *Finder) swapOOMScore(proc *os.Root, dirs []string, adj string) (string, error) {
	text, err := proc.ReadFile("oom_score_adj")
	old := strings.TrimSpace(string(text))
	if err != nil || old == adj || adj == "" {
		return old, err
	}
	in, err := proc.ReadFile("cgroup")
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(cgroupsIn(g.hierarchies, in), func(at string) bool { return within(dirs, at) }) {
		return "", os.ErrNotExist
	}
	return old, proc.WriteFile("oom_score_adj", []byte(adj), 0)
}

// within reports whether path is one of dirs or below.
func within(dirs []string, path string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}
