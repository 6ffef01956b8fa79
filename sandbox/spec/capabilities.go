package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// defaultCapabilities are the fourteen that images have come to expect.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

const allCapabilities = "ALL"

// capabilities: "ALL" first, then what is added by name, then what is dropped
// by name, which wins. The inheritable and ambient sets hold only what
// add_ambient_capabilities names: with anything else in them a program with
// file capabilities would gain more than its container has.
func (d *draft) capabilities() error {
	asked := d.security().GetCapabilities()
	set := capSet{}
	ambient := capSet{}
	switch {
	case d.privileged(), hasAll(asked.GetAddCapabilities()):
		set.add(d.host.grantable())
	default:
		set.add(intersect(defaultCapabilities, d.host.grantable()))
	}
	if !d.privileged() {
		if hasAll(asked.GetDropCapabilities()) {
			set = capSet{}
		}
		if err := d.addNamed(set, "add_capabilities", asked.GetAddCapabilities()); err != nil {
			return err
		}
	}
	for _, n := range asked.GetDropCapabilities() {
		if full := capabilityName(n); full != allCapabilities && !slices.Contains(d.host.Capabilities, full) {
			d.note("capabilities.drop_capabilities", "%s is not known to the kernel, nothing was dropped for it", check.Truncate(full))
		}
	}
	for _, s := range []capSet{set, ambient} {
		if hasAll(asked.GetAddAmbientCapabilities()) {
			s.add(d.host.grantable())
		}
		if err := d.addNamed(s, "add_ambient_capabilities", asked.GetAddAmbientCapabilities()); err != nil {
			return err
		}
		if !d.privileged() {
			s.remove(asked.GetDropCapabilities())
		}
	}
	d.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding:    set.list(),
		Effective:   set.list(),
		Permitted:   set.list(),
		Inheritable: ambient.list(),
		Ambient:     ambient.list(),
	}
	return nil
}

// addNamed refuses what this machine does not let the daemon give. What the kernel does not know
// (CAP_BPF before Linux 5.8) is left out: nothing there asks for it.
func (d *draft) addNamed(s capSet, field string, names []string) error {
	for _, n := range names {
		n = capabilityName(n)
		if n == allCapabilities {
			continue
		}
		if !slices.Contains(d.host.Capabilities, n) {
			d.note("capabilities."+field, "%s is not known to the kernel and was left out", check.Truncate(n))
			continue
		}
		if !slices.Contains(d.host.grantable(), n) {
			return fmt.Errorf("%s: %s cannot be given on this machine: %w", field, n, errdefs.ErrFailedPrecondition)
		}
		s[n] = true
	}
	return nil
}

type capSet map[string]bool

func (s capSet) add(names []string) {
	for _, n := range names {
		s[n] = true
	}
}

func (s capSet) remove(names []string) {
	for _, n := range names {
		delete(s, capabilityName(n))
	}
}

// list returns the set in the kernel's order.
func (s capSet) list() []string {
	var names []string
	for _, n := range capabilityNames {
		if s[n] {
			names = append(names, n)
		}
	}
	return names
}

// capabilityName turns "net_admin" and "cap_net_admin" into "CAP_NET_ADMIN"; "all" into "ALL".
func capabilityName(s string) string {
	s = strings.ToUpper(s)
	if s == allCapabilities || strings.HasPrefix(s, "CAP_") {
		return s
	}
	return "CAP_" + s
}

func hasAll(names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return capabilityName(n) == allCapabilities })
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
