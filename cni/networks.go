package cni

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/cni/ledger"
	"github.com/cribox/cribox/cni/namespace"
	"github.com/cribox/cribox/cni/program"
	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/internal/step"
)

// Config says where networks are configured and where their state is stored.
type Config struct {
	ConfDir string   // folder of network configurations, normally /etc/cni/net.d
	BinDirs []string // folders of plugins, searched in order; normally /opt/cni/bin
	Default bool     // use the default network while ConfDir has none
	// Subnet of the default network is a CIDR or a comma separated pair. "" means 10.83.0.0/16,
	// PodCIDR means none until SetPodCIDR is called.
	Subnet string
	// NoMasquerade are ranges that pods of the default network reach with their own address.
	NoMasquerade []netip.Prefix
	// Instance is six hex digits that are part of all names and distinguish this daemon from
	// others.
	Instance string
	Root     string // contains cni.debts and cni/, which survive a reboot
	// State contains, in cni/, the leases of the default network, results and the pod CIDR.
	State   string
	Timeout time.Duration // for one chain of plugins, ADD or DEL; 0 = 60 s
	Step    step.Hook
}

// PodCIDR is the value of Subnet when only the kubelet sets the subnet of the default network.
// Until it has, no pod can be connected: such a pod would keep an address that the rest of the
// cluster does not know.
const PodCIDR = "pod-cidr"

const (
	defaultTimeout = 60 * time.Second
	defaultSubnet  = "10.83.0.0/16"
	ifName         = "eth0"
)

var instanceName = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

// Networks connects pods. It is safe for concurrent use; calls for the same pod wait for each
// other.
type Networks struct {
	c       Config
	step    step.Hook
	folder  *folder
	own     *bridgeNetwork
	debts   *ledger.Ledger
	turns   keyed.Turns // CNI forbids concurrent operations on one attachment
	probe   *prober
	asker   *asker
	gate    gate
	others  string                  // folder of the results of other runtimes
	failure atomic.Pointer[Failure] // the last one
}

// Open reads the debts and the configuration folder. It succeeds even if the folder has no usable
// network; see Ready.
func Open(ctx context.Context, c Config) (*Networks, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	for _, dir := range []string{c.recordDir(), c.stateDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open networks: %w", err)
		}
	}
	debts, err := ledger.Open(ctx, c.debtsFile(), c.recordDir())
	if err != nil {
		return nil, err
	}
	n := &Networks{c: c, step: c.Step, debts: debts, probe: newProber(), others: othersResults}
	n.asker = &asker{ask: n.askStatus}
	n.own, err = newBridgeNetwork(c)
	if err != nil {
		return nil, err
	}
	n.folder = &folder{dir: c.ConfDir, own: n.own, fallback: c.Default}
	_, _ = n.current(ctx)
	return n, nil
}

