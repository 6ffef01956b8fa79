// Package seccomp makes the profile of a process: the default one, or one from the bytes of a file;
// it reads no file.
package seccomp

import (
	"slices"

	contrib "github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// MaxFile is the size in bytes above which a profile is refused. The caller need not read more of
// the file than one byte beyond it.
const MaxFile = 1 << 20

// Machine is what of this machine a profile depends on.
type Machine struct {
	// Kernel is the version of the kernel: 6, 1.
	Kernel [2]int
	// X32 is true if the kernel has the x32 ABI. Compat32 is true if it runs programs of the 32-bit
	// sister architecture (x86 on amd64, ARM on arm64). The default profile leaves out what the
	// kernel lacks: these two cause most of the time that a filter costs. A system call by an ABI
	// that was left out kills the caller.
	X32, Compat32 bool
}

// Default returns containerd's default profile, without the architectures that the kernel does not
// run: their filters cost more than all the rest.
func Default(s *specs.Spec, m Machine) *specs.LinuxSeccomp {
	profile := contrib.DefaultProfile(s)
	profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool {
		switch a {
		case specs.ArchX32:
			return !m.X32
		case specs.ArchX86, specs.ArchARM:
			return !m.Compat32
		}
		return false
	})
	return profile
}

// Parse returns the profile in a file, for a process with the capabilities caps; unknown is a field
// of the file that was not read. An empty file, or one of another format, is an error: a profile
// without rules would allow every system call.
func Parse(
	name string, file []byte, m Machine, caps []string,
) (profile *specs.LinuxSeccomp, unknown string, err error) {
	const field = "security_context.seccomp.localhost_ref"
	if len(file) == 0 {
		return nil, "", check.Invalid(field, "%s is empty", name)
	}
	if len(file) > MaxFile {
		return nil, "", check.Invalid(field, "%s is larger than %d bytes", name, MaxFile)
	}
	read, unknown, err := decode(file)
	if err != nil {
		return nil, "", check.Invalid(field, "%s %v", name, err)
	}
	if profile, err = read.evaluate(m, caps); err != nil {
		return nil, "", check.Invalid(field, "%s %v", name, err)
	}
	if !slices.Contains(actions, profile.DefaultAction) {
		return nil, "", check.Invalid(field, "%s has the unknown default action %q",
			name, check.Truncate(string(profile.DefaultAction)))
	}
	for _, s := range read.Syscalls {
		if !slices.Contains(actions, s.Action) {
			return nil, "", check.Invalid(field, "%s has the unknown action %q", name, check.Truncate(string(s.Action)))
		}
	}
	return profile, unknown, nil
}

var actions = []specs.LinuxSeccompAction{
	specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
	specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify,
}
