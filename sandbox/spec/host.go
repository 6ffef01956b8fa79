package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/sandbox/spec/limits"
	"github.com/cribox/cribox/sandbox/spec/seccomp"
)

// Host is what the caller found out about this machine.
type Host struct {
	// CgroupOptions are those of this machine's cgroup v2 that every mount of it sets anew for all:
	// nsdelegate, memory_recursiveprot.
	CgroupOptions []string
	// CgroupParent of pods that name none: a path, "" means /cribox, or with
	// SystemdCgroup the name of a slice, "" means system.slice.
	CgroupParent string
	// Capabilities that the kernel knows, "CAP_CHOWN" and so on; see capability.Known.
	Capabilities []string
	// Grantable are those that a container can be given here: the bounding
	// set of the process that runs the OCI runtime. Nil means Capabilities.
	Grantable []string

	// OOMScoreAdjMin is the lowest oom_score_adj that can be set: -1000 with
	// CAP_SYS_RESOURCE, otherwise the value that the OCI runtime inherits.
	OOMScoreAdjMin int
	// Rlimits of every process, see ClampRlimits.
	Rlimits []specs.POSIXRlimit
	// RlimitHard holds, by name ("RLIMIT_NOFILE"), hard limits that cannot be
	// raised. A limit that is not in it may be.
	RlimitHard map[string]uint64
	// StackLimit is the soft limit of the stack, in bytes, that a process has unless Rlimits has
	// another; 0 is the kernel's.
	StackLimit uint64
	// PidsLimit of every container that asks for none; 0 means unlimited.
	PidsLimit int64
	// UnprivilegedPorts and UnprivilegedPing: in a pod with a network of its own every user may
	// listen on ports below 1024, and ping.
	UnprivilegedPorts, UnprivilegedPing bool
	// NoHostDevices: a privileged container has the devices that it asks for,
	// not all of the host's.
	NoHostDevices bool

	// Seccomp, AppArmor and SELinux tell what the kernel and the OCI runtime offer.
	Seccomp, AppArmor, SELinux bool
	// SELinuxOff: the kernel labels, and the configuration says that pods are not.
	SELinuxOff bool
	// AppArmorProfile is the name of the runtime's default profile, already
	// loaded into the kernel; "" when there is none, and NoAppArmorProfile says why.
	AppArmorProfile, NoAppArmorProfile string
	seccomp.Machine
	limits.Controllers

	// RecursiveReadOnly: kernel and OCI runtime can do it.
	RecursiveReadOnly bool
	// NoUserNamespaces says what kernel, file system or OCI runtime lack for pods with a user
	// namespace; "" when they have all.
	NoUserNamespaces string
	// NoMappedTmpfs says why a pod with a user namespace can have no tmpfs volume; "" when it can.
	// Such pods run, but user namespaces are not offered to the kubelet: nearly all of its pods have
	// such a volume.
	NoMappedTmpfs string
}

// OffersUserNamespaces says whether every pod of a kubelet can have a user namespace.
func (h Host) OffersUserNamespaces() bool { return h.NoUserNamespaces == "" && h.NoMappedTmpfs == "" }

func (h Host) grantable() []string {
	if h.Grantable == nil {
		return h.Capabilities
	}
	return h.Grantable
}
