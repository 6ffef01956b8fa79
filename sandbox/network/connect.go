package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/log"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/sandbox/layout"
	"github.com/cribox/cribox/sandbox/pause"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
	"github.com/cribox/cribox/sandbox/userns"
)

func (c *Connector) Connect(ctx context.Context, p *table.PodEntry) ([]netip.Addr, error) {
	if spec.HostNetwork(p.Config) {
		return nil, nil
	}
	lock, err := c.podLock(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	network := c.networkOf(p)
	network.Lock = lock
	var result cni.Result
	err = telemetry.Part(ctx, "cni.setup", func(ctx context.Context) (err error) {
		result, err = c.Network.Setup(ctx, network)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect pod %s: %w", p.ID, err)
	}
	return result.IPs, nil
}

// networkOf says what the network plugins are told of a pod.
func (c *Connector) networkOf(p *table.PodEntry) cni.Pod {
	d := p.Config.GetMetadata()
	n := cni.Pod{ID: p.ID, Name: d.GetName(), Namespace: d.GetNamespace(), UID: d.GetUid(), NetNS: c.layout.NetNS(p.ID),
		Annotations: p.Config.GetAnnotations(), CgroupParent: p.Config.GetLinux().GetCgroupParent()}
	for _, port := range p.Config.GetPortMappings() {
		if port.GetHostPort() <= 0 {
			continue // the kubelet lists container ports too
		}
		one := cni.Port{Protocol: strings.ToLower(port.GetProtocol().String()),
			HostPort: port.GetHostPort(), ContainerPort: port.GetContainerPort(), HostIP: hostIP(port)}
		if !slices.Contains(n.Ports, one) {
			n.Ports = append(n.Ports, one)
		}
	}
	if dns := p.Config.GetDnsConfig(); dns != nil {
		n.DNS = cni.DNS{Servers: spec.DNSWords(dns.GetServers()), Searches: spec.DNSWords(dns.GetSearches()),
			Options: spec.DNSWords(dns.GetOptions())}
	}
	return n
}

// hostIP is the host's address of a mapping in its one usual form, "" for none.
func hostIP(port *runtimeapi.PortMapping) string {
	a, err := netip.ParseAddr(port.GetHostIp())
	if err != nil {
		return port.GetHostIp()
	}
	return a.Unmap().String()
}

// Disconnect gives the pod's addresses back and removes its network namespace. A plugin that fails
// is no error: it is asked again, without the namespace, until it has given back what it owes.
func (c *Connector) Disconnect(ctx context.Context, p *table.PodEntry) error {
	if r, ok := c.table.States.Get(p.ID); ok && r.NetNS == "" { // the host's; the request may not be readable
		return nil
	}
	lock, err := c.podLock(ctx, p.ID)
	if err != nil {
		return err
	}
	defer lock.Close()
	network := c.networkOf(p)
	network.Lock = lock
	err = telemetry.Part(ctx, "cni.teardown", func(ctx context.Context) error { return c.Network.Teardown(ctx, network) })
	if err != nil {
		log.G(ctx).WithError(err).WithField("step", "cni").Warn("cannot release the network of the pod yet; will retry")
		c.LookAgain()
	}
	return c.Network.RemoveNetNS(c.layout.NetNS(p.ID))
}

// MakeNamespaces makes the namespaces that are there before the pause process: the network's, and
// for a pod that has one the user namespace that it belongs to.
func (c *Connector) MakeNamespaces(p *table.PodEntry) error {
	uids, gids, ok := spec.UserNamespace(p.Config)
	if !ok {
		if spec.HostNetwork(p.Config) {
			return nil
		}
		return c.Network.NewNetNS(c.layout.NetNS(p.ID))
	}
	ns, err := userns.New(pause.Binary(), userns.IDs(uids), userns.IDs(gids), !spec.HostNetwork(p.Config))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := userns.Pin(ns.User, c.layout.UserNS(p.ID)); err != nil {
		return err
	}
	c.step.Pass("pod.userns")
	if ns.Net == nil {
		return nil
	}
	return c.Network.PinNetNS(c.layout.NetNS(p.ID), ns.Net)
}

// Network is what this package needs of the networks themselves, see cni.Networks.
type Network interface {
	Ready() error
	Status(ctx context.Context) cni.Status
	SetPodCIDR(cidr string) error

	NewNetNS(path string) error
	PinNetNS(path string, ns *os.File) error
	RemoveNetNS(path string) error
	Setup(ctx context.Context, pod cni.Pod) (cni.Result, error)
	Teardown(ctx context.Context, pod cni.Pod) error
	Dial(ctx context.Context, netns string, port uint16) (*net.TCPConn, error)

	Debts() []string
	CollectGarbage(ctx context.Context, connected []string) error
}

// Connector connects pods and gives back what they held of the network.
type Connector struct {
	Network
	layout  layout.Layout
	table   *table.Table
	peers   func(context.Context) ([]int, error)
	step    step.Hook
	collect chan struct{} // asks the collector to look again
}

// New returns a Connector. peers returns the processes of the runtime itself, which nobody ends.
func New(t *table.Table, n Network, peers func(context.Context) ([]int, error), step step.Hook) *Connector {
	return &Connector{Network: n, layout: t.Layout, table: t, peers: peers, step: step, collect: make(chan struct{}, 1)}
}
