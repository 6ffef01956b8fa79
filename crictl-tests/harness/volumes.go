package harness

import (
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Volume is a mount of an image, or of what sub names in it, as a kubelet asks for it.
func Volume(image, sub, inside string) *cri.Mount {
	return &cri.Mount{ContainerPath: inside, Image: &cri.ImageSpec{Image: image}, ImageSubPath: sub, Readonly: true}
}

// Mounted adds mounts to a container.
func Mounted(mounts ...*cri.Mount) ContainerOption {
	return func(c *cri.ContainerConfig) { c.Mounts = append(c.Mounts, mounts...) }
}

// MountLines returns of mountinfo, as a container sees it, the options by mountpoint: of the mount
// itself, then what propagates.
func (c *Container) MountLines() map[string]string {
	c.Helper()
	all := map[string]string{}
	for line := range strings.Lines(c.Exec("cat", "/proc/self/mountinfo")) {
		f := strings.Fields(line)
		end := slices.Index(f, "-")
		all[f[4]] = strings.Join(f[5:end], " ")
	}
	return all
}
