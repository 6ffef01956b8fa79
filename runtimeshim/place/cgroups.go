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
	"golang.org/x/sys/unix"

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

const cgroupRoot = "/sys/fs/cgroup"

// everybodysDevices is what runc allows to every container: to make any device node, and to use
// null, zero, full, tty, random, urandom, terminals and tun.
var everybodysDevices = []string{"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:8 rwm", "c 1:7 rwm", "c 5:0 rwm", "c 1:5 rwm",
	"c 1:9 rwm",
	"c 136:* rwm", "c 5:2 rwm", "c 10:200 rwm"}

// UnableToStart returns why no pod of this host can be started by this package; "" if there is no
// reason. Commands are executed on every host.
func UnableToStart() string {
	names := map[string]bool{}
	for _, h := range cgroup.Mounts() {
		for _, n := range h.Names {
			names[n] = filepath.Dir(h.Mount) == cgroupRoot
		}
	}
	for _, n := range []string{"devices", "cpu"} {
		if !names[n] {
			return fmt.Sprintf("the cgroup controller %s of version 1 is not at %s", n, cgroupRoot)
		}
	}
	return ""
}

// makeCgroups makes the cgroups that a spec names, with the values that runc writes, and opens the
// files through which a process joins them. It uses none that has a process. After an error the
// caller removes what is there.
func makeCgroups(s *specs.Spec) (join []*os.File, err error) {
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
	procs := filepath.Join(dir, "cgroup.procs")
	if in, err := os.ReadFile(procs); err != nil || len(in) > 0 {
		return nil, errors.Join(err, fmt.Errorf("it has processes: %.40q", in))
	}
	if slices.Contains(h.Names, "devices") {
		if err := denyDevices(dir); err != nil {
			return nil, err
		}
	}
	if slices.Contains(h.Names, "cpu") {
		if err := setShares(dir, *s.Linux.Resources.CPU.Shares); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(procs, os.O_WRONLY, 0)
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
	for _, rule := range everybodysDevices {
		if err := write(filepath.Join(dir, "devices.allow"), rule); err != nil {
			return err
		}
	}
	list, err := os.ReadFile(filepath.Join(dir, "devices.list"))
	if err != nil {
		return err
	}
	rules := slices.Sorted(strings.SplitSeq(strings.TrimSpace(string(list)), "\n"))
	if !slices.Equal(rules, slices.Sorted(slices.Values(everybodysDevices))) {
		return fmt.Errorf("devices.list is %q", list)
	}
	return nil
}

// setShares writes CPU shares and checks that the kernel took them as they are.
func setShares(dir string, shares uint64) error {
	name, text := filepath.Join(dir, "cpu.shares"), strconv.FormatUint(shares, 10)
	if err := write(name, text); err != nil {
		return err
	}
	if now, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(now)) != text {
		return errors.Join(err, fmt.Errorf("cpu.shares is %q instead of %s", now, text))
	}
	return nil
}

// write writes to a file of a cgroup, which must exist.
func write(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
