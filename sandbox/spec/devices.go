package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

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
		FileMode: ptr(dev.Mode.Perm()), UID: ptr(dev.UID), GID: ptr(dev.GID),
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
var runtimeDevices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/console"}

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
	return specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: ptr(dev.Major), Minor: ptr(dev.Minor), Access: dev.Permissions}
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
		return check.Invalid("devices.permissions", "%q is not made of r, w and m", check.Truncate(s))
	}
	if s == "" {
		return check.Invalid("devices.permissions", "is empty")
	}
	return nil
}
