package spec

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// apparmorProfile returns the profile asked for in either form, the newer
// first; nil means that the request says nothing.
func apparmorProfile(p *runtimeapi.SecurityProfile, deprecated string) (*runtimeapi.SecurityProfile, error) {
	const field = "security_context.apparmor"
	if p == nil {
		var err error
		if p, err = deprecatedProfile(field, deprecated, nil); err != nil {
			return nil, err
		}
	}
	if p == nil {
		return nil, nil
	}
	if err := checkProfile(field, p); err != nil {
		return nil, err
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		// critest and older clients send it, and containerd takes it off
		name := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
		if err := check.Text(field+".localhost_ref", name, check.MaxName); err != nil {
			return nil, err
		}
		p = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}
	}
	return p, nil
}

func (d *draft) podAppArmor() error {
	return d.applyAppArmor(d.podSecurity().GetApparmor(), "", false)
}

func (d *draft) appArmor() error {
	sc := d.security()
	old := sc.GetApparmorProfile() //nolint:staticcheck // of older kubelets
	return d.applyAppArmor(sc.GetApparmor(), old, sc.GetPrivileged())
}

// applyAppArmor: nothing asked for means the runtime's profile, where there is one.
func (d *draft) applyAppArmor(asked *runtimeapi.SecurityProfile, deprecated string, privileged bool) error {
	p, err := apparmorProfile(asked, deprecated)
	if err != nil {
		return err
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		if d.host.AppArmor {
			d.spec.Process.ApparmorProfile = "unconfined"
		}
		return nil
	}
	if !d.host.AppArmor {
		if p != nil {
			return fmt.Errorf("security_context.apparmor: this machine has no AppArmor: %w", errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	if privileged {
		d.spec.Process.ApparmorProfile = "unconfined" // said, because the OCI runtime may have a profile of its own
		return nil
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		d.spec.Process.ApparmorProfile = p.GetLocalhostRef()
		return nil
	}
	if d.host.AppArmorProfile == "" && p != nil {
		return fmt.Errorf("security_context.apparmor: the default profile is not loaded: %s: %w",
			d.host.NoAppArmorProfile, errdefs.ErrFailedPrecondition)
	}
	d.spec.Process.ApparmorProfile = d.host.AppArmorProfile
	return nil
}

var (
	seLinuxName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
	seLinuxLevel = regexp.MustCompile(`^` + seLinuxOne + `(-` + seLinuxOne + `)?$`)
)

// seLinuxOne is a sensitivity with categories: s0:c1.c3,c7.
const seLinuxOne = `s[0-9]{1,2}(:c[0-9]{1,4}(\.c[0-9]{1,4})?(,c[0-9]{1,4}(\.c[0-9]{1,4})?){0,64})?`

// checkSELinux: the parts of a context have no colon in them, or they would be others' parts.
func checkSELinux(o *runtimeapi.SELinuxOption) error {
	const field = "linux.security_context.selinux_options"
	for part, value := range map[string]string{"user": o.GetUser(), "role": o.GetRole(), "type": o.GetType()} {
		if value != "" && !seLinuxName.MatchString(value) {
			return check.Invalid(field+"."+part, "%q is not valid in an SELinux context", check.Truncate(value))
		}
	}
	if level := o.GetLevel(); level != "" && !seLinuxLevel.MatchString(level) {
		return check.Invalid(field+".level", "%q is not a level such as s0:c1,c2", check.Truncate(level))
	}
	return nil
}

func (d *draft) podSELinux() error {
	return d.applySELinux(d.podSecurity().GetSelinuxOptions(), d.pod.ProcessLabel, d.pod.MountLabel)
}

// seLinux: a privileged container has no label, whatever it asks for.
func (d *draft) seLinux() error {
	if d.privileged() {
		return nil
	}
	return d.applySELinux(d.security().GetSelinuxOptions(), d.c.ProcessLabel, d.c.MountLabel)
}

// applySELinux takes labels that the caller made of the options: categories
// are given out per pod, and only the caller knows which are taken. On a
// machine without SELinux there is nothing that a label would keep apart, and
// the options mean nothing: Kubernetes' conformance has such pods run there.
func (d *draft) applySELinux(o *runtimeapi.SELinuxOption, process, mount string) error {
	asked := o.GetUser() != "" || o.GetRole() != "" || o.GetType() != "" || o.GetLevel() != ""
	if asked && d.host.SELinuxOff {
		return fmt.Errorf("security_context.selinux_options: SELinux is off in the configuration: %w",
			errdefs.ErrFailedPrecondition)
	}
	if asked && d.host.SELinux && process == "" {
		return fmt.Errorf("security_context.selinux_options: the pod has no SELinux labels: %w",
			errdefs.ErrFailedPrecondition)
	}
	if d.host.SELinux {
		d.spec.Process.SelinuxLabel = process
		d.spec.Linux.MountLabel = mount
	}
	return nil
}
