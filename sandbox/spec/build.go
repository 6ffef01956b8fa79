package spec

import (
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// ociVersion is the oldest version of the runtime spec that has all we use.
const ociVersion = "1.1.0"

// draft is a spec in the making. Steps write to spec and notes and read the rest.
type draft struct {
	host  Host
	pod   Pod
	c     Container
	spec  *specs.Spec
	notes []check.Note
}

// step adds one thing to the spec.
type step func(*draft) error

// podSteps make the spec of the pause process. Seccomp comes after the
// capabilities, on which the default profile depends.
var podSteps = []step{
	(*draft).podProcess,
	(*draft).podRoot,
	(*draft).podNamespaces,
	(*draft).podHostname,
	(*draft).podMounts,
	(*draft).podSysctls,
	(*draft).podDNS,
	(*draft).podSeccomp,
	(*draft).podAppArmor,
	(*draft).podSELinux,
	(*draft).podResources,
	(*draft).cgroupsPath,
	(*draft).rlimits,
	(*draft).podAnnotations,
}

// containerSteps make the spec of a container, in the same order.
var containerSteps = []step{
	(*draft).process,
	(*draft).environment,
	(*draft).user,
	(*draft).capabilities,
	(*draft).root,
	(*draft).namespaces,
	(*draft).mounts,
	(*draft).maskedPaths,
	(*draft).devices,
	(*draft).seccomp,
	(*draft).appArmor,
	(*draft).seLinux,
	(*draft).resources,
	(*draft).cgroupsPath,
	(*draft).oomScoreAdj,
	(*draft).rlimits,
	(*draft).annotations,
}

// ForPod returns the spec of the pod's pause process: it owns the namespaces
// that the pod's containers join, and nothing else.
func ForPod(h Host, p Pod) (*specs.Spec, []check.Note, error) {
	if err := ValidatePod(p.Config, h); err != nil {
		return nil, nil, err
	}
	return build(&draft{host: h, pod: p}, podSteps)
}

// ForContainer returns the spec of a container in a running pod.
func ForContainer(h Host, p Pod, c Container) (*specs.Spec, []check.Note, error) {
	if err := ValidateContainer(p.Config, c.Config, h); err != nil {
		return nil, nil, err
	}
	if len(c.Mounts) != len(c.Config.GetMounts()) {
		return nil, nil, fmt.Errorf("spec of container %s: %d mounts asked for, %d resolved",
			c.ID, len(c.Config.GetMounts()), len(c.Mounts))
	}
	return build(&draft{host: h, pod: p, c: c}, containerSteps)
}

func build(d *draft, steps []step) (*specs.Spec, []check.Note, error) {
	d.spec = &specs.Spec{
		Version: ociVersion,
		Process: &specs.Process{},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
	}
	for _, s := range steps {
		if err := s(d); err != nil {
			return nil, nil, err
		}
	}
	return d.spec, d.notes, nil
}

func (d *draft) note(field, format string, args ...any) {
	d.notes = append(d.notes, check.Notef(field, format, args...))
}

// id of what is being made: the container, or the pod while that is made.
func (d *draft) id() string {
	if d.c.Config == nil {
		return d.pod.ID
	}
	return d.c.ID
}

func (d *draft) security() *runtimeapi.LinuxContainerSecurityContext {
	return d.c.Config.GetLinux().GetSecurityContext()
}

func (d *draft) privileged() bool { return d.security().GetPrivileged() }

func (d *draft) podSecurity() *runtimeapi.LinuxSandboxSecurityContext {
	return d.pod.Config.GetLinux().GetSecurityContext()
}

// clone is a deep copy of a value that consists of what JSON has.
func clone[T any](v *T) *T {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // a type of the OCI runtime spec, and JSON has all of its values
	}
	out := new(T)
	if err := json.Unmarshal(data, out); err != nil {
		panic(err)
	}
	return out
}
