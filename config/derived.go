package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/cribox/cribox/cni"
)

// SystemdCgroup reports whether systemd creates the cgroups of pods. It returns an error if the
// configuration asks for systemd and systemd is not running.
func (c *Config) SystemdCgroup(systemdRuns bool) (bool, error) {
	switch c.CgroupDriver {
	case DriverSystemd:
		if !systemdRuns {
			return false, errors.New("cgroup_driver is systemd, but systemd is not PID 1 on this machine: " +
				"set it to cgroupfs or auto")
		}
		return true, nil
	case DriverCgroupfs:
		return false, nil
	}
	return systemdRuns, nil
}

// Instance returns six hex digits that identify the state folder. They mark everything on the host
// that belongs to this daemon.
func (c *Config) Instance() string {
	sum := sha256.Sum256([]byte(filepath.Clean(c.State)))
	return hex.EncodeToString(sum[:3])
}

// Scopes returns a function that names the systemd scopes of the shim and the logger, or nil if
// systemd is not running. With the default state folder the names do not contain the instance.
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

// Socket returns the path of the CRI socket.
func (c *Config) Socket() string { return strings.TrimPrefix(c.Listen, "unix://") }

// AdminSocket returns the path of the socket that cribox's own commands use.
func (c *Config) AdminSocket() string { return filepath.Join(c.State, "admin.sock") }

// MetricsAddress returns the network and the address of metrics.listen, as net.Listen takes them;
// both are empty if there is to be no listener. It returns an error for an address that other
// machines reach: the metrics name every pod and image, and nobody has to log in to read them.
func (c *Config) MetricsAddress() (network, address string, err error) {
	listen := c.Metrics.Listen
	if listen == "" {
		return "", "", nil
	}
	if path, ok := strings.CutPrefix(listen, "unix://"); ok {
		return "unix", path, socketAddress(listen)
	}
	at, err := netip.ParseAddrPort(listen)
	if err != nil {
		return "", "", fmt.Errorf("%q is neither unix:///PATH nor an address with a port, such as 127.0.0.1:9421", listen)
	}
	if !at.Addr().Unmap().IsLoopback() {
		return "", "", fmt.Errorf("%s is not on the loopback: use 127.0.0.1:%d, and a proxy for other machines",
			at.Addr(), at.Port())
	}
	return "tcp", at.String(), nil
}

// TraceURL returns the URL of the collector in tracing.endpoint, "" for none.
func (c *Config) TraceURL() (string, error) {
	endpoint := c.Tracing.Endpoint
	if endpoint == "" {
		return "", nil
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.Path != "" {
		return "", fmt.Errorf("%q is not HOST:PORT, http://HOST:PORT or https://HOST:PORT", c.Tracing.Endpoint)
	}
	return endpoint, nil
}

// CNI returns the configuration for cni.Open. The caller sets its Step.
func (c *Config) CNI() (cni.Config, error) {
	keep, err := c.Network.noMasquerade()
	return cni.Config{
		ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs,
		Default: c.Network.Default, Subnet: c.Network.Subnet, NoMasquerade: keep,
		Instance: c.Instance(), Root: c.Root, State: c.State,
	}, err
}

// ImportFolder returns the absolute path of images.import_dir, "" for none.
func (c *Config) ImportFolder() string {
	if dir := c.Images.ImportDir; dir == "" || filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(c.Root, c.Images.ImportDir)
}

// PinnedImages returns the images that the kubelet must not garbage-collect: those of images.pinned
// and the pause image, without which no pod starts.
func (c *Config) PinnedImages() (names []string) {
	for _, name := range slices.Concat(c.Images.Pinned, []string{c.PauseImage}) {
		if ref, err := reference.ParseDockerRef(name); err == nil { // fails for a name with a *
			name = ref.String()
		}
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// Program returns the absolute path of the runtime. If PATH does not have the name, it returns the
// path in /usr/bin; the condition RuntimeReady reports a missing program.
func (r Runtime) Program() string {
	if filepath.IsAbs(r.Path) {
		return r.Path
	}
	if path, err := exec.LookPath(r.Path); err == nil {
		return path
	}
	return filepath.Join("/usr/bin", r.Path)
}

// noMasquerade parses the ranges of no_masquerade.
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
