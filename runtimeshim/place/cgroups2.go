package place

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/systemd"
)

// leastShares are CPU shares that every runc turns into the weight leastWeight. Of others they differ by
// version.
const leastShares, leastWeight = 2, 1

// unableUnified looks at what of a spec depends on cgroups of version 2 and on systemd.
func unableUnified(s *specs.Spec) string {
	if *s.Linux.Resources.CPU.Shares != leastShares {
		return "linux.resources.cpu.shares with cgroups of version 2"
	}
	if !inScope(s) {
		return ""
	}
	if !systemd.Runs() {
		return "process 1 is not systemd"
	}
	for name := range s.Annotations {
		if strings.HasPrefix(name, "org.systemd.property.") {
			return "annotation " + name
		}
	}
	return ""
}

// unifiedDir returns the cgroup of version 2 that a spec names.
func unifiedDir(s *specs.Spec) string {
	return filepath.Join(cgroupRoot, runtimeshim.CgroupOf(s.Linux.CgroupsPath))
}

// makeUnified makes the cgroup of version 2 that a spec names, and opens the file through which a
// process joins it.
func makeUnified(s *specs.Spec) ([]*os.File, error) {
	dir := unifiedDir(s)
	f, err := makeLimited(dir)
	if err != nil {
		return nil, fmt.Errorf("make cgroup %s: %w", dir, err)
	}
	return []*os.File{f}, nil
}

func makeLimited(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := wantEmpty(dir); err != nil {
		return nil, err
	}
	if err := limitUnified(dir); err != nil {
		return nil, err
	}
	return openProcs(dir)
}

// scopeOf returns the scope that systemd has to make for a spec.
func scopeOf(s *specs.Spec) *systemd.Scope {
	part := strings.Split(s.Linux.CgroupsPath, ":") // Unable has seen that there are three
	scope := &systemd.Scope{Unit: filepath.Base(unifiedDir(s)), Slice: part[0],
		Description: "libcontainer container " + part[2], CPUWeight: leastWeight}
	for _, rule := range everybodysDevices {
		scope.Devices = append(scope.Devices, rule.forSystemd())
	}
	return scope
}

// Admit gives the scope of a job the limits that it does not have from systemd, and lets the program, which
// waits in it, go on. An error if another process is in the scope, or the program is not.
func (j *Job) Admit(pid int) error {
	dir := unifiedDir(j.spec)
	if in := cgroup.Procs(dir); !slices.Equal(in, []int{pid}) {
		return fmt.Errorf("cgroup %s has the processes %v instead of %d", dir, in, pid)
	}
	if err := limitUnified(dir); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", dir, err)
	}
	_, err := j.admission.Write([]byte{1})
	return err
}

// limitUnified gives a cgroup all controllers, the smallest weight and everybody's devices.
func limitUnified(dir string) error {
	if err := enableAbove(dir); err != nil {
		return err
	}
	kind, err := os.ReadFile(filepath.Join(dir, "cgroup.type"))
	if err == nil && strings.TrimSpace(string(kind)) != "domain" {
		err = fmt.Errorf("it is a cgroup of the type %q", kind)
	}
	return errors.Join(err, set(filepath.Join(dir, "cpu.weight"), strconv.Itoa(leastWeight)), limitDevices(dir))
}

// enableAbove enables all controllers of the host in the cgroups above this one. Those that cannot be
// enabled are not needed.
func enableAbove(dir string) error {
	raw, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	all := strings.Fields(string(raw))
	at := cgroupRoot
	for part := range strings.SplitSeq(strings.TrimPrefix(dir, cgroupRoot+"/"), "/") {
		enable(at, all)
		at = filepath.Join(at, part)
	}
	return nil
}

// enable enables controllers for the cgroups below one, together or else one by one.
func enable(dir string, controllers []string) {
	name := filepath.Join(dir, "cgroup.subtree_control")
	now, err := os.ReadFile(name)
	if err != nil {
		return
	}
	have := strings.Fields(string(now))
	var missing []string
	for _, c := range controllers {
		if !slices.Contains(have, c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 || write(name, strings.Join(missing, " ")) == nil {
		return
	}
	for _, one := range missing {
		_ = write(name, one)
	}
}
