package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// MaxSeccompProfile is the size in bytes above which a profile is refused;
// the caller need not read more of the file than one byte beyond it.
const MaxSeccompProfile = 1 << 20

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
			return nil, check.Invalid(field+".localhost_ref", "%q is not a clean path", check.Truncate(p.GetLocalhostRef()))
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
	return nil, check.Invalid(field, "unknown profile %q", check.Truncate(s))
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
		d.spec.Linux.Seccomp = defaultSeccomp(d.spec, d.host)
		return nil
	}
	profile, unknown, err := parseSeccomp(p.GetLocalhostRef(), file, d.host, d.spec.Process.Capabilities.Bounding)
	if unknown != "" {
		d.note("security_context.seccomp", "the profile %s has the field %s, which means nothing here", p.GetLocalhostRef(), unknown)
	}
	d.spec.Linux.Seccomp = profile
	return err
}

// defaultSeccomp is the profile that every incumbent ships, without the
// architectures that the kernel does not run: their filters cost more than
// all the rest.
func defaultSeccomp(s *specs.Spec, h Host) *specs.LinuxSeccomp {
	profile := seccomp.DefaultProfile(s)
	profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool {
		switch a {
		case specs.ArchX32:
			return !h.X32
		case specs.ArchX86, specs.ArchARM:
			return !h.Compat32
		}
		return false
	})
	return profile
}

// parseSeccomp never returns a profile that lets everything through because
// its file was empty or of another format. unknown is a field of it that was
// not read. caps are the capabilities of the process.
func parseSeccomp(name string, file []byte, h Host, caps []string) (profile *specs.LinuxSeccomp, unknown string, err error) {
	const field = "security_context.seccomp.localhost_ref"
	if len(file) == 0 {
		return nil, "", check.Invalid(field, "%s is empty", name)
	}
	if len(file) > MaxSeccompProfile {
		return nil, "", check.Invalid(field, "%s is larger than %d bytes", name, MaxSeccompProfile)
	}
	read, unknown, err := decodeSeccomp(file)
	if err != nil {
		return nil, "", check.Invalid(field, "%s %v", name, err)
	}
	if profile, err = read.evaluate(h, caps); err != nil {
		return nil, "", check.Invalid(field, "%s %v", name, err)
	}
	if !slices.Contains(seccompActions, profile.DefaultAction) {
		return nil, "", check.Invalid(field, "%s has the unknown default action %q", name, check.Truncate(string(profile.DefaultAction)))
	}
	for _, s := range read.Syscalls {
		if !slices.Contains(seccompActions, s.Action) {
			return nil, "", check.Invalid(field, "%s has the unknown action %q", name, check.Truncate(string(s.Action)))
		}
	}
	return profile, unknown, nil
}

var seccompActions = []specs.LinuxSeccompAction{
	specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
	specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify,
}
