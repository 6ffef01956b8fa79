package place

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// required are the controllers of cgroup version 1 in which runc makes a cgroup, and optional those
// where it ignores that it cannot. "" is version 2 beside them.
var (
	required = []string{"cpuset", "devices", "memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb", "net_cls", "net_prio",
		"perf_event", "freezer", "rdma"}
	optional = []string{"name=systemd", "misc", ""}
)

// makeByController makes the cgroups of version 1 that a spec names, and opens the files through which a
// process joins them. It uses none that has a process.
func makeByController(s *specs.Spec) (join []*os.File, err error) {
	defer func() {
		if err != nil {
			unixfd.CloseAll(join)
			join = nil
		}
	}()
	done := map[string]bool{}
	for _, h := range cgroup.Mounts() {
		if filepath.Dir(h.Mount) != cgroupRoot || done[h.Mount] || !wanted(h) {
			continue
		}
		done[h.Mount] = true
		dir := filepath.Join(h.Mount, s.Linux.CgroupsPath)
		f, err := makeCgroup(h, dir, s)
		if err != nil && !slices.ContainsFunc(h.Names, func(n string) bool { return slices.Contains(required, n) }) {
			continue
		}
		if err != nil {
			return join, fmt.Errorf("make cgroup %s: %w", dir, err)
		}
		join = append(join, f)
	}
	return join, nil
}

// wanted reports whether runc makes a cgroup in a hierarchy.
func wanted(h cgroup.Hierarchy) bool {
	if h.Names == nil {
		return h.Mount == cgroupRoot+"/unified"
	}
	return slices.ContainsFunc(h.Names, func(n string) bool {
		return slices.Contains(required, n) ||
			slices.Contains(optional, n)
	})
}

func makeCgroup(h cgroup.Hierarchy, dir string, s *specs.Spec) (*os.File, error) {
	if slices.Contains(h.Names, "cpuset") {
		if err := makeCpuset(h.Mount, dir); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := wantEmpty(dir); err != nil {
		return nil, err
	}
	if slices.Contains(h.Names, "devices") {
		if err := denyDevices(dir); err != nil {
			return nil, err
		}
	}
	if slices.Contains(h.Names, "cpu") {
		if err := set(filepath.Join(dir, "cpu.shares"), strconv.FormatUint(*s.Linux.Resources.CPU.Shares, 10)); err != nil {
			return nil, err
		}
	}
	return openProcs(dir)
}

// makeCpuset makes a cgroup and those above it, each with the processors and memory nodes of its
// parent where it has none: a new one of version 1 has none, and no process can join it.
func makeCpuset(mount, dir string) error {
	if dir == mount {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeCpuset(mount, parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(own)) > 0 {
			continue
		}
		parents, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(dir, name), string(parents)); err != nil {
			return err
		}
	}
	return nil
}

// denyDevices forbids all devices but everybody's, and checks that it is so.
func denyDevices(dir string) error {
	if err := write(filepath.Join(dir, "devices.deny"), "a"); err != nil {
		return err
	}
	var want []string
	for _, rule := range everybodysDevices {
		want = append(want, rule.String())
		if err := write(filepath.Join(dir, "devices.allow"), rule.String()); err != nil {
			return err
		}
	}
	list, err := os.ReadFile(filepath.Join(dir, "devices.list"))
	if err != nil {
		return err
	}
	rules := slices.Sorted(strings.SplitSeq(strings.TrimSpace(string(list)), "\n"))
	if !slices.Equal(rules, slices.Sorted(slices.Values(want))) {
		return fmt.Errorf("devices.list is %q", list)
	}
	return nil
}
