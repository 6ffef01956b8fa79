package rootfs

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/node"
	"github.com/cribox/cribox/sandbox/selinux"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
	"github.com/cribox/cribox/sandbox/userns"
)

// Resolve finds, for each mount of a request, what is really bound: a part of a mounted
// image, or the host path with its links resolved, and how the mount it lies on propagates. A host
// path that does not exist is made, see hostPath.
func (m *Mounts) Resolve(
	ctx context.Context, missing node.MissingPaths, c *table.ContainerEntry,
) ([]spec.Mount, error) {
	var table []*mountinfo.Info
	resolved := make([]spec.Mount, 0, len(c.Config.GetMounts()))
	for i, asked := range c.Config.GetMounts() {
		source, err := m.mountSource(ctx, missing, c, i)
		if err != nil {
			return nil, err
		}
		r := spec.Mount{Source: source}
		if spec.PlaceOf(asked) == "/proc" {
			r.Proc = onProc(source)
		}
		if asked.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			if table == nil {
				if table, err = mountinfo.GetMounts(nil); err != nil {
					return nil, fmt.Errorf("this machine's mounts: %w", err)
				}
			}
			r.Shared, r.Slave = propagation(table, source)
		}
		resolved = append(resolved, r)
	}
	return resolved, nil
}

func (m *Mounts) mountSource(
	ctx context.Context, missing node.MissingPaths, c *table.ContainerEntry, i int,
) (string, error) {
	asked := c.Config.GetMounts()[i]
	if asked.GetImage() != nil {
		return m.volumeSource(c, i)
	}
	source, err := m.hostPath(ctx, missing, asked.GetHostPath())
	if err != nil {
		return "", fmt.Errorf("mounts.host_path: %s of %s: %w", asked.GetHostPath(), asked.GetContainerPath(), err)
	}
	return source, nil
}

// onProc says whether path is on a proc filesystem.
func onProc(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC
}

// propagation tells about the mount that path lies on, which is the last one of those with the
// longest mountpoint.
func propagation(table []*mountinfo.Info, path string) (shared, slave bool) {
	var best *mountinfo.Info
	for _, m := range table {
		within := m.Mountpoint == "/" || path == m.Mountpoint || strings.HasPrefix(path, m.Mountpoint+"/")
		if within && (best == nil || len(m.Mountpoint) >= len(best.Mountpoint)) {
			best = m
		}
	}
	if best == nil {
		return false, false
	}
	return strings.Contains(best.Optional, "shared:"), strings.Contains(best.Optional, "master:")
}

// CanMap refuses a mount whose ids are to be mapped and cannot be: the OCI runtime would do so only
// when the container starts.
func (m *Mounts) CanMap(p *table.PodEntry, asked []*runtimeapi.Mount, found []spec.Mount) error {
	ns, err := m.openUserNS(p)
	if err != nil || ns == nil {
		return err
	}
	defer ns.Close()
	for i, a := range asked {
		if len(a.GetUidMappings()) == 0 || a.GetImage() != nil { // an image is mounted with its ids mapped
			continue
		}
		if err := userns.CanMap(found[i].Source, ns); err != nil {
			return fmt.Errorf("mount %s: %w", a.GetContainerPath(), err)
		}
	}
	return nil
}

// Relabel gives the files of the container's volumes the label of its files: of those of the image
// always, of a host path when the mount asks for it. A privileged container needs none, and takes
// none away from others. What is not done when ctx ends goes on with the next request.
func Relabel(ctx context.Context, c *table.ContainerEntry, in *spec.Container) error {
	if in.MountLabel == "" {
		return nil
	}
	for _, v := range in.Volumes {
		if err := selinux.Relabel(ctx, v.Source, in.MountLabel); err != nil {
			return err
		}
	}
	for i, asked := range c.Config.GetMounts() {
		if !asked.GetSelinuxRelabel() || asked.GetImage() != nil || c.Config.GetLinux().GetSecurityContext().GetPrivileged() {
			continue
		}
		if err := selinux.Relabel(ctx, in.Mounts[i].Source, in.MountLabel); err != nil {
			return fmt.Errorf("mount %s: %w", asked.GetContainerPath(), err)
		}
	}
	return nil
}
