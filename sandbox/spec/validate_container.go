package spec

import (
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
	"github.com/cribox/cribox/sandbox/spec/limits"
	"github.com/cribox/cribox/sandbox/spec/signals"
	"github.com/cribox/cribox/sandbox/spec/users"
)

// containerChecks is everything that is asked of the request for a container,
// in the order of the message.
var containerChecks = []struct {
	name  string
	check func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig, Host) error
}{
	{"metadata", checkContainerMetadata},
	{"image", checkImage},
	{"command", checkCommand},
	{"working directory", checkWorkingDir},
	{"environment", checkEnvs},
	{"mounts", checkMounts},
	{"devices", checkDevices},
	{"CDI devices", checkCDIDevices},
	{"log path", checkLogPath},
	{"stop signal", checkStopSignal},
	{"privileged", checkPrivileged},
	{"namespaces", checkContainerNamespaces},
	{"user", checkContainerUser},
	{"paths", checkProtectedPaths},
	{"profiles", checkContainerProfiles},
	{"resources", checkContainerResources},
	{"windows", checkContainerWindows},
}

// WithPrivilege returns the request that made a pod with the privilege that asked, the
// sandbox_config beside a container's request, gives it. Both stay as they are.
func WithPrivilege(pod, asked *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	privileged := asked.GetLinux().GetSecurityContext().GetPrivileged()
	if pod.GetLinux().GetSecurityContext().GetPrivileged() == privileged {
		return pod
	}
	pod = proto.CloneOf(pod)
	if pod.Linux == nil {
		pod.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	if pod.Linux.SecurityContext == nil {
		pod.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{}
	}
	pod.Linux.SecurityContext.Privileged = privileged
	return pod
}

// ValidateContainer returns ErrInvalidArgument naming the field that no
// machine could serve, or ErrFailedPrecondition naming what this one lacks.
// pod is the request that made the pod; see WithPrivilege.
func ValidateContainer(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, h Host) error {
	if c == nil {
		return check.Invalid("config", "is missing")
	}
	if pod == nil {
		return check.Invalid("sandbox_config", "is missing")
	}
	for _, k := range containerChecks {
		if err := k.check(pod, c, h); err != nil {
			return err
		}
	}
	return nil
}

func checkContainerMetadata(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	if c.GetMetadata() == nil {
		return check.Invalid("metadata", "is missing")
	}
	return check.Name("metadata.name", c.GetMetadata().GetName())
}

func checkImage(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	if c.GetImage() == nil {
		return check.Invalid("image", "is missing")
	}
	return check.Text("image.image", c.GetImage().GetImage(), check.MaxPath)
}

func checkCommand(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, h Host) error {
	if err := check.Strings("command", c.GetCommand()); err != nil {
		return err
	}
	if err := check.Strings("args", c.GetArgs()); err != nil {
		return err
	}
	if len(c.GetCommand()) > 0 && c.GetCommand()[0] == "" {
		return check.Invalid("command", "begins with an empty string")
	}
	return checkExecSize("command, args", h.execLimit(), 0, slices.Concat(c.GetCommand(), c.GetArgs()))
}

func checkWorkingDir(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	_, err := workingDir(c.GetWorkingDir(), "")
	return err
}

func checkEnvs(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, h Host) error {
	pairs := make([]string, 0, len(c.GetEnvs()))
	for _, e := range c.GetEnvs() {
		name, value := e.GetKey(), string(e.GetValue())
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return check.Invalid("envs.key", "%q is not the name of a variable", check.Truncate(name))
		}
		if strings.ContainsRune(value, 0) {
			return check.Invalid("envs.value", "of %s contains a NUL byte", check.Truncate(name))
		}
		pairs = append(pairs, name+"="+value)
	}
	return checkExecSize("envs", h.execLimit(), 0, pairs)
}

func checkMounts(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, h Host) error {
	for _, m := range c.GetMounts() {
		if err := checkMountPlace(m); err != nil {
			return err
		}
		for _, valid := range []func(*runtimeapi.Mount, Host) error{checkMountSource, checkMountAccess, checkMountOptions} {
			if err := valid(m, h); err != nil {
				return err
			}
		}
		if err := checkMountMappings(pod, m); err != nil {
			return err
		}
	}
	return nil
}

// procPlaces are the files below /proc that something may be bound to, as lxcfs does: those that
// runc lets through.
var procPlaces = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/slabinfo", "/proc/stat", "/proc/swaps",
	"/proc/uptime", "/proc/sys/crypto/fips_enabled", "/proc/sys/kernel/ns_last_pid",
}

