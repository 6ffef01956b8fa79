package spec

import (
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/check"
)

// mounts puts together, parents before children: what every container has,
// the pod's own files, the image's volumes, what was asked for. A place that
// the request uses is left to the request.
func (d *draft) mounts() error {
	asked, err := d.askedMounts()
	if err != nil {
		return err
	}
	taken := places(d.c.Config)
	var all []specs.Mount
	for _, m := range d.ownMounts() {
		// the host's would be everybody's
		hidden := taken["/dev"] && below(m.Destination, "/dev") && m.Destination != "/dev/shm"
		if !taken[m.Destination] && !hidden {
			all = append(all, m)
		}
	}
	for _, v := range d.c.Volumes {
		if place := path.Clean(v.ContainerPath); !taken[place] {
			all = append(all, bind(v.Source, place, "rprivate", "rw"))
		}
	}
	all = append(all, asked...)
	all = append(all, d.boundDevices()...)
	sort.SliceStable(all, func(i, j int) bool { return depth(all[i].Destination) < depth(all[j].Destination) })
	d.spec.Mounts = all
	return nil
}

func (d *draft) ownMounts() []specs.Mount {
	access := "ro"
	if d.privileged() {
		access = "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if _, gids, ok := UserNamespace(d.pod.Config); !ok || gids.Length > ttyGroup {
		pts = append(pts, fmt.Sprint("gid=", ttyGroup))
	}
	own := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		d.sys(access),
		d.cgroup(access),
	}
	shm := d.pod.ShmPath
	if shm == "" && podNamespace(d.pod.Config).GetIpc() == runtimeapi.NamespaceMode_NODE {
		shm = "/dev/shm"
	}
	if shm != "" {
		own = append(own, bind(shm, "/dev/shm", "rprivate", "rw", "nosuid", "nodev", "noexec"))
	}
	access = "rw"
	if d.security().GetReadonlyRootfs() {
		access = "ro"
	}
	for _, f := range []struct{ source, place string }{
		{d.pod.HostsPath, "/etc/hosts"},
		{d.pod.HostnamePath, "/etc/hostname"},
		{d.pod.ResolvConfPath, "/etc/resolv.conf"},
	} {
		if f.source != "" {
			own = append(own, bind(f.source, f.place, "rprivate", access))
		}
	}
	return own
}

// ttyGroup owns the terminals of every Linux distribution.
const ttyGroup = 5

// sys is /sys. Only who rules a network namespace can mount a sysfs of it; the host's is not ruled
// from a user namespace, there the host's own sysfs stands in, with everything in it read-only.
func (d *draft) sys(access string) specs.Mount {
	if d.inUserNamespace() && d.hostNetwork() {
		return bind("/sys", "/sys", "rprivate", "nosuid", "noexec", "nodev", "rro")
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs",
		Options: []string{"nosuid", "noexec", "nodev", access}}
}

// cgroup is /sys/fs/cgroup. Without a cgroup namespace it is the host's file system, which this
// mount gives its options anew.
func (d *draft) cgroup(access string) specs.Mount {
	m := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", access}}
	if !d.ownCgroup() {
		m.Options = append(m.Options, d.host.CgroupOptions...)
	}
	return m
}

