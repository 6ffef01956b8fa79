package spec

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Everything in a request that this package refuses, and what containerd does with it.
// TestEveryRefusal runs each row, and demands a row for every refusal that stands in the source.
// The rule is: what containerd runs, runs, unless that is dangerous. docs/refusals.md tells users
// of those that containerd runs.

// What containerd does with an input.
type peer string

const (
	same  peer = "refuses it too"
	late  peer = "takes it, and its OCI runtime or the kernel fails at the start"
	runs  peer = "runs it"
	blind peer = "runs it as if it were not there"
)

// Why an input that containerd runs is refused here.
const (
	lessThanAsked = "the container would be less confined than was asked, and nobody would know"
	moreOfHost    = "it gives a part of the host that was not asked for, or that changes its meaning"
	lines         = "a line break or a control character makes two lines or orders of one"
	noMeaning     = "nobody can mean it, and no tool sends it"
	ambiguous     = "the request says two things"
	amplifies     = "a small request would cost the node much"
)

type refusal struct {
	name    string
	change  func(h *Host, p *Pod, c *Container)
	want    string // in the error
	peer    peer
	why     string // for what containerd runs
	machine bool   // it is the machine that lacks something: ErrFailedPrecondition
	ask     func() error
}

func ofPod(change func(*runtimeapi.PodSandboxConfig)) func(*Host, *Pod, *Container) {
	return func(_ *Host, p *Pod, _ *Container) { change(p.Config) }
}

func ofContainer(change func(*runtimeapi.ContainerConfig)) func(*Host, *Pod, *Container) {
	return func(_ *Host, _ *Pod, c *Container) { change(c.Config) }
}

func ofMount(m *runtimeapi.Mount) func(*Host, *Pod, *Container) {
	return func(_ *Host, _ *Pod, c *Container) {
		if m.ContainerPath == "" {
			m.ContainerPath = "/v"
		}
		c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{m}, []Mount{{Source: "/v"}}
	}
}

func ofFigures(f *figures) func(*Host, *Pod, *Container) {
	return ofContainer(func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = f })
}

func ofSecurity(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*Host, *Pod, *Container) {
	return ofContainer(func(c *runtimeapi.ContainerConfig) { change(c.Linux.SecurityContext) })
}

func ofPodSecurity(change func(*runtimeapi.LinuxSandboxSecurityContext)) func(*Host, *Pod, *Container) {
	return ofPod(func(p *runtimeapi.PodSandboxConfig) { change(p.Linux.SecurityContext) })
}

func ofNamespaces(o *runtimeapi.NamespaceOption) func(*Host, *Pod, *Container) {
	return ofSecurity(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NamespaceOptions = o })
}

func ofPodNamespaces(o *runtimeapi.NamespaceOption) func(*Host, *Pod, *Container) {
	return ofPodSecurity(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.NamespaceOptions = o })
}

func ofUserNS(u *runtimeapi.UserNamespace) func(*Host, *Pod, *Container) {
	return ofPodNamespaces(&runtimeapi.NamespaceOption{UsernsOptions: u})
}

func ofSysctl(name, value string) func(*Host, *Pod, *Container) {
	return ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{name: value} })
}

func ofPort(m ...*runtimeapi.PortMapping) func(*Host, *Pod, *Container) {
	return ofPod(func(p *runtimeapi.PodSandboxConfig) { p.PortMappings = m })
}

func ofDNS(d *runtimeapi.DNSConfig) func(*Host, *Pod, *Container) {
	return ofPod(func(p *runtimeapi.PodSandboxConfig) { p.DnsConfig = d })
}

func ofDevice(d *runtimeapi.Device) func(*Host, *Pod, *Container) {
	return ofContainer(func(c *runtimeapi.ContainerConfig) { c.Devices = []*runtimeapi.Device{d} })
}

func ofEnv(key, value string) func(*Host, *Pod, *Container) {
	return ofContainer(func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: key, Value: []byte(value)}}
	})
}

func ofSeccomp(p *runtimeapi.SecurityProfile, file string) func(*Host, *Pod, *Container) {
	return func(_ *Host, _ *Pod, c *Container) { c.security().Seccomp, c.SeccompProfile = p, []byte(file) }
}

