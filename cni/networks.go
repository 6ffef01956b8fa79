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

	"github.com/cribox/cribox/internal/keyed"
	"github.com/cribox/cribox/internal/step"
)

// Config tells where networks come from and where their state is kept.
type Config struct {
	ConfDir string   // folder of network configurations, normally /etc/cni/net.d
	BinDirs []string // folders of plugins, searched in order; normally /opt/cni/bin
	Default bool     // use the default network while ConfDir names none
	Subnet  string   // of the default network, a CIDR or a comma separated pair; "" = 10.83.0.0/16, PodCIDR = none until SetPodCIDR
	// NoMasquerade are ranges that pods of the default network reach with their own address.
	NoMasquerade []netip.Prefix
	Instance     string        // six hex digits that tell this daemon's names from another's
	Root         string        // keeps cni.debts and cni/ through a reboot
	State        string        // keeps leases of the default network, results and the pod CIDR in cni/
	Timeout      time.Duration // of one chain of plugins, ADD or DEL; zero = 60 s
	Step         step.Hook
}

// PodCIDR is a subnet of the default network that only the kubelet names: as long as it has not, no
// pod can be connected. A pod that came before would keep a subnet that nobody else in the cluster
// knows.
const PodCIDR = "pod-cidr"

const (
	defaultTimeout = 60 * time.Second
	defaultSubnet  = "10.83.0.0/16"
	ifName         = "eth0"
)

var (
	instanceName = regexp.MustCompile(`^[a-z0-9]{1,8}$`)
	podID        = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
)

// Networks connects pods. It is safe for concurrent use; calls for one pod wait for each other.
type Networks struct {
	c       Config
	step    step.Hook
	folder  *folder
	own     *bridgeNetwork
	debts   *ledger
	turns   keyed.Turns // CNI forbids two operations on one attachment at a time
	probe   *prober
	asker   *asker
	gate    gate
	others  string                  // folder of other runtimes' results
	failure atomic.Pointer[Failure] // the last one
}

// Open reads what is owed and the configuration folder. A folder without a usable network is no
// error, Ready tells.
func Open(ctx context.Context, c Config) (*Networks, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	for _, dir := range []string{c.recordDir(), c.stateDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open networks: %w", err)
		}
	}
	debts, err := openLedger(ctx, c.debtsFile(), c.recordDir())
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

// PodCIDRFile returns where, in a state folder, the pod CIDR is remembered.
func PodCIDRFile(state string) string { return filepath.Join(state, "cni", "pod-cidr") }

func (c *Config) debtsFile() string { return filepath.Join(c.Root, "cni.debts") }
func (c *Config) recordDir() string { return filepath.Join(c.Root, "cni") }
func (c *Config) stateDir() string  { return filepath.Join(c.State, "cni") }
func (c *Config) cacheDir() string  { return filepath.Join(c.State, "cni", "cache") }
func (c *Config) leaseDir() string  { return filepath.Join(c.State, "cni", "leases") }

// Ready returns nil when a pod could be connected now, else a reason for the node's condition, of
// class ErrUnavailable. It looks at the folder, the plugins and the routes as they are, and at what
// the plugins last said of themselves. It waits for no plugin but a moment for the first answer
// after a change of the network.
func (n *Networks) Ready() error {
	w, err := n.current(context.Background())
	if err != nil {
		return err
	}
	return n.usable(w)
}

// current returns the network that a pod is connected to now.
func (n *Networks) current(ctx context.Context) (*network, error) {
	w, err := n.folder.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	n.probe.start(w, n.c.BinDirs)
	return w, nil
}

// usable tells why pods cannot be connected to w now.
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

// complete names a plugin of w that is missing or unfit.
func (n *Networks) complete(w *network) error {
	for _, plugin := range w.needs {
		if _, err := findPlugin(plugin, n.c.BinDirs); err != nil {
			return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
		}
	}
	if err := n.probe.verdict(w, n.c.BinDirs); err != nil {
		return fmt.Errorf("network %s: %w: %w", w.name, err, errdefs.ErrUnavailable)
	}
	return nil
}

// SetPodCIDR makes cidr, one prefix or a comma separated pair of both families, the subnet of the
// default network (CRI UpdateRuntimeConfig network_config.pod_cidr). It survives a restart of the
// daemon. An empty cidr changes nothing. Errors: ErrInvalidArgument; ErrFailedPrecondition while
// pods are attached to the default network in another subnet.
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

// Debts returns the ids of pods with an ADD begun and no DEL that succeeded, sorted. Connected pods
// are among them.
func (n *Networks) Debts() []string { return n.debts.ids() }

// NewNetNS is the function NewNetNS and passes its step.
func (n *Networks) NewNetNS(path string) error {
	if err := NewNetNS(path); err != nil {
		return err
	}
	n.step.Pass("cni.netns.created")
	return nil
}

// PinNetNS is the function PinNetNS and passes the step of NewNetNS.
func (n *Networks) PinNetNS(path string, ns *os.File) error {
	if err := PinNetNS(path, ns); err != nil {
		return err
	}
	n.step.Pass("cni.netns.created")
	return nil
}

// RemoveNetNS is the function RemoveNetNS and passes its step.
func (n *Networks) RemoveNetNS(path string) error {
	if err := RemoveNetNS(path); err != nil {
		return err
	}
	n.step.Pass("netns.removed")
	return nil
}

// parseSubnets reads a CIDR or a comma separated pair of CIDRs, at most one of each family, large
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

// Dial is the function Dial, for who knows a network as an interface.
func (n *Networks) Dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error) {
	return Dial(ctx, netns, port)
}
