package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/cribox/cribox/cni"
)

// SystemdCgroup says whether systemd makes the cgroups of pods, on a host where it runs or does
// not.
func (c *Config) SystemdCgroup(systemdRuns bool) (bool, error) {
	switch c.CgroupDriver {
	case DriverSystemd:
		if !systemdRuns {
			return false, errors.New("cgroup_driver is systemd, which is not the first process of this machine: set cgroupfs or auto")
		}
		return true, nil
	case DriverCgroupfs:
		return false, nil
	}
	return systemdRuns, nil
}

// Instance marks everything on the host that belongs to one state folder.
func (c *Config) Instance() string {
	sum := sha256.Sum256([]byte(filepath.Clean(c.State)))
	return hex.EncodeToString(sum[:3])
}

// Scopes names the systemd scopes of the shim and the logger. Those of the default state folder do
// not carry the instance. nil where no systemd runs.
func (c *Config) Scopes(systemd bool) func(peer string) string {
	if !systemd {
		return nil
	}
	last := ".scope"
	if filepath.Clean(c.State) != Default().State {
		last = "-" + c.Instance() + last
	}
	return func(peer string) string { return "cribox-" + peer + last }
}

// Socket returns the path of the socket.
func (c *Config) Socket() string { return strings.TrimPrefix(c.Listen, "unix://") }

// CNI returns what cni.Open needs, but for the steps.
func (c *Config) CNI() (cni.Config, error) {
	keep, err := c.Network.noMasquerade()
	return cni.Config{
		ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs,
		Default: c.Network.Default, Subnet: c.Network.Subnet, NoMasquerade: keep,
		Instance: c.Instance(), Root: c.Root, State: c.State,
	}, err
}

// PinnedImages returns the names of the images that a kubelet should not collect: without its pause
// image no pod starts.
func (c *Config) PinnedImages() (names []string) {
	for _, name := range slices.Concat(c.Images.Pinned, []string{c.PauseImage}) {
		if ref, err := reference.ParseDockerRef(name); err == nil { // not one with a star
			name = ref.String()
		}
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// Program returns the absolute path of the runtime. A name that PATH does not have is looked for in
// /usr/bin; that it is missing is told by the condition RuntimeReady.
func (r Runtime) Program() string {
	if filepath.IsAbs(r.Path) {
		return r.Path
	}
	if path, err := exec.LookPath(r.Path); err == nil {
		return path
	}
	return filepath.Join("/usr/bin", r.Path)
}

// noMasquerade returns the ranges of no_masquerade.
func (n Network) noMasquerade() ([]netip.Prefix, error) {
	all := make([]netip.Prefix, 0, len(n.NoMasquerade))
	for _, s := range n.NoMasquerade {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Masked())
	}
	return all, nil
}
