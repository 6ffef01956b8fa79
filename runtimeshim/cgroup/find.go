package cgroup

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// Finder finds the cgroups of tasks, and never returns our own.
type Finder struct {
	state       statedir.Root
	hierarchies []Hierarchy
	born        []string // the cgroups of this process at its start
}

// NewFinder records which cgroups are our own.
func NewFinder(state statedir.Root) (*Finder, error) {
	g := &Finder{state: state}
	var err error
	if g.hierarchies, err = readCgroupMounts(); err != nil {
		return nil, err
	}
	g.born, err = processCgroups(g.hierarchies, os.Getpid())
	return g, err
}

// Of lists the cgroup directories of a task: those that the runtime recorded, or otherwise those
// that its spec names and its process is in. Everything in the list may be killed, so it never has
// the roots or the shim's own cgroups. An error means that the cgroups cannot be determined now.
func (g *Finder) Of(d statedir.Task, pid int) ([]string, error) {
	dirs, err := runtimeCgroups(g.state.RuncState(d.ID()))
	if err == nil {
		dirs, err = g.foreign(dirs)
	}
	if err != nil || len(dirs) > 0 {
		return dirs, err
	}
	if dirs, err = specCgroups(g.hierarchies, d.Config()); err != nil {
		return nil, err
	}
	if pid > 0 {
		// For a zombie some of these are already the roots, which foreign removes.
		in, err := processCgroups(g.hierarchies, pid)
		if err != nil && !procfd.Gone(err) {
			return nil, err
		}
		dirs = append(dirs, in...)
	}
	dirs, err = g.foreign(dirs)
	slices.Sort(dirs)
	return slices.Compact(dirs), err
}

// OfSpec lists the cgroups that a spec names, whether they exist or not.
func (g *Finder) OfSpec(config string) ([]string, error) { return specCgroups(g.hierarchies, config) }

// Contain reports whether a process is in one of dirs or below.
func (g *Finder) Contain(pid int, dirs []string) (bool, error) {
	in, err := processCgroups(g.hierarchies, pid)
	return slices.ContainsFunc(in, func(at string) bool { return within(dirs, at) }), err
}

// foreign removes from dirs the roots and our own cgroups: those that we are in now, and those that
// we started in, which are the daemon's.
func (g *Finder) foreign(dirs []string) ([]string, error) {
	own, err := processCgroups(g.hierarchies, os.Getpid())
	if err != nil {
		return nil, err
	}
	own = append(own, g.born...)
	return slices.DeleteFunc(dirs, func(dir string) bool {
		return slices.Contains(own, dir) ||
			slices.ContainsFunc(g.hierarchies, func(h Hierarchy) bool { return filepath.Clean(dir) == h.Mount })
	}), nil
}

// LiftQuota removes the CPU quota from the cgroups of a task that has ended. With cgroups of
// version 1 a parent's quota cannot be below a child's, and a removed child still counts for about
// 20 ms. So lowering the pod's quota right after the task has ended would fail; the kubelet does
// that for an in-place resize with the policy RestartContainer.
func (g *Finder) LiftQuota(d statedir.Task) {
	if !slices.ContainsFunc(g.hierarchies, func(h Hierarchy) bool { return slices.Contains(h.Names, "cpu") }) {
		return
	}
	dirs, _ := g.Of(d, 0) // best effort
	for _, dir := range dirs {
		// If this fails, lowering the quota fails as it would have before.
		tryWrite(filepath.Join(dir, "cpu.cfs_quota_us"), "-1")
	}
}