// askedMounts are those of the request. The root's propagation follows the
// widest of them.
func (d *draft) askedMounts() ([]specs.Mount, error) {
	d.spec.Linux.RootfsPropagation = "rslave"
	var asked []specs.Mount
	last := map[string]int{} // of two at one place the later one hides the other
	for i, m := range d.c.Config.GetMounts() {
		last[PlaceOf(m)] = i
	}
	for i, m := range d.c.Config.GetMounts() {
		resolved := d.c.Mounts[i]
		place := PlaceOf(m)
		if !path.IsAbs(m.GetContainerPath()) {
			d.note("mounts.container_path", "%q is not an absolute path; mounted at %s",
				check.Truncate(m.GetContainerPath()), check.Truncate(place))
		}
		if last[place] != i {
			d.note("mounts.container_path", "%s occurs more than once: only the last mount was made, %s was not",
				check.Truncate(place), check.Truncate(m.GetHostPath()))
			continue
		}
		if place == "/proc" && !resolved.Proc {
			return nil, check.Invalid("mounts.container_path",
				"only a proc file system, such as the host's /proc, can be mounted at /proc")
		}
		propagation, err := propagationOf(m, resolved)
		if err != nil {
			return nil, err
		}
		if propagation == "rshared" {
			d.spec.Linux.RootfsPropagation = "rshared"
		}
		access := "rw"
		switch {
		case m.GetRecursiveReadOnly():
			access = "rro"
		case m.GetReadonly():
			access = "ro"
		}
		b := bind(resolved.Source, place, propagation, append([]string{access}, m.GetMountOptions()...)...)
		if m.GetImage() == nil { // the caller has mounted an image with the pod's ids
			b.UIDMappings, b.GIDMappings = ociMappings(m.GetUidMappings()), ociMappings(m.GetGidMappings())
		}
		asked = append(asked, b)
	}
	return asked, nil
}

// propagationOf refuses what the source's own mount cannot give: the OCI
// runtime would bind it and nothing would ever be propagated.
func propagationOf(m *runtimeapi.Mount, r Mount) (string, error) {
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if !r.Shared && !r.Slave {
			return "", fmt.Errorf("mount %s: %s is on a private mount; "+
				"propagation from host to container needs a shared or slave one: %w",
				m.GetContainerPath(), m.GetHostPath(), errdefs.ErrFailedPrecondition)
		}
		return "rslave", nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if !r.Shared {
			return "", fmt.Errorf("mount %s: %s is not on a shared mount, which bidirectional propagation needs: %w",
				m.GetContainerPath(), m.GetHostPath(), errdefs.ErrFailedPrecondition)
		}
		return "rshared", nil
	}
	return "rprivate", nil
}

func bind(source, place, propagation string, options ...string) specs.Mount {
	return specs.Mount{Source: source, Destination: place, Type: "bind",
		Options: append([]string{"rbind", propagation}, options...)}
}

// ImageVolumes returns the places of the image's volumes, clean and sorted,
// for which the caller has to make an anonymous directory: not those where the
// request mounts something, nor where a container has something of its own.
func ImageVolumes(image ocispec.Image, c *runtimeapi.ContainerConfig) []string {
	taken := places(c)
	var volumes []string
	for v := range image.Config.Volumes {
		place := path.Clean("/" + v)
		if place == "/" || taken[place] || strings.ContainsRune(v, 0) || len(v) > check.MaxPath {
			continue
		}
		if below(place, "/proc") || below(place, "/sys") || below(place, "/dev") {
			continue
		}
		taken[place] = true
		volumes = append(volumes, place)
	}
	sort.Strings(volumes)
	return volumes
}

// PlaceOf is the clean absolute path in the container that something is mounted at.
func PlaceOf(m *runtimeapi.Mount) string { return path.Clean("/" + m.GetContainerPath()) }

// places are the clean container paths of the request's mounts.
func places(c *runtimeapi.ContainerConfig) map[string]bool {
	taken := map[string]bool{}
	for _, m := range c.GetMounts() {
		taken[PlaceOf(m)] = true
	}
	return taken
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// below tells whether the absolute path p is dir or lies in it.
func below(p, dir string) bool {
	p = path.Clean(p)
	return p == dir || strings.HasPrefix(p, dir+"/")
}

// maskedPaths are exactly those of the request; a privileged container has none.
func (d *draft) maskedPaths() error {
	if d.privileged() {
		return nil
	}
	d.spec.Linux.MaskedPaths = append([]string(nil), d.security().GetMaskedPaths()...)
	d.spec.Linux.ReadonlyPaths = append([]string(nil), d.security().GetReadonlyPaths()...)
	return nil
}

// errNoRecursiveReadOnly begins with the word that kubelet looks for.
func errNoRecursiveReadOnly(m *runtimeapi.Mount) error {
	return fmt.Errorf("RROUnsupported: mount %s: "+
		"the kernel or the OCI runtime does not support recursive read-only mounts: %w",
		check.Truncate(m.GetContainerPath()), errdefs.ErrFailedPrecondition)
}