// checkMountPlace: /sys and /dev may be replaced, which monitoring and storage agents do. The root
// may not, /proc only by another proc (see askedMounts), and below /proc there are few places.
func checkMountPlace(m *runtimeapi.Mount) error {
	const field = "mounts.container_path"
	if err := check.Text(field, m.GetContainerPath(), check.MaxPath); err != nil {
		return err
	}
	clean := PlaceOf(m)
	switch {
	case clean == "/":
		return check.Invalid(field, "nothing can be mounted at the root of the container")
	case strings.HasPrefix(clean, "/proc/") && !slices.Contains(procPlaces, clean):
		return check.Invalid(field, "nothing can be mounted at %q; below /proc only at %s",
			check.Truncate(clean), strings.Join(procPlaces, ", "))
	}
	return nil
}

func checkMountSource(m *runtimeapi.Mount, _ Host) error {
	if m.GetImage() == nil { // the kubelet names the sub path of every kind of volume, which is a part of host_path then
		return check.HostPath("mounts.host_path", m.GetHostPath())
	}
	if m.GetHostPath() != "" {
		return check.Invalid("mounts.host_path", "is set together with an image")
	}
	if err := check.Text("mounts.image.image", m.GetImage().GetImage(), check.MaxPath); err != nil {
		return err
	}
	if sub := m.GetImageSubPath(); sub != "" {
		if err := check.Path("mounts.image_sub_path", sub); err != nil {
			return err
		}
		if path.IsAbs(sub) {
			return check.Invalid("mounts.image_sub_path", "%q is absolute", check.Truncate(sub))
		}
	}
	return nil
}

func checkMountAccess(m *runtimeapi.Mount, h Host) error {
	if _, ok := runtimeapi.MountPropagation_name[int32(m.GetPropagation())]; !ok {
		return check.Invalid("mounts.propagation", "%d is unknown", m.GetPropagation())
	}
	private := m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	if m.GetImage() != nil && !private {
		return check.Invalid("mounts.propagation", "%s is not possible for an image", m.GetPropagation())
	}
	if m.GetImage() != nil && !m.GetReadonly() {
		return check.Invalid("mounts.readonly", "must be set for an image, which is read-only")
	}
	if !m.GetRecursiveReadOnly() {
		return nil
	}
	if !m.GetReadonly() {
		return check.Invalid("mounts.recursive_read_only", "is set without readonly")
	}
	if !private {
		return check.Invalid("mounts.recursive_read_only", "is set with propagation %s", m.GetPropagation())
	}
	if !h.RecursiveReadOnly {
		return errNoRecursiveReadOnly(m)
	}
	return nil
}

// mountOptions take away, or choose how times are kept; none gives anything
// or says where something is mounted.
var mountOptions = []string{"noexec", "nodev", "nosuid", "noatime", "nodiratime", "relatime", "strictatime",
	"nosymfollow"}

func checkMountOptions(m *runtimeapi.Mount, _ Host) error {
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(mountOptions, o) {
			return check.Invalid("mounts.mount_options", "%q is not one of %s",
				check.Truncate(o), strings.Join(mountOptions, ", "))
		}
	}
	return nil
}

func checkDevices(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	for _, d := range c.GetDevices() {
		if err := check.HostPath("devices.host_path", d.GetHostPath()); err != nil {
			return err
		}
		if err := check.ContainerPath("devices.container_path", d.GetContainerPath()); err != nil {
			return err
		}
		if p := d.GetPermissions(); p != "" { // otherwise all
			if err := checkPermissions(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkLogPath: below the pod's log directory, also with a slash before it.
func checkLogPath(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	p := c.GetLogPath()
	if p == "" {
		return nil
	}
	if err := check.Path("log_path", p); err != nil {
		return err
	}
	if path.Clean("/"+p) == "/" || strings.HasSuffix(p, "/") {
		return check.Invalid("log_path", "%q is not a file below the log directory", check.Truncate(p))
	}
	return nil
}

func checkStopSignal(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	_, err := signals.Stop(c, "")
	return err
}

func checkPrivileged(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	if c.GetLinux().GetSecurityContext().GetPrivileged() && !pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return check.Invalid("linux.security_context.privileged",
			"is set, but the sandbox_config of the request is not privileged")
	}
	return nil
}

func checkContainerUser(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	return users.Check(c.GetLinux().GetSecurityContext())
}

func checkProtectedPaths(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	sc := c.GetLinux().GetSecurityContext()
	for field, list := range map[string][]string{"masked_paths": sc.GetMaskedPaths(),
		"readonly_paths": sc.GetReadonlyPaths()} {
		for _, p := range list {
			if err := check.Absolute("linux.security_context."+field, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkContainerProfiles(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	if _, err := ContainerSeccompPath(c); err != nil {
		return err
	}
	sc := c.GetLinux().GetSecurityContext()
	old := sc.GetApparmorProfile() //nolint:staticcheck // of older kubelets
	if _, err := apparmorProfile(sc.GetApparmor(), old); err != nil {
		return err
	}
	return checkSELinux(sc.GetSelinuxOptions())
}

func checkContainerResources(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, h Host) error {
	return limits.Check(c.GetLinux().GetResources(), h.Controllers)
}

func checkContainerWindows(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	return checkNotWindows(c.GetWindows() != nil)
}
