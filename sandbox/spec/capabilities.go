package spec

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/sandbox/spec/capability"
	"github.com/cribox/cribox/sandbox/spec/check"
)

// capabilities: "ALL" first, then what is added by name, then what is dropped
// by name, which wins. The inheritable and ambient sets hold only what
// add_ambient_capabilities names: with anything else in them a program with
// file capabilities would gain more than its container has.
func (d *draft) capabilities() error {
	asked := d.security().GetCapabilities()
	set := capability.Set{}
	ambient := capability.Set{}
	switch {
	case d.privileged(), capability.HasAll(asked.GetAddCapabilities()):
		set.Add(d.host.grantable())
	default:
		set.Add(intersect(capability.Default, d.host.grantable()))
	}
	if !d.privileged() {
		if capability.HasAll(asked.GetDropCapabilities()) {
			set = capability.Set{}
		}
		if err := d.addNamed(set, "add_capabilities", asked.GetAddCapabilities()); err != nil {
			return err
		}
	}
	for _, n := range asked.GetDropCapabilities() {
		if full := capability.Name(n); full != capability.All && !slices.Contains(d.host.Capabilities, full) {
			d.note("capabilities.drop_capabilities", "the kernel does not know %s, so it was not dropped", check.Truncate(full))
		}
	}
	for _, s := range []capability.Set{set, ambient} {
		if capability.HasAll(asked.GetAddAmbientCapabilities()) {
			s.Add(d.host.grantable())
		}
		if err := d.addNamed(s, "add_ambient_capabilities", asked.GetAddAmbientCapabilities()); err != nil {
			return err
		}
		if !d.privileged() {
			s.Remove(asked.GetDropCapabilities())
		}
	}
	d.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding:    set.List(),
		Effective:   set.List(),
		Permitted:   set.List(),
		Inheritable: ambient.List(),
		Ambient:     ambient.List(),
	}
	return nil
}

// addNamed refuses what this machine does not let the daemon give. What the kernel does not know
// (CAP_BPF before Linux 5.8) is left out: nothing there asks for it.
func (d *draft) addNamed(s capability.Set, field string, names []string) error {
	for _, n := range names {
		n = capability.Name(n)
		if n == capability.All {
			continue
		}
		if !slices.Contains(d.host.Capabilities, n) {
			d.note("capabilities."+field, "the kernel does not know %s, so it was left out", check.Truncate(n))
			continue
		}
		if !slices.Contains(d.host.grantable(), n) {
			return fmt.Errorf("%s: cribox cannot grant %s because the daemon itself does not have it: %w",
				field, n, errdefs.ErrFailedPrecondition)
		}
		s[n] = true
	}
	return nil
}

func intersect(a, b []string) []string {
	var both []string
	for _, s := range a {
		if slices.Contains(b, s) {
			both = append(both, s)
		}
	}
	return both
}
