package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/limits"
)

// pauseOOMScoreAdj makes the kernel take every container of the node before a
// pause process, and kubelet (-999) after it.
const pauseOOMScoreAdj = -998

// podProcess has no privilege to lose. The user of the request is not used:
// it is the user of the pod's containers, and they could signal a pause
// process of their own user.
func (d *draft) podProcess() error {
	d.spec.Process = &specs.Process{
		Args:            []string{"/pause"},
		Cwd:             "/",
		Env:             []string{"PATH=/", "HOME=/"},
		User:            d.pauseUser(),
		Capabilities:    &specs.LinuxCapabilities{},
		NoNewPrivileges: true,
		OOMScoreAdj:     new(d.clampOOM("oom_score_adj", pauseOOMScoreAdj)),
	}
	return nil
}

// pauseUser is the last user of a user namespace that has fewer.
func (d *draft) pauseUser() specs.User {
	uid, gid := uint32(PauseUser), uint32(PauseUser)
	if uids, gids, ok := UserNamespace(d.pod.Config); ok {
		uid, gid = min(uid, uids.Length-1), min(gid, gids.Length-1)
	}
	return specs.User{UID: uid, GID: gid, AdditionalGids: []uint32{gid}}
}

func (d *draft) podRoot() error {
	d.spec.Root = &specs.Root{Path: d.pod.Rootfs, Readonly: true}
	return nil
}

// podHostname sets what the containers will see. A pod on the host's network
// keeps the host's name, and the UTS namespace with it.
func (d *draft) podHostname() error {
	if !d.hostNetwork() {
		d.spec.Hostname = d.pod.Hostname
	}
	return nil
}

// podMounts are what an OCI runtime itself needs to start a process. In a user
// namespace it sets the pod's sysctls through this /proc and no other.
func (d *draft) podMounts() error {
	proc := []string{"nosuid", "noexec", "nodev"}
	if !d.inUserNamespace() {
		proc = append(proc, "ro")
	}
	d.spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: proc},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
	}
	return nil
}

// podSysctls: what is asked for, and for a pod with a network of its own that low ports and ping
// are for every user in it, where the configuration has them so. Groups of a user namespace are
// few; there ping keeps the kernel's setting.
func (d *draft) podSysctls() error {
	set := map[string]string{}
	if !d.hostNetwork() && d.host.UnprivilegedPorts {
		set["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	if !d.hostNetwork() && d.host.UnprivilegedPing && !d.inUserNamespace() {
		set["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for name, value := range d.pod.Config.GetLinux().GetSysctls() {
		set[sysctlName(name)] = sysctlText(value)
	}
	if len(set) > 0 {
		d.spec.Linux.Sysctl = set
	}
	return nil
}

func (d *draft) podResources() error {
	d.spec.Linux.Resources = &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{denyAll()},
		CPU:     &specs.LinuxCPU{Shares: new(uint64(limits.MinShares))},
	}
	return nil
}

func (d *draft) hostNetwork() bool {
	return podNamespace(d.pod.Config).GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func podNamespace(p *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return p.GetLinux().GetSecurityContext().GetNamespaceOptions()
}
