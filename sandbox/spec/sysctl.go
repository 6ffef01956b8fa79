package spec

import (
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// ipcSysctls belong to the IPC namespace, as all of fs.mqueue does.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
	"kernel.shm_rmid_forced", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
}

var (
	// No slash is left of a name written as a path, but for a dot inside one part (an interface
	// eth0.100): OCI runtimes make a slash of every dot, so such a name cannot be handed to them.
	sysctlForm  = regexp.MustCompile(`^[a-z]+(\.[A-Za-z0-9_-]+)+$`)
	sysctlValue = regexp.MustCompile(`^[A-Za-z0-9_.,:/ \t-]*$`)
)

// sysctlName returns a name with dots. It may be written with slashes, as a path; a dot in a path
// belongs to one part and becomes a slash, as sysctl(8) has it.
func sysctlName(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// sysctlText is a value without the line break at its end that a block of YAML leaves.
func sysctlText(value string) string { return strings.TrimRight(value, " \t\r\n") }

// checkSysctls lets through what belongs to a namespace that the pod has for
// itself. A value holds no character by which any tool could take it for a
// second setting.
func checkSysctls(p *runtimeapi.PodSandboxConfig, _ Host) error {
	const field = "linux.sysctls"
	o := podNamespace(p)
	for asked, value := range p.GetLinux().GetSysctls() {
		name, value := sysctlName(asked), sysctlText(value)
		if len(name) > check.MaxName || !sysctlForm.MatchString(name) {
			return check.Invalid(field, "%q is not the name of a sysctl", check.Truncate(name))
		}
		if len(value) > check.MaxPath || !sysctlValue.MatchString(value) {
			return check.Invalid(field, "%s: bad value %q", name, check.Truncate(value))
		}
		switch {
		case slices.Contains(ipcSysctls, name), strings.HasPrefix(name, "fs.mqueue."):
			if o.GetIpc() == runtimeapi.NamespaceMode_NODE {
				return check.Invalid(field, "%s: the pod uses the IPC namespace of the host", name)
			}
		case strings.HasPrefix(name, "net."):
			if o.GetNetwork() == runtimeapi.NamespaceMode_NODE {
				return check.Invalid(field, "%s: the pod uses the network of the host", name)
			}
		case name == "kernel.domainname":
			if o.GetNetwork() == runtimeapi.NamespaceMode_NODE {
				return check.Invalid(field, "%s: the pod uses the host name of the host", name)
			}
		default:
			return check.Invalid(field, "%s is a setting of the whole machine, not of a namespace of the pod", name)
		}
	}
	return nil
}
