package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec"
)

// ResolveDevices finds the device nodes that a request names; a folder stands for every device
// below it. A privileged container gets all devices of the host besides, where its handler gives
// them.
func ResolveDevices(c *runtimeapi.ContainerConfig, hosts bool) ([]spec.Device, error) {
	var all []spec.Device
	for _, d := range c.GetDevices() {
		found, err := devicesAt(d.GetHostPath(), d.GetContainerPath(), d.GetPermissions())
		if err != nil {
			return nil, fmt.Errorf("devices.host_path: %s: %w", d.GetHostPath(), BlameHost(err))
		}
		all = append(all, found...)
	}
	if hosts && c.GetLinux().GetSecurityContext().GetPrivileged() {
		host, err := hostDevices()
		if err != nil {
			return nil, fmt.Errorf("devices of this machine: %w", err)
		}
		all = append(all, host...)
	}
	return all, nil
}

func devicesAt(host, inside, permissions string) ([]spec.Device, error) {
	permissions = spec.Permissions(permissions)
	host, err := filepath.EvalSymlinks(host)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(host)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		d, ok := device(info, host, inside, permissions)
		if !ok {
			return nil, errors.New("is not a device")
		}
		return []spec.Device{d}, nil
	}
	var all []spec.Device
	err = filepath.WalkDir(host, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if d, ok := device(info, path, inside+strings.TrimPrefix(path, host), permissions); ok {
			all = append(all, d)
		}
		return nil
	})
	return all, err
}

// device describes a device node; ok is false for every other kind of file.
func device(info fs.FileInfo, host, inside, permissions string) (d spec.Device, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&fs.ModeDevice == 0 {
		return d, false
	}
	kind := "b"
	if info.Mode()&fs.ModeCharDevice != 0 {
		kind = "c"
	}
	return spec.Device{HostPath: host, ContainerPath: inside, Type: kind, Major: int64(unix.Major(st.Rdev)),
		Minor: int64(unix.Minor(st.Rdev)),
		Mode:  info.Mode().Perm(), UID: st.Uid, GID: st.Gid, Permissions: permissions}, true
}

// notShared are the folders of /dev that every container has of its own.
var notShared = map[string]bool{"pts": true, "shm": true, "fd": true, "mqueue": true, ".lxc": true, ".lxd-mounts": true,
	".udev": true}

func hostDevices() ([]spec.Device, error) {
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return nil, err
	}
	var all []spec.Device
	for _, e := range entries {
		path := filepath.Join("/dev", e.Name())
		if notShared[e.Name()] || e.Name() == "console" || e.Type()&fs.ModeSymlink != 0 {
			continue
		}
		found, err := devicesAt(path, path, "rwm")
		if err != nil {
			continue // no device, or one that went away
		}
		all = append(all, found...)
	}
	return all, nil
}
