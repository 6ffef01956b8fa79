package cgroup

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// Finder finds the cgroups of tasks, and never our own ones.
type Finder struct {
	state       statedir.Root
	hierarchies []Hierarchy
	born        []string // the cgroups of this process when it began
}

// NewFinder notes which cgroups are our own.
func NewFinder(state statedir.Root) (*Finder, error) {
	g := &Finder{state: state}
	var err error
	if g.hierarchies, err = readCgroupMounts(); err != nil {
		return nil, err
	}
	g.born, err = processCgroups(g.hierarchies, os.Getpid())
	return g, err
}

// Of lists the cgroup directories of a task: what the runtime recorded,
// else those that its spec asks for and its process is in. The roots and
// the shim's own cgroups are never in the list: everything in it may be killed.
// An error means that they cannot be known now.
func (g *Finder) Of(d statedir.Task, pid int) ([]string, error) {
	dirs, err := runtimeCgroups(filepath.Join(g.state.RuncRoot(), d.ID(), "state.json"))
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
		in, err := processCgroups(g.hierarchies, pid) // of a zombie: some are roots already
		if err != nil && !procfd.Gone(err) {
			return nil, err
		}
		dirs = append(dirs, in...)
	}
	dirs, err = g.foreign(dirs)
	slices.Sort(dirs)
	return slices.Compact(dirs), err
}

// OfSpec lists those that a spec asks for, whether they are there or not.
func (g *Finder) OfSpec(config string) ([]string, error) { return specCgroups(g.hierarchies, config) }

// Contain tells whether a process is in one of dirs or below.
func (g *Finder) Contain(pid int, dirs []string) (bool, error) {
	in, err := processCgroups(g.hierarchies, pid)
	return slices.ContainsFunc(in, func(at string) bool { return within(dirs, at) }), err
}

// foreign takes the roots and our own cgroups out of dirs: those that we are in
// now, and those that we were born in, which are the daemon's.
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

// LiftQuota takes the CPU quota off the cgroups of a task that has ended. With
// cgroups of version 1 a parent's quota cannot be less than a child's, and a
// child counts for some 20 ms after its removal. Whoever lowers the pod's quota
// as soon as the task is gone would be refused (the kubelet does so for a resize
// in place whose policy is RestartContainer).
func (g *Finder) LiftQuota(d statedir.Task) {
	if !slices.ContainsFunc(g.hierarchies, func(h Hierarchy) bool { return slices.Contains(h.Names, "cpu") }) {
		return
	}
	dirs, _ := g.Of(d, 0) // best effort
	for _, dir := range dirs {
		tryWrite(filepath.Join(dir, "cpu.cfs_quota_us"), "-1") // else it is refused as before
	}
}
