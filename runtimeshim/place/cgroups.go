package place

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/systemd"
)

const cgroupRoot = "/sys/fs/cgroup"

// UnableHere returns why the process of a spec, of which Unable says nothing, cannot be started by this
// package on this host; "" if there is no reason. Commands are executed on every host.
func UnableHere(s *specs.Spec) string {
	if unified() {
		return unableUnified(s)
	}
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
	if inScope(s) {
		return "a scope of systemd with cgroups of version 1"
	}
	return ""
}

// unified reports whether the host has cgroups of version 2 only.
func unified() bool {
	return slices.ContainsFunc(cgroup.Mounts(), func(h cgroup.Hierarchy) bool {
		return h.Names == nil && h.Mount == cgroupRoot
	})
}

// inScope reports whether systemd makes the cgroup of a spec.
func inScope(s *specs.Spec) bool { return !filepath.IsAbs(s.Linux.CgroupsPath) }

// makeCgroups makes the cgroups that a spec names, with the values that runc writes, and opens the
// files through which a process joins them; or it says in which scope systemd has to put the
// process. After an error the caller removes what is there.
func makeCgroups(s *specs.Spec) (join []*os.File, scope *systemd.Scope, err error) {
	switch {
	case inScope(s):
		return nil, scopeOf(s), nil
	case unified():
		join, err = makeUnified(s)
	default:
		join, err = makeByController(s)
	}
	return join, nil, err
}

// wantEmpty returns an error if a cgroup has processes.
func wantEmpty(dir string) error {
	in, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err == nil && len(in) > 0 {
		err = fmt.Errorf("it has processes: %.40q", in)
	}
	return err
}

// openProcs opens the file through which a process joins a cgroup.
func openProcs(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY|unix.O_NOFOLLOW, 0)
}

// set writes a value to a file of a cgroup, and checks that the kernel took it as it is.
func set(name, value string) error {
	if err := write(name, value); err != nil {
		return err
	}
	now, err := os.ReadFile(name)
	if err == nil && strings.TrimSpace(string(now)) != value {
		err = fmt.Errorf("%s is %q instead of %s", filepath.Base(name), now, value)
	}
	return err
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
