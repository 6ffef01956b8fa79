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

// oomRounds bounds how often SetOOMScore looks for processes that were forked
// by one that it had not come to yet.
const oomRounds = 10

// SetOOMScore writes the oom_score_adj of every process in dirs and below. On
// error those that were changed are changed back.
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
					_, _ = g.setProcessOOMScore(pid, dirs, old) // it has gone, or takes what it had
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

// setProcessOOMScore returns what oom_score_adj was. A process that has ended,
// or whose number is another's by now, is left alone.
func (g *Finder) setProcessOOMScore(pid int, dirs []string, adj string) (old string, err error) {
	proc, err := os.OpenRoot(fmt.Sprintf("/proc/%d", pid)) // one process: its number may be given away, this not
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

// within says whether path is one of dirs or below.
func within(dirs []string, path string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
}