func seccompText(file string) func(*Host, *Pod, *Container) {
	return ofSeccomp(&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p"}, file)
}

func ids(list ...*runtimeapi.IDMapping) *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Uids: list, Gids: list}
}

var (
	host  = runtimeapi.NamespaceMode_NODE
	image = &runtimeapi.ImageSpec{Image: "sha256:1"}
)

var podRefusals = []refusal{
	{name: "no config", want: "config: is missing", peer: same, ask: func() error { return ValidatePod(nil, aHost()) }},
	{name: "no metadata", want: "metadata: is missing", peer: same, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata = nil })},
	{name: "no name", want: "metadata.name: is empty", peer: runs, why: noMeaning, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Name = "" })},
	{name: "a name of 300 bytes", want: "the limit is 253", peer: runs, why: noMeaning,
		change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Name = strings.Repeat("x", 300) })},
	{name: "a name of two lines", want: "control character", peer: runs, why: lines, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Name = "a\nb" })},
	{name: "a name that is a path", want: "part of a path", peer: runs, why: moreOfHost, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Uid = "../x" })},
	{name: "a host name of two words", want: "is not a host name", peer: runs, why: lines, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Hostname = "a b" })},
	{name: "logs up", want: "contains \"..\"", peer: runs, why: moreOfHost, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = "/a/../b" })},
	{name: "logs in a long folder", want: "limit of a file name is 255", peer: late, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = "/" + strings.Repeat("x", 256) })},
	{name: "relative logs", want: "is not an absolute path", peer: runs, why: noMeaning, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = "logs" })},
	{name: "a megabyte of DNS names", want: "resolv.conf of more than", peer: runs, why: amplifies,
		change: ofDNS(&runtimeapi.DNSConfig{Searches: slices.Repeat([]string{strings.Repeat("x", 200)}, 5000)})},
	{name: "a DNS name of two lines", want: "has more than one line", peer: runs, why: lines, change: ofDNS(&runtimeapi.DNSConfig{Options: []string{"a\nb"}})},
	{name: "port of no protocol", want: "port_mappings.protocol", peer: late, change: ofPort(&runtimeapi.PortMapping{Protocol: 9})},
	{name: "host port too large", want: "is not between 0 and 65535", peer: late, change: ofPort(&runtimeapi.PortMapping{HostPort: 65536, ContainerPort: 1})},
	{name: "container port too large", want: "is not between 1 and 65535", peer: late, change: ofPort(&runtimeapi.PortMapping{HostPort: 1, ContainerPort: 65536})},
	{name: "host ip is a name", want: "port_mappings.host_ip", peer: blind, why: "the port would not be there", change: ofPort(&runtimeapi.PortMapping{HostPort: 1, ContainerPort: 1, HostIp: "localhost"})},
	{name: "a host port twice at one address", want: "occurs twice", peer: runs, why: ambiguous + "; the second mapping would never be reached",
		change: ofPort(&runtimeapi.PortMapping{HostPort: 1, ContainerPort: 1}, &runtimeapi.PortMapping{HostPort: 1, ContainerPort: 2})},
	{name: "cgroup with a blank", want: "is not the name of a cgroup", peer: runs, why: lines, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Linux.CgroupParent = "/a b" })},
	{name: "no slice, with systemd", want: "is not a systemd slice", peer: late, change: func(h *Host, p *Pod, _ *Container) {
		h.SystemdCgroup, p.Config.Linux.CgroupParent = true, "/kubepods"
	}},
	{name: "group without user", want: "run_as_group", peer: same, change: ofPodSecurity(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{} })},
	{name: "negative figures", want: "contains a negative number", peer: blind, why: noMeaning, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Linux.Overhead = &figures{CpuShares: -1} })},
	{name: "windows", want: "windows: is set", peer: blind, why: noMeaning, change: ofPod(func(p *runtimeapi.PodSandboxConfig) { p.Windows = &runtimeapi.WindowsPodSandboxConfig{} })},

	{name: "sysctl of the host", want: "is a setting of the whole machine", peer: late, change: ofSysctl("vm.swappiness", "1")},
	{name: "sysctl in capitals", want: "is not the name of a sysctl", peer: late, change: ofSysctl("NET.ipv4", "1")},
	{name: "sysctl of two lines", want: "bad value", peer: runs, why: lines, change: ofSysctl("net.ipv4.ip_forward", "1\n2")},
	{name: "sysctl of the host's IPC", want: "uses the IPC namespace of the host", peer: late, change: func(_ *Host, p *Pod, _ *Container) {
		p.Config.Linux.SecurityContext.NamespaceOptions.Ipc, p.Config.Linux.Sysctls = host, map[string]string{"kernel.shmmax": "1"}
	}},
	{name: "sysctl of the host's network", want: "uses the network of the host", peer: late, change: func(_ *Host, p *Pod, _ *Container) {
		p.Config.Linux.SecurityContext.NamespaceOptions.Network, p.Config.Linux.Sysctls = host, map[string]string{"net.core.somaxconn": "1"}
	}},
	{name: "domain name of the host", want: "uses the host name of the host", peer: late, change: func(_ *Host, p *Pod, _ *Container) {
		p.Config.Linux.SecurityContext.NamespaceOptions.Network, p.Config.Linux.Sysctls = host, map[string]string{"kernel.domainname": "x"}
	}},

	{name: "network mode of a container", want: "network: mode CONTAINER is not possible for a pod", peer: blind, why: noMeaning,
		change: ofPodNamespaces(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER})},
	{name: "pid mode TARGET", want: "pid: mode TARGET is not possible for a pod", peer: blind, why: noMeaning, change: ofPodNamespaces(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET})},
	{name: "a target of a pod", want: "target_id: is not possible for a pod", peer: blind, why: noMeaning, change: ofPodNamespaces(&runtimeapi.NamespaceOption{TargetId: "x"})},
	{name: "ids for mode NODE", want: "mode NODE cannot have mappings", peer: same,
		change: ofUserNS(&runtimeapi.UserNamespace{Mode: host, Uids: aUserNamespace().Uids})},
	{name: "two ranges of ids", want: "exactly one is supported", peer: same,
		change: ofUserNS(ids(&runtimeapi.IDMapping{HostId: 1000, Length: 10}, &runtimeapi.IDMapping{HostId: 2000, ContainerId: 10, Length: 10}))},
	{name: "root is not mapped", want: "id 0 of the container is not mapped", peer: late, change: ofUserNS(ids(&runtimeapi.IDMapping{HostId: 1000, ContainerId: 1, Length: 10}))},
	{name: "user namespace of a target", want: "is not a mode of user namespaces", peer: same, change: ofUserNS(&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET})},
	{name: "user namespace in the host's PIDs", want: "host's PID namespace cannot", peer: late,
		change: ofPodNamespaces(&runtimeapi.NamespaceOption{Pid: host, UsernsOptions: aUserNamespace()})},
	{name: "user namespace in the host's IPC", want: "host's IPC namespace cannot", peer: late,
		change: ofPodNamespaces(&runtimeapi.NamespaceOption{Ipc: host, UsernsOptions: aUserNamespace()})},
	{name: "root of the host in a pod", want: "gives the pod root of the host", peer: runs, why: moreOfHost, change: ofUserNS(ids(&runtimeapi.IDMapping{Length: 65536}))},
	{name: "ids that are none", want: "which is not an id", peer: late, change: ofUserNS(ids(&runtimeapi.IDMapping{HostId: 1<<32 - 10, Length: 10}))},
	{name: "ids beyond 32 bits", want: "goes beyond 32 bits", peer: late, change: ofUserNS(ids(&runtimeapi.IDMapping{HostId: 1<<32 - 10, Length: 20}))},
	{name: "an empty range of ids", want: "is empty", peer: same, change: ofUserNS(ids(&runtimeapi.IDMapping{HostId: 1000}))},
	{name: "ranges of ids that overlap", want: "overlaps another", peer: same,
		change: ofUserNS(ids(&runtimeapi.IDMapping{HostId: 1000, Length: 10}, &runtimeapi.IDMapping{HostId: 1005, ContainerId: 50, Length: 10}))},
	{name: "more ranges than the kernel takes", want: "the kernel's limit is 340", peer: same, change: ofUserNS(ids(make([]*runtimeapi.IDMapping, 341)...))},
	{name: "no user namespaces here", want: "cannot make user namespaces", peer: late, machine: true, change: func(h *Host, p *Pod, _ *Container) {
		h.NoUserNamespaces = "none"
		inUserNamespace(p, nil)
	}},
	{name: "user namespace in the host's network, old kernel", want: "so Linux 5.12", peer: late, machine: true,
		change: func(h *Host, p *Pod, _ *Container) {
			h.RecursiveReadOnly = false
			inUserNamespace(p, nil)
			p.Config.Linux.SecurityContext.NamespaceOptions.Network, p.NetNS = host, ""
		}},
}

