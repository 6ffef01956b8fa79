package node

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// InjectDevices adds to a container's spec what its CDI devices need: device nodes, mounts,
// environment, groups, hooks. The files that describe devices belong to root and are trusted. They
// are read each time: what a device plugin wrote a moment ago counts. ErrFailedPrecondition names
// the devices that no file describes, and those of which this machine lacks a part.
func (n *Node) InjectDevices(p *table.PodEntry, c *table.ContainerEntry, s *specs.Spec) error {
	names := spec.CDIDevices(c.Config)
	if len(names) == 0 {
		return nil
	}
	edits, err := findEdits(names, n.conf.CDISpecDirs)
	if err != nil {
		return err
	}
	var bound []spec.Device
	if _, _, ok := spec.UserNamespace(p.Config); ok {
		if bound, err = boundNodes(edits); err != nil {
			return err
		}
	}
	if err := edits.Apply(s); err != nil {
		return fmt.Errorf("CDI devices %s: %w: %w", strings.Join(names, ", "), err, errdefs.ErrFailedPrecondition)
	}
	spec.BindDevices(s, bound)
	ownEnvironment(s.Hooks)
	return spec.CheckMapped(p.Config, s.Process.User)
}

// findEdits reads what the folders say about the devices: of each file that describes one what it
// says of all of them, then of this one.
func findEdits(names, dirs []string) (*cdi.ContainerEdits, error) {
	known, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("CDI devices: %w", err)
	}
	edits := &cdi.ContainerEdits{}
	var files []*cdi.Spec
	var unknown []string
	for _, name := range names {
		device := known.GetDevice(name)
		if device == nil {
			unknown = append(unknown, name)
			continue
		}
		if file := device.GetSpec(); !slices.Contains(files, file) {
			files = append(files, file)
			edits.Append(&cdi.ContainerEdits{ContainerEdits: &file.ContainerEdits})
		}
		edits.Append(&cdi.ContainerEdits{ContainerEdits: &device.ContainerEdits})
	}
	if len(unknown) > 0 {
		return nil, unknownDevices(unknown, dirs, known.GetErrors())
	}
	return edits, nil
}

// unknownDevices says where was looked, and what could not be read there: that may be the file in
// question.
func unknownDevices(names, dirs []string, broken map[string][]error) error {
	const most = 3
	var why strings.Builder
	for i, file := range slices.Sorted(maps.Keys(broken)) {
		if i == most {
			fmt.Fprintf(&why, "; and %d more files cannot be used", len(broken)-most)
			break
		}
		fmt.Fprintf(&why, "; %s cannot be used: %v", file, broken[file][0])
	}
	where := cmp.Or(strings.Join(dirs, ", "), "no folder, as cdi_spec_dirs is empty")
	return fmt.Errorf("CDI devices %s are not described by any file in %s%s: %w",
		strings.Join(names, ", "), where, why.String(), errdefs.ErrFailedPrecondition)
}

// boundNodes takes the device nodes out of the edits, for a user namespace, where none can be made:
// they are bound.
func boundNodes(edits *cdi.ContainerEdits) ([]spec.Device, error) {
	if edits.ContainerEdits == nil {
		return nil, nil
	}
	var all []spec.Device
	for _, node := range edits.DeviceNodes {
		host := cmp.Or(node.HostPath, node.Path)
		found, err := devicesAt(host, node.Path, node.Permissions)
		if err != nil {
			return nil, fmt.Errorf("CDI device node %s: %w: %w", host, err, errdefs.ErrFailedPrecondition)
		}
		if node.Permissions == cdi.NoPermissions {
			for i := range found {
				found[i].Permissions = ""
			}
		}
		all = append(all, found...)
	}
	edits.DeviceNodes = nil
	return all, nil
}

// ownEnvironment gives every hook an environment. One without would get that of the process it is
// started from, which for some hooks is the container's: then an image says by LD_PRELOAD what a
// program of the host loads, as root.
func ownEnvironment(h *specs.Hooks) {
	if h == nil {
		return
	}
	before := h.Prestart //nolint:staticcheck // CDI still has it
	for _, list := range [][]specs.Hook{before, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart,
		h.Poststop} {
		for i := range list {
			if len(list[i].Env) == 0 {
				list[i].Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
			}
		}
	}
}
