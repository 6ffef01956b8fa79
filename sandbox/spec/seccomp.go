package spec

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
	"github.com/cribox/cribox/sandbox/spec/seccomp"
)

// PodSeccompPath returns the absolute path of the profile that the pod's pause
// process is to have, "" when it needs no file.
func PodSeccompPath(p *runtimeapi.PodSandboxConfig) (string, error) {
	sc := p.GetLinux().GetSecurityContext()
	profile, err := seccompProfile(sc.GetSeccomp(), sc.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets
	return profile.GetLocalhostRef(), err
}

// ContainerSeccompPath returns the absolute path of the profile that the
// container is to have, "" when it needs no file.
func ContainerSeccompPath(c *runtimeapi.ContainerConfig) (string, error) {
	sc := c.GetLinux().GetSecurityContext()
	profile, err := seccompProfile(sc.GetSeccomp(), sc.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets
	if sc.GetPrivileged() {
		return "", err
	}
	return profile.GetLocalhostRef(), err
}

// seccompProfile returns the profile asked for in either form, the newer
// first; nil means unconfined. A Localhost profile always has a path.
func seccompProfile(p *runtimeapi.SecurityProfile, deprecated string) (*runtimeapi.SecurityProfile, error) {
	const field = "security_context.seccomp"
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
		if err := check.HostPath(field+".localhost_ref", p.GetLocalhostRef()); err != nil {
			return nil, err
		}
		if path.Clean(p.GetLocalhostRef()) != p.GetLocalhostRef() {
			return nil, check.Invalid(field+".localhost_ref",
				"%q is not a clean path: remove \"//\", \"/./\" and the slash at the end", check.Truncate(p.GetLocalhostRef()))
		}
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return nil, nil
	}
	return p, nil
}

// deprecatedProfile reads the string form of a profile; "" is unset.
func deprecatedProfile(field, s string, unset *runtimeapi.SecurityProfile) (*runtimeapi.SecurityProfile, error) {
	switch {
	case s == "":
		return unset, nil
	case s == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case s == "runtime/default", s == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case strings.HasPrefix(s, "localhost/"):
		return &runtimeapi.SecurityProfile{
			ProfileType:  runtimeapi.SecurityProfile_Localhost,
			LocalhostRef: strings.TrimPrefix(s, "localhost/"),
		}, nil
	}
	return nil, check.Invalid(field, "unknown profile %q; use runtime/default, unconfined or localhost/NAME",
		check.Truncate(s))
}

// checkProfile: a type we know; a name with Localhost and only there.
func checkProfile(field string, p *runtimeapi.SecurityProfile) error {
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
		if p.GetLocalhostRef() != "" {
			return check.Invalid(field+".localhost_ref", "is set although the profile type is %s", p.GetProfileType())
		}
	case runtimeapi.SecurityProfile_Localhost:
		if p.GetLocalhostRef() == "" {
			return check.Invalid(field+".localhost_ref", "is empty although the profile type is Localhost")
		}
	default:
		return check.Invalid(field+".profile_type", "%d is unknown", p.GetProfileType())
	}
	return nil
}

func (d *draft) podSeccomp() error {
	sc := d.podSecurity()
	p, err := seccompProfile(sc.GetSeccomp(), sc.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets
	if err != nil {
		return err
	}
	return d.applySeccomp(p, d.pod.SeccompProfile)
}

// seccomp: a privileged container has none, whatever it asks for.
func (d *draft) seccomp() error {
	sc := d.security()
	p, err := seccompProfile(sc.GetSeccomp(), sc.GetSeccompProfilePath()) //nolint:staticcheck // older kubelets
	if err != nil || d.privileged() {
		return err
	}
	return d.applySeccomp(p, d.c.SeccompProfile)
}

func (d *draft) applySeccomp(p *runtimeapi.SecurityProfile, file []byte) error {
	if p == nil {
		return nil
	}
	if !d.host.Seccomp {
		return fmt.Errorf("security_context.seccomp: this machine has no seccomp: %w", errdefs.ErrFailedPrecondition)
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		d.spec.Linux.Seccomp = seccomp.Default(d.spec, d.host.Machine)
		return nil
	}
	profile, unknown, err := seccomp.Parse(p.GetLocalhostRef(), file, d.host.Machine, d.spec.Process.Capabilities.Bounding)
	if unknown != "" {
		d.note("security_context.seccomp", "ignored the unknown field %[2]s of the profile %[1]s",
			p.GetLocalhostRef(), unknown)
	}
	d.spec.Linux.Seccomp = profile
	return err
}
