package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/sandbox/spec/capability"
	"github.com/cribox/cribox/sandbox/spec/check"
)

// profileFile is a profile as people have them: in the form of the OCI runtime spec, or in
// Docker's, which has rules that hold for some machines and containers only, and in its oldest form
// one name a rule. Docker's has to be evaluated: an OCI runtime would apply each rule always, and
// read no name.
type profileFile struct {
	specs.LinuxSeccomp
	ArchMap      []archFamily `json:"archMap"`
	Syscalls     []fileRule   `json:"syscalls"`
	DefaultErrno string       `json:"defaultErrno"` // the word for defaultErrnoRet
}

// archFamily is an architecture of a machine, and those beside it whose programs run there too.
type archFamily struct {
	Architecture     specs.Arch   `json:"architecture"`
	SubArchitectures []specs.Arch `json:"subArchitectures"`
}

type fileRule struct {
	specs.LinuxSyscall
	Name     string     `json:"name"`
	Comment  string     `json:"comment"`
	Errno    string     `json:"errno"` // the word for errnoRet
	Includes ruleFilter `json:"includes"`
	Excludes ruleFilter `json:"excludes"`
}

// ruleFilter says for whom a rule is. An empty one says nothing.
type ruleFilter struct {
	Arches    []string `json:"arches"`
	Caps      []string `json:"caps"`
	MinKernel string   `json:"minKernel"`
}

// archNames are the architectures by Go's name, in the words of a profile, and in those of a filter
// where they are others.
var archNames = map[string]struct {
	profile specs.Arch
	filter  string
}{
	"386": {specs.ArchX86, "x86"}, "amd64": {specs.ArchX86_64, "amd64"}, "arm": {specs.ArchARM, "arm"},
	"arm64":   {specs.ArchAARCH64, "arm64"},
	"loong64": {specs.ArchLOONGARCH64, "loong64"}, "ppc64le": {specs.ArchPPC64LE, "ppc64le"},
	"riscv64": {specs.ArchRISCV64, "riscv64"},
	"s390x":   {specs.ArchS390X, "s390x"},
}

// decode reads a file; unknown is the first field in it that has no meaning here, "" for
// none.
func decode(file []byte) (profile *profileFile, unknown string, err error) {
	strict := json.NewDecoder(bytes.NewReader(file))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&profileFile{}); err != nil {
		_, unknown, _ = strings.Cut(err.Error(), "json: unknown field ")
	}
	dec := json.NewDecoder(bytes.NewReader(file))
	profile = &profileFile{}
	if err := dec.Decode(profile); err != nil {
		return nil, "", fmt.Errorf("is not a seccomp profile: %w", err)
	}
	if dec.More() {
		return nil, "", errors.New("contains more than one JSON value")
	}
	return profile, unknown, nil
}

// evaluate returns what a profile is for a process with these capabilities on this machine.
func (p *profileFile) evaluate(m Machine, caps []string) (*specs.LinuxSeccomp, error) {
	out := p.LinuxSeccomp
	out.Syscalls = nil
	if len(p.ArchMap) > 0 {
		if len(p.Architectures) > 0 {
			return nil, errors.New("has both architectures and archMap; remove one of them")
		}
		for _, a := range p.ArchMap {
			if a.Architecture == archNames[runtime.GOARCH].profile {
				out.Architectures = append([]specs.Arch{a.Architecture}, a.SubArchitectures...)
			}
		}
	}
	if p.DefaultErrno != "" && p.DefaultErrnoRet == nil {
		return nil, errors.New("has defaultErrno, which cribox does not read; set defaultErrnoRet to the number")
	}
	for i, rule := range p.Syscalls {
		switch {
		case rule.Errno != "" && rule.ErrnoRet == nil:
			return nil, fmt.Errorf("has errno in rule %d, which cribox does not read; set errnoRet to the number", i)
		case rule.Name != "" && len(rule.Names) > 0:
			return nil, fmt.Errorf("has both name and names in rule %d; remove one of them", i)
		case rule.Name == "" && len(rule.Names) == 0:
			return nil, fmt.Errorf("has no names in rule %d, so the rule would have no effect", i)
		case rule.Name != "":
			rule.Names = []string{rule.Name}
		}
		applies, err := rule.applies(m, caps)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
		if applies {
			out.Syscalls = append(out.Syscalls, rule.LinuxSyscall)
		}
	}
	return &out, nil
}

// applies: everything that is included must be there, nothing that is excluded may be.
func (r *fileRule) applies(m Machine, caps []string) (bool, error) {
	arch := archNames[runtime.GOARCH].filter
	has := func(name string) bool { return slices.Contains(caps, capability.Name(name)) }
	in, out := r.Includes, r.Excludes
	new, err := kernelIsNew(m, in.MinKernel, true)
	if err != nil {
		return false, err
	}
	tooNew, err := kernelIsNew(m, out.MinKernel, false)
	if err != nil {
		return false, err
	}
	switch {
	case !new, tooNew:
		return false, nil
	case len(in.Arches) > 0 && !slices.Contains(in.Arches, arch), slices.Contains(out.Arches, arch):
		return false, nil
	case slices.ContainsFunc(out.Caps, has):
		return false, nil
	}
	return !slices.ContainsFunc(in.Caps, func(name string) bool { return !has(name) }), nil
}

// kernelIsNew compares the kernel with a version such as 4.8; without one it returns unset.
func kernelIsNew(m Machine, version string, unset bool) (bool, error) {
	if version == "" {
		return unset, nil
	}
	var least [2]int
	if _, err := fmt.Sscanf(version, "%d.%d", &least[0], &least[1]); err != nil {
		return false, fmt.Errorf("minKernel %q is not a version such as 4.8", check.Truncate(version))
	}
	return m.Kernel[0] > least[0] || m.Kernel[0] == least[0] && m.Kernel[1] >= least[1], nil
}