func (c *Config) complete() error {
	if !instanceName.MatchString(c.Instance) {
		return fmt.Errorf("network instance %q: %w", c.Instance, errdefs.ErrInvalidArgument)
	}
	for _, dir := range append([]string{c.ConfDir, c.Root, c.State}, c.BinDirs...) {
		if !filepath.IsAbs(dir) || strings.ContainsRune(dir, os.PathListSeparator) {
			return fmt.Errorf("network folder %q must be an absolute path without a colon: %w", dir, errdefs.ErrInvalidArgument)
		}
	}
	if c.Subnet == "" {
		c.Subnet = defaultSubnet
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	return nil
}

// PodCIDRFile returns the path of the file, in a state folder, that stores the pod CIDR.
func PodCIDRFile(state string) string { return filepath.Join(state, "cni", "pod-cidr") }

func (c *Config) debtsFile() string { return filepath.Join(c.Root, "cni.debts") }
func (c *Config) recordDir() string { return filepath.Join(c.Root, "cni") }
func (c *Config) stateDir() string  { return filepath.Join(c.State, "cni") }
func (c *Config) cacheDir() string  { return filepath.Join(c.State, "cni", "cache") }
func (c *Config) leaseDir() string  { return filepath.Join(c.State, "cni", "leases") }

// Ready returns nil when a pod could be connected now, otherwise an ErrUnavailable error as the
// reason for the node's condition. It checks the folder, the plugins, the routes, and the plugins'
// last STATUS. It does not wait for plugins, except for a moment for the first answer after the
// network has changed.
func (n *Networks) Ready() error {
	w, err := n.current(context.Background())
	if err != nil {
		return err
	}
	return n.usable(w)
}

// current returns the network that pods are connected to now.
func (n *Networks) current(ctx context.Context) (*network, error) {
	w, err := n.folder.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	n.probe.start(w, n.c.BinDirs)
	return w, nil
}

// usable returns the reason why pods cannot be connected to w now, or nil.
func (n *Networks) usable(w *network) error {
	if err := n.complete(w); err != nil {
		return err
	}
	if w.ours {
		if err := n.own.check(w.subnets); err != nil {
			return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
		}
	}
	if err := n.asker.verdict(w); err != nil {
		return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
	}
	return nil
}

// complete returns an error that names a plugin of w which is missing or unsuitable, or nil.
func (n *Networks) complete(w *network) error {
	for _, plugin := range w.needs {
		if _, err := program.Find(plugin, n.c.BinDirs); err != nil {
			return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
		}
	}
	if err := n.probe.verdict(w, n.c.BinDirs); err != nil {
		return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
	}
	return nil
}

// SetPodCIDR sets the subnet of the default network to cidr, one prefix or a comma separated pair
// of both families (CRI UpdateRuntimeConfig network_config.pod_cidr). The value survives a restart
// of the daemon. An empty cidr changes nothing. Errors: ErrInvalidArgument; ErrFailedPrecondition
// while pods are attached to the default network in another subnet.
func (n *Networks) SetPodCIDR(cidr string) error {
	if cidr == "" {
		return nil
	}
	subnets, err := parseSubnets(cidr)
	if err != nil {
		return fmt.Errorf("network_config.pod_cidr: %w", err)
	}
	return n.own.setPodCIDR(subnets)
}

// Debts returns the sorted ids of pods whose ADD was begun and whose DEL has not succeeded. That
// includes connected pods.
func (n *Networks) Debts() []string { return n.debts.IDs() }

// NewNetNS calls namespace.New and passes its step.
func (n *Networks) NewNetNS(path string) error {
	if err := namespace.New(path); err != nil {
		return err
	}
	n.step.Pass("cni.netns.created")
	return nil
}

// PinNetNS calls namespace.Pin and passes the step of NewNetNS.
func (n *Networks) PinNetNS(path string, ns *os.File) error {
	if err := namespace.Pin(path, ns); err != nil {
		return err
	}
	n.step.Pass("cni.netns.created")
	return nil
}

// RemoveNetNS calls namespace.Remove and passes its step.
func (n *Networks) RemoveNetNS(path string) error {
	if err := namespace.Remove(path); err != nil {
		return err
	}
	n.step.Pass("netns.removed")
	return nil
}

// parseSubnets reads a CIDR or a comma separated pair of CIDRs, at most one per family, each large
// enough for a gateway and two pods.
func parseSubnets(s string) ([]netip.Prefix, error) {
	var subnets []netip.Prefix
	for field := range strings.SplitSeq(s, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(field))
		if err != nil {
			return nil, fmt.Errorf("subnet %q: %w", field, errdefs.ErrInvalidArgument)
		}
		p = p.Masked()
		a := p.Addr()
		if a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() ||
			p.Bits() > a.BitLen()-2 || p.Bits() == 0 {
			return nil, fmt.Errorf("subnet %q cannot hold pods: %w", field, errdefs.ErrInvalidArgument)
		}
		for _, other := range subnets {
			if other.Addr().Is4() == a.Is4() {
				return nil, fmt.Errorf("subnets %q are of one family: %w", s, errdefs.ErrInvalidArgument)
			}
		}
		subnets = append(subnets, p)
	}
	return subnets, nil
}

// Dial calls namespace.Dial, for callers that use Networks through an interface.
func (n *Networks) Dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error) {
	return namespace.Dial(ctx, netns, port)
}
