package spec

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// podNamespaces: the pause process makes the namespaces of its pod, except
// user and network, which are there before it. What is the host's is not listed.
func (d *draft) podNamespaces() error {
	o := podNamespace(d.pod.Config)
	if err := d.checkPaths(); err != nil {
		return err
	}
	d.userNamespace()
	d.addNamespace(specs.MountNamespace, "")
	if !d.hostNetwork() {
		d.addNamespace(specs.NetworkNamespace, d.pod.NetNS)
		d.addNamespace(specs.UTSNamespace, "")
	}
	if o.GetIpc() != runtimeapi.NamespaceMode_NODE {
		d.addNamespace(specs.IPCNamespace, "")
	}
	if o.GetPid() != runtimeapi.NamespaceMode_NODE {
		d.addNamespace(specs.PIDNamespace, "")
	}
	return nil
}

// namespaces: user, network, IPC and UTS are always the pod's, PID is the pod's, the
// container's own or another container's. A kind in which the pod uses the
// host's is not listed.
func (d *draft) namespaces() error {
	if d.pod.PauseNS == "" {
		return fmt.Errorf("spec of container %s: pod %s has no pause process", d.c.ID, d.pod.ID)
	}
	if err := d.checkPaths(); err != nil {
		return err
	}
	pod := podNamespace(d.pod.Config)
	d.userNamespace()
	d.addNamespace(specs.MountNamespace, "")
	if d.ownCgroup() {
		d.addNamespace(specs.CgroupNamespace, "")
	}
	if !d.hostNetwork() {
		d.addNamespace(specs.NetworkNamespace, d.pod.NetNS)
		d.addNamespace(specs.UTSNamespace, d.pauseNS("uts"))
	}
	if pod.GetIpc() != runtimeapi.NamespaceMode_NODE {
		d.addNamespace(specs.IPCNamespace, d.pauseNS("ipc"))
	}
	return d.pidNamespace(pod.GetPid())
}

func (d *draft) ownCgroup() bool { return d.host.CgroupV2 && !d.privileged() }

func (d *draft) pidNamespace(pod runtimeapi.NamespaceMode) error {
	switch d.security().GetNamespaceOptions().GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		d.addNamespace(specs.PIDNamespace, "")
	case runtimeapi.NamespaceMode_TARGET:
		if d.c.TargetNS == "" {
			return fmt.Errorf("spec of container %s: its target has no process", d.c.ID)
		}
		d.addNamespace(specs.PIDNamespace, d.c.TargetNS)
	default:
		if pod != runtimeapi.NamespaceMode_NODE {
			d.addNamespace(specs.PIDNamespace, d.pauseNS("pid"))
		}
	}
	return nil
}

// checkPaths: an empty path would be the host's namespace, or a new one.
func (d *draft) checkPaths() error {
	if d.hostNetwork() != (d.pod.NetNS == "") {
		return fmt.Errorf("spec of pod %s: network mode %s with network namespace %q",
			d.pod.ID, podNamespace(d.pod.Config).GetNetwork(), d.pod.NetNS)
	}
	if d.inUserNamespace() != (d.pod.UserNS != "") {
		return fmt.Errorf("spec of pod %s: user namespace %q, asked for: %v", d.pod.ID, d.pod.UserNS, d.inUserNamespace())
	}
	return nil
}

func (d *draft) addNamespace(t specs.LinuxNamespaceType, path string) {
	d.spec.Linux.Namespaces = append(d.spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
}

func (d *draft) pauseNS(kind string) string { return d.pod.PauseNS + "/" + kind }

// checkPodNamespaces knows what a pod can have.
func checkPodNamespaces(p *runtimeapi.PodSandboxConfig, h Host) error {
	const field = "linux.security_context.namespace_options"
	o := podNamespace(p)
	for kind, mode := range map[string]runtimeapi.NamespaceMode{"network": o.GetNetwork(), "ipc": o.GetIpc()} {
		if mode != runtimeapi.NamespaceMode_POD && mode != runtimeapi.NamespaceMode_NODE {
			return check.Invalid(field+"."+kind, "mode %s is not possible for a pod", mode)
		}
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	default:
		return check.Invalid(field+".pid", "mode %s is not possible for a pod", o.GetPid())
	}
	if o.GetTargetId() != "" {
		return check.Invalid(field+".target_id", "is not possible for a pod")
	}
	if err := checkUserNamespace(field+".userns_options", o.GetUsernsOptions()); err != nil {
		return err
	}
	return checkUserNamespacePod(p, h)
}

// checkContainerNamespaces: a container never gets more of the host than its
// pod has. Unset modes read as POD and follow the pod.
func checkContainerNamespaces(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, h Host) error {
	const field = "linux.security_context.namespace_options"
	pod, o := podNamespace(p), c.GetLinux().GetSecurityContext().GetNamespaceOptions()
	for _, k := range []struct {
		kind      string
		mode, pod runtimeapi.NamespaceMode
		allowed   []runtimeapi.NamespaceMode
	}{
		{"network", o.GetNetwork(), pod.GetNetwork(),
			[]runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE}},
		{"ipc", o.GetIpc(), pod.GetIpc(), []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD,
			runtimeapi.NamespaceMode_NODE}},
		{"pid", o.GetPid(), pod.GetPid(), []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD,
			runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET}},
	} {
		if !slices.Contains(k.allowed, k.mode) {
			return check.Invalid(field+"."+k.kind, "mode %s is not possible for a container", k.mode)
		}
		if k.mode == runtimeapi.NamespaceMode_NODE && k.pod != runtimeapi.NamespaceMode_NODE {
			return check.Invalid(field+"."+k.kind, "is NODE although the pod's is %s", k.pod)
		}
	}
	target := o.GetPid() == runtimeapi.NamespaceMode_TARGET
	if target != (o.GetTargetId() != "") {
		return check.Invalid(field+".target_id", "%q cannot be combined with pid mode %s",
			check.Truncate(o.GetTargetId()), o.GetPid())
	}
	if err := checkUserNamespace(field+".userns_options", o.GetUsernsOptions()); err != nil {
		return err
	}
	return checkUserNamespaceContainer(p, o.GetUsernsOptions(), h)
}

// HostNetwork says whether the pod is in the host's network (CRI NamespaceOption.network NODE).
func HostNetwork(p *runtimeapi.PodSandboxConfig) bool {
	return podNamespace(p).GetNetwork() == runtimeapi.NamespaceMode_NODE
}
