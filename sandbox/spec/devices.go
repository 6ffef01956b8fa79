package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// devices denies everything, then lets through what is listed, which for a
// privileged container is everything again, unless Host says otherwise. The
// OCI runtime adds the few devices that every container has.
func (d *draft) devices() error {
	rules := []specs.LinuxDeviceCgroup{denyAll()}
	all := d.privileged() && !d.host.NoHostDevices
	if all {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
	}
	for _, dev := range d.c.Devices {
		if err := d.addDevice(dev); err != nil {
			return err
		}
		if !all && dev.Type != "p" { // a FIFO is nobody's device
			rules = append(rules, allow(dev))
		}
	}
	d.spec.Linux.Resources.Devices = rules
	return nil
}

func (d *draft) addDevice(dev Device) error {
	if dev.Type != "c" && dev.Type != "b" && dev.Type != "p" {
		return fmt.Errorf("spec of container %s: device %s has type %q", d.c.ID, dev.ContainerPath, dev.Type)
	}
	if err := check.ContainerPath("devices.container_path", dev.ContainerPath); err != nil {
		return err
	}
	if err := checkPermissions(dev.Permissions); err != nil {
		return err
	}
	if d.inUserNamespace() { // see boundDevices
		return check.Absolute("devices.host_path", dev.HostPath) // another would be one of the OCI runtime's own files
	}
	d.spec.Linux.Devices = append(d.spec.Linux.Devices, specs.LinuxDevice{
		Path: dev.ContainerPath, Type: dev.Type, Major: dev.Major, Minor: dev.Minor,
		FileMode: new(dev.Mode.Perm()), UID: new(dev.UID), GID: new(dev.GID),
	})
	return nil
}

// boundDevices: in a user namespace no device node can be made, the host's is bound instead. (An
// OCI runtime does so too, but from the host's path that is the device's path in the container.)
func (d *draft) boundDevices() []specs.Mount {
	if !d.inUserNamespace() {
		return nil
	}
	var all []specs.Mount
	for _, dev := range d.c.Devices {
		if !slices.Contains(runtimeDevices, path.Clean(dev.ContainerPath)) {
			all = append(all, bindDevice(dev))
		}
	}
	return all
}

// runtimeDevices are those that every OCI runtime adds itself, and cannot where there is one
// already.
var runtimeDevices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
	"/dev/ptmx", "/dev/console"}

func bindDevice(dev Device) specs.Mount {
	return bind(dev.HostPath, path.Clean(dev.ContainerPath), "rprivate", "nosuid", "noexec")
}

// BindDevices adds devices to the finished spec of a container in a user namespace. One without
// permissions is there and cannot be opened.
func BindDevices(s *specs.Spec, devices []Device) {
	for _, dev := range devices {
		s.Mounts = append(s.Mounts, bindDevice(dev))
		if dev.Permissions != "" && dev.Type != "p" {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, allow(dev))
		}
	}
}

func allow(dev Device) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: new(dev.Major), Minor: new(dev.Minor),
		Access: dev.Permissions}
}

func denyAll() specs.LinuxDeviceCgroup { return specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"} }

// Permissions is what a device's permissions mean: all when they are not given, and each letter
// once.
func Permissions(s string) string {
	if s == "" {
		return "rwm"
	}
	once := ""
	for _, r := range s {
		if !strings.ContainsRune(once, r) {
			once += string(r)
		}
	}
	return once
}

// checkPermissions wants letters of "rwm".
func checkPermissions(s string) error {
	if strings.Trim(s, "rwm") != "" {
		return check.Invalid("devices.permissions", "%q contains a letter other than r, w and m", check.Truncate(s))
	}
	if s == "" {
		return check.Invalid("devices.permissions", "is empty")
	}
	return nil
}

// cdiAnnotation begins the names of annotations in which device plugins ask for CDI devices, as
// they did before CDI_devices.
const cdiAnnotation = "cdi.k8s.io/"

// CDIDevices returns the names of the CDI devices that a container asks for, each once: those of
// CDI_devices, then those of its annotations. Annotations of its pod, which anybody can write, are
// not looked at.
func CDIDevices(c *runtimeapi.ContainerConfig) []string {
	var names []string
	seen := map[string]bool{}
	for _, d := range askedCDIDevices(c) {
		if !seen[d.name] {
			names = append(names, d.name)
		}
		seen[d.name] = true
	}
	return names
}

type cdiDevice struct{ field, name string }

func askedCDIDevices(c *runtimeapi.ContainerConfig) []cdiDevice {
	var all []cdiDevice
	for _, d := range c.GetCDIDevices() {
		all = append(all, cdiDevice{"CDI_devices.name", d.GetName()})
	}
	for _, key := range slices.Sorted(maps.Keys(c.GetAnnotations())) {
		if !strings.HasPrefix(key, cdiAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(c.GetAnnotations()[key], ",") {
			all = append(all, cdiDevice{"annotations." + check.Truncate(key), name})
		}
	}
	return all
}

func checkCDIDevices(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, _ Host) error {
	for _, d := range askedCDIDevices(c) {
		if err := check.Text(d.field, d.name, check.MaxName); err != nil {
			return err
		}
		if _, _, _, err := parser.ParseQualifiedName(d.name); err != nil {
			return check.Invalid(d.field, "%q is not VENDOR/CLASS=NAME: %v", check.Truncate(d.name), err)
		}
	}
	return nil
}