var containerRefusals = []refusal{
	{name: "no config", want: "config: is missing", peer: same, ask: func() error { return ValidateContainer(aPod().Config, nil, aHost()) }},
	{name: "no sandbox config", want: "sandbox_config: is missing", peer: same, ask: func() error { return ValidateContainer(nil, aContainer().Config, aHost()) }},
	{name: "no metadata", want: "metadata: is missing", peer: same, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil })},
	{name: "no image", want: "image: is missing", peer: same, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.Image = nil })},
	{name: "nothing to run", want: "names no entrypoint and no command", peer: same, change: func(_ *Host, _ *Pod, c *Container) { c.Image.Config.Entrypoint, c.Image.Config.Cmd = nil, nil }},
	{name: "an empty command", want: "begins with an empty string", peer: late, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.Command = []string{""} })},
	{name: "NUL in an argument", want: "item 0 contains a NUL byte", peer: late, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.Args = []string{"\x00"} })},
	{name: "an argument of 128 KiB", want: "bytes long; the kernel's limit is 131071", peer: late, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.Args = []string{strings.Repeat("x", 128<<10)} })},
	{name: "3 MiB of arguments", want: "bytes together; the kernel's limit is", peer: late,
		change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.Args = slices.Repeat([]string{strings.Repeat("x", 64<<10)}, 48) })},
	{name: "relative working folder", want: "working_dir: \"x\" is not an absolute path", peer: late, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "x" })},
	{name: "working folder below /proc", want: "is below /proc", peer: runs, why: moreOfHost + ": a descriptor of the OCI runtime",
		change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/proc/self/fd/7" })},
	{name: "variable without a name", want: "is not the name of a variable", peer: runs, why: noMeaning, change: ofEnv("a=b", "x")},
	{name: "NUL in a variable", want: "of a contains a NUL byte", peer: late, change: ofEnv("a", "\x00")},
	{name: "NUL in a variable of the image", want: "image.env", peer: late, change: func(_ *Host, _ *Pod, c *Container) { c.Image.Config.Env = []string{"a=\x00"} }},
	{name: "stop signal is none", want: "stop_signal", peer: late, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.StopSignal = 99 })},
	{name: "log is a folder", want: "is not a file below the log directory", peer: runs, why: noMeaning, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.LogPath = "a/" })},
	{name: "privileged, the request is not", want: "privileged", peer: same, change: ofSecurity(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })},

	{name: "mount at the root", want: "at the root of the container", peer: late, change: ofMount(&runtimeapi.Mount{ContainerPath: "/", HostPath: "/a"})},
	{name: "mount below /proc", want: "below /proc only at", peer: late, change: ofMount(&runtimeapi.Mount{ContainerPath: "/proc/sys", HostPath: "/a"})},
	{name: "mount over /proc", want: "only a proc file system", peer: late, change: ofMount(&runtimeapi.Mount{ContainerPath: "/proc", HostPath: "/a"})},
	{name: "host path of a process", want: "belongs to a process", peer: runs, why: moreOfHost, change: ofMount(&runtimeapi.Mount{HostPath: "/proc/self/root"})},
	{name: "host path and image", want: "is set together with an image", peer: same, change: ofMount(&runtimeapi.Mount{HostPath: "/a", Image: image})},
	{name: "absolute sub path", want: "mounts.image_sub_path", peer: runs, why: noMeaning, change: ofMount(&runtimeapi.Mount{Image: image, ImageSubPath: "/a"})},
	{name: "propagation is none", want: "mounts.propagation: 9 is unknown", peer: runs, why: noMeaning, change: ofMount(&runtimeapi.Mount{HostPath: "/a", Propagation: 9})},
	{name: "propagation of an image", want: "is not possible for an image", peer: runs, why: noMeaning, change: ofMount(&runtimeapi.Mount{Image: image, Propagation: 1})},
	{name: "an image to be written", want: "mounts.readonly", peer: same, change: ofMount(&runtimeapi.Mount{Image: image})},
	{name: "recursive, not read-only", want: "is set without readonly", peer: same, change: ofMount(&runtimeapi.Mount{HostPath: "/a", RecursiveReadOnly: true})},
	{name: "recursive read-only that propagates", want: "is set with propagation", peer: same, change: ofMount(&runtimeapi.Mount{HostPath: "/a", Readonly: true, RecursiveReadOnly: true, Propagation: 1})},
	{name: "no recursive read-only here", want: "RROUnsupported", peer: same, machine: true, change: func(h *Host, p *Pod, c *Container) {
		h.RecursiveReadOnly = false
		ofMount(&runtimeapi.Mount{HostPath: "/a", Readonly: true, RecursiveReadOnly: true})(h, p, c)
	}},
	{name: "mount option", want: "mounts.mount_options", peer: blind, why: "an option that is not known here would be left out, or give devices and setuid files", change: ofMount(&runtimeapi.Mount{HostPath: "/a", MountOptions: []string{"dev"}})},
	{name: "a private mount as slave", want: "is on a private mount", peer: same, machine: true, change: ofMount(&runtimeapi.Mount{HostPath: "/a", Propagation: 1})},
	{name: "a private mount as shared", want: "is not on a shared mount", peer: same, machine: true, change: ofMount(&runtimeapi.Mount{HostPath: "/a", Propagation: 2})},
	{name: "ids of users alone", want: "must be set together", peer: late, change: ofMount(&runtimeapi.Mount{HostPath: "/a", UidMappings: aUserNamespace().Uids})},
	{name: "ids without a user namespace", want: "no user namespace", peer: runs, why: noMeaning, change: ofMount(&runtimeapi.Mount{HostPath: "/a", UidMappings: aUserNamespace().Uids, GidMappings: aUserNamespace().Gids})},
	{name: "other ids of an image", want: "are not those of the pod", peer: runs, why: ambiguous, change: func(h *Host, p *Pod, c *Container) {
		inUserNamespace(p, c)
		other := []*runtimeapi.IDMapping{{HostId: 7, Length: 7}}
		ofMount(&runtimeapi.Mount{Image: image, Readonly: true, UidMappings: other, GidMappings: other})(h, p, c)
	}},

	{name: "resolved device without permissions", want: "devices.permissions: is empty", peer: runs, why: noMeaning, change: func(_ *Host, _ *Pod, c *Container) {
		c.Devices = []Device{{ContainerPath: "/dev/a", Type: "c"}}
	}},
	{name: "permissions of a device", want: "a letter other than r, w and m", peer: runs, why: "the device is there and cannot be opened: nobody means it", change: ofDevice(&runtimeapi.Device{HostPath: "/dev/a", ContainerPath: "/dev/a", Permissions: "x"})},
	{name: "CDI device without a kind", want: "is not VENDOR/CLASS=NAME", peer: same, change: ofContainer(func(c *runtimeapi.ContainerConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "gpu"}} })},
	{name: "capability beyond the daemon's", want: "cribox cannot grant CAP_SYS_TIME", peer: late, machine: true, change: func(h *Host, _ *Pod, c *Container) {
		h.Grantable, c.security().Capabilities = []string{"CAP_CHOWN"}, &runtimeapi.Capability{AddCapabilities: []string{"SYS_TIME"}}
	}},

	{name: "network mode of a container", want: "mode CONTAINER is not possible for a container", peer: blind, why: noMeaning, change: ofNamespaces(&runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER})},
	{name: "the host's network in another pod", want: "is NODE although the pod's", peer: blind, why: "it would be the pod's, and not what was asked", change: ofNamespaces(&runtimeapi.NamespaceOption{Network: host})},
	{name: "a target without the mode", want: "cannot be combined with pid mode", peer: blind, why: ambiguous, change: ofNamespaces(&runtimeapi.NamespaceOption{TargetId: "x"})},
	{name: "a user namespace in another pod", want: "but the pod's mode is not", peer: same, change: ofNamespaces(&runtimeapi.NamespaceOption{UsernsOptions: aUserNamespace()})},
	{name: "other ids than the pod", want: "the mappings are not those of the pod", peer: same, change: func(_ *Host, p *Pod, c *Container) {
		inUserNamespace(p, c)
		c.security().NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: ids(&runtimeapi.IDMapping{HostId: 7, Length: 7})}
	}},
	{name: "a user that is not mapped", want: "has the users", peer: late, change: func(_ *Host, p *Pod, c *Container) {
		inUserNamespace(p, c)
		c.User.UID = 1 << 30
	}},
	{name: "a group that is not mapped", want: "has the groups", peer: late, change: func(_ *Host, p *Pod, c *Container) {
		inUserNamespace(p, c)
		c.User.AdditionalGIDs = []uint32{1 << 30}
	}},

	{name: "seccomp of an odd path", want: "is not a clean path", peer: runs, why: noMeaning, change: ofSeccomp(&runtimeapi.SecurityProfile{ProfileType: 2, LocalhostRef: "/a//b"}, "")},
	{name: "seccomp in an odd word", want: "unknown profile", peer: same, change: ofSecurity(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.SeccompProfilePath = "none" //nolint:staticcheck // older kubelets
	})},
	{name: "a profile beside RuntimeDefault", want: "is set although the profile type", peer: blind, why: ambiguous, change: ofSeccomp(&runtimeapi.SecurityProfile{LocalhostRef: "/a"}, "")},
	{name: "Localhost without a profile", want: "is empty although the profile type", peer: same, change: ofSeccomp(&runtimeapi.SecurityProfile{ProfileType: 2}, "")},
	{name: "a type of profile that is none", want: "profile_type: 9 is unknown", peer: same, change: ofSeccomp(&runtimeapi.SecurityProfile{ProfileType: 9}, "")},
	{name: "no seccomp here", want: "has no seccomp", peer: same, machine: true, change: func(h *Host, _ *Pod, c *Container) {
		h.Seccomp, c.security().Seccomp = false, &runtimeapi.SecurityProfile{}
	}},
	{name: "an empty profile", want: "/p is empty", peer: same, change: seccompText("")},
	{name: "a profile of 2 MiB", want: "/p is larger than", peer: runs, why: amplifies, change: seccompText(strings.Repeat(" ", 2<<20))},
	{name: "a profile that is no JSON", want: "is not a seccomp profile", peer: same, change: seccompText("profile")},
	{name: "two profiles in a file", want: "more than one JSON value", peer: same, change: seccompText("{} {}")},
	{name: "a profile without an action", want: "unknown default action", peer: late, change: seccompText("{}")},
	{name: "an action that is none", want: "unknown action", peer: late, change: seccompText(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "DENY"}]}`)},
	{name: "both lists of architectures", want: "both architectures and archMap", peer: blind, why: ambiguous + "; Docker refuses it",
		change: seccompText(`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{}]}`)},
	{name: "an error by its word alone", want: "has defaultErrno", peer: blind, why: lessThanAsked, change: seccompText(`{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS"}`)},
	{name: "an error of a rule by its word alone", want: "has errno in rule 0", peer: blind, why: lessThanAsked,
		change: seccompText(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS"}]}`)},
	{name: "name and names", want: "both name and names", peer: blind, why: ambiguous + "; Docker refuses it",
		change: seccompText(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "b", "names": ["a"], "action": "SCMP_ACT_ERRNO"}]}`)},
	{name: "a rule for nothing", want: "has no names in rule 0", peer: blind, why: lessThanAsked, change: seccompText(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"nams": ["a"], "action": "SCMP_ACT_ERRNO"}]}`)},
	{name: "a version that is none", want: "is not a version such as 4.8", peer: blind, why: lessThanAsked,
		change: seccompText(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "new"}}]}`)},
	{name: "no AppArmor here", want: "has no AppArmor", peer: same, machine: true, change: ofSecurity(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Apparmor = &runtimeapi.SecurityProfile{} })},
	{name: "no default AppArmor profile", want: "default profile is not loaded", peer: same, machine: true, change: func(h *Host, _ *Pod, c *Container) {
		h.AppArmor, c.security().Apparmor = true, &runtimeapi.SecurityProfile{}
	}},
	{name: "a part of an SELinux context", want: "is not valid in an SELinux context", peer: late, change: ofSecurity(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "a:b"}
	})},
	{name: "an SELinux level", want: "is not a level", peer: same, change: ofSecurity(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "top"}
	})},
	{name: "SELinux is off in the configuration", want: "SELinux is off", peer: blind, why: lessThanAsked + " (key selinux)", machine: true, change: func(h *Host, _ *Pod, c *Container) {
		h.SELinuxOff, c.security().SelinuxOptions = true, &runtimeapi.SELinuxOption{Type: "t"}
	}},
	{name: "a pod without labels", want: "the pod has no SELinux labels", peer: blind, why: lessThanAsked, machine: true, change: func(h *Host, _ *Pod, c *Container) {
		h.SELinux, c.security().SelinuxOptions = true, &runtimeapi.SELinuxOption{Type: "t"}
	}},

	{name: "negative shares", want: "resources.cpu_shares", peer: late, change: ofFigures(&figures{CpuShares: -1})},
	{name: "a short period", want: "resources.cpu_period", peer: late, change: ofFigures(&figures{CpuPeriod: 1})},
	{name: "a small quota", want: "resources.cpu_quota", peer: late, change: ofFigures(&figures{CpuQuota: 1})},
	{name: "a kilobyte of memory", want: "no process starts with less", peer: late, change: ofFigures(&figures{MemoryLimitInBytes: 1 << 10})},
	{name: "negative swap", want: "resources.memory_swap_limit_in_bytes: -2 is negative", peer: late, change: ofFigures(&figures{MemorySwapLimitInBytes: -2})},
	{name: "swap below memory", want: "is below the memory limit", peer: late, change: ofFigures(&figures{MemoryLimitInBytes: 4 << 20, MemorySwapLimitInBytes: 2 << 20})},
	{name: "oom score", want: "is not between -1000 and 1000", peer: late, change: ofFigures(&figures{OomScoreAdj: 2000})},
	{name: "half a list of processors", want: "is not a list such as", peer: late, change: ofFigures(&figures{CpusetCpus: "1-"})},
	{name: "a processor beyond the machine", want: "is not in 0-7", peer: late, change: ofFigures(&figures{CpusetCpus: "999"})},
	{name: "no page size", want: "is not a page size", peer: late, change: ofFigures(&figures{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB"}}})},
	{name: "a page size twice", want: "2MB occurs twice", peer: runs, why: ambiguous, change: ofFigures(&figures{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "2MB"}}})},
	{name: "a page size that the machine lacks", want: "this machine has no pages", peer: late, change: ofFigures(&figures{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "16MB", Limit: 1}}})},
	{name: "a file of the cgroup hierarchy", want: "is not a limit of", peer: runs, why: moreOfHost, change: ofFigures(&figures{Unified: map[string]string{"cgroup.kill": "1"}})},
	{name: "a cgroup value that is no number", want: "is not a valid value of", peer: late, change: ofFigures(&figures{Unified: map[string]string{"memory.high": "lots"}})},
	{name: "a cgroup value of two lines", want: "contains a control character or is too long", peer: runs, why: lines, change: ofFigures(&figures{Unified: map[string]string{"memory.high": "1\n2"}})},
	{name: "no cgroup v2", want: "does not use cgroup v2", peer: late, machine: true, change: func(h *Host, _ *Pod, c *Container) {
		h.CgroupV2, c.Config.Linux.Resources = false, &figures{Unified: map[string]string{"memory.high": "max"}}
	}},

	{name: "an empty exec", want: "cmd: is empty", peer: late, ask: func() error {
		_, err := execProcess(&specs.Spec{Process: &specs.Process{}}, nil, false)
		return err
	}},
	{name: "exec without a spec", want: "spec without a process", peer: same, ask: func() error { _, err := execProcess(&specs.Spec{}, []string{"a"}, false); return err }},
	{name: "update without a spec", want: "it has no process", peer: same, ask: func() error { _, _, err := Update(aHost(), nil, nil); return err }},
}

// refusalSource is a refusal as it stands in a file.
type refusalSource struct {
	at   string
	text *regexp.Regexp
}

var verb = regexp.MustCompile(`%[a-z]`)

// refusalsIn collects the formats of all errors with a class in some files.
func refusalsIn(t *testing.T, in func(file string) bool) (all []refusalSource) {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*.go", "*/*.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	set := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || !in(name) {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if format, ok := refusalFormat(name, call); ok {
				pattern := verb.ReplaceAllString(regexp.QuoteMeta(format), `.*`)
				all = append(all, refusalSource{set.Position(call.Pos()).String(), regexp.MustCompile(`(?s)` + pattern)})
			}
			return true
		})
	}
	return all
}

func refusalFormat(file string, call *ast.CallExpr) (string, bool) {
	literal := func(e ast.Expr) string {
		l, ok := e.(*ast.BasicLit)
		if !ok {
			return ""
		}
		s, _ := strconv.Unquote(l.Value)
		return s
	}
	switch f := call.Fun.(type) {
	case *ast.Ident:
		if f.Name != "Invalid" { // in package check
			return "", false
		}
		return "%s" + literal(call.Args[1]), true
	case *ast.SelectorExpr:
		if f.Sel.Name == "Invalid" {
			if literal(call.Args[1]) == "%s %v" { // the words of seccomp/docker.go
				return "", false
			}
			return literal(call.Args[0]) + "%s" + literal(call.Args[1]), true
		}
		if f.Sel.Name != "Errorf" && f.Sel.Name != "New" {
			return "", false
		}
		format := literal(call.Args[0])
		if file == "seccomp/docker.go" {
			return format, format != "rule %d: %w"
		}
		classed := slices.ContainsFunc(call.Args, func(e ast.Expr) bool {
			s, ok := e.(*ast.SelectorExpr)
			return ok && strings.HasPrefix(s.Sel.Name, "Err")
		})
		return format, classed && format != "%s: %s: %w" // Invalid itself
	}
	return "", false
}

func (r *refusal) try() error {
	if r.ask != nil {
		return r.ask()
	}
	h, p, c := aHost(), aPod(), aContainer()
	r.change(&h, &p, &c)
	if _, _, err := ForPod(h, p); err != nil {
		return err
	}
	_, _, err := ForContainer(h, p, c)
	return err
}

func TestEveryRefusal(t *testing.T) {
	sources := refusalsIn(t, func(file string) bool { return file != "users/users.go" }) // which has a table of its own
	hit := make([]bool, len(sources))
	for _, r := range slices.Concat(podRefusals, containerRefusals) {
		err := r.try()
		if err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("%s: %v, want %q", r.name, err, r.want)
			continue
		}
		if is := errdefs.IsFailedPrecondition(err); is != r.machine || !is && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: the class of %v", r.name, err)
		}
		if accepted := r.peer == runs || r.peer == blind; accepted != (r.why != "") {
			t.Errorf("%s: containerd %s, and the reason is %q", r.name, r.peer, r.why)
		}
		for i, s := range sources {
			hit[i] = hit[i] || s.text.MatchString(err.Error())
		}
	}
	for i, s := range sources {
		if !hit[i] {
			t.Errorf("%s: no row has this refusal, %s. Does containerd run such a request? Then it should run, unless that is dangerous", s.at, s.text)
		}
	}
}
