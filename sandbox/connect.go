package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/log"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/cni"
	"github.com/cribox/cribox/sandbox/pause"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
	"github.com/cribox/cribox/sandbox/userns"
)

func (w *wires) connect(ctx context.Context, p *table.PodEntry) ([]netip.Addr, error) {
	if spec.HostNetwork(p.Config) {
		return nil, nil
	}
	lock, err := w.podLock(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	network := w.networkOf(p)
	network.Lock = lock
	result, err := w.network.Setup(ctx, network)
	if err != nil {
		return nil, fmt.Errorf("connect pod %s: %w", p.ID, err)
	}
	return result.IPs, nil
}

// networkOf says what the network plugins are told of a pod.
func (w *wires) networkOf(p *table.PodEntry) cni.Pod {
	d := p.Config.GetMetadata()
	n := cni.Pod{ID: p.ID, Name: d.GetName(), Namespace: d.GetNamespace(), UID: d.GetUid(), NetNS: w.layout.NetNS(p.ID),
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
		n.DNS = cni.DNS{Servers: spec.DNSWords(dns.GetServers()), Searches: spec.DNSWords(dns.GetSearches()), Options: spec.DNSWords(dns.GetOptions())}
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

// disconnect gives the pod's addresses back and removes its network namespace. A plugin that fails
// is no error: it is asked again, without the namespace, until it has given back what it owes.
func (w *wires) disconnect(ctx context.Context, p *table.PodEntry) error {
	if r, ok := w.states.Get(p.ID); ok && r.NetNS == "" { // the host's; the request may not be readable
		return nil
	}
	lock, err := w.podLock(ctx, p.ID)
	if err != nil {
		return err
	}
	defer lock.Close()
	network := w.networkOf(p)
	network.Lock = lock
	if err := w.network.Teardown(ctx, network); err != nil {
		log.G(ctx).WithError(err).WithField("step", "cni").Warn("the network of the pod is not given back yet; will be tried again")
		w.lookAgain()
	}
	return w.network.RemoveNetNS(w.layout.NetNS(p.ID))
}

// makeNamespaces makes the namespaces that are there before the pause process: the network's, and
// for a pod that has one the user namespace that it belongs to.
func (w *wires) makeNamespaces(p *table.PodEntry) error {
	uids, gids, ok := spec.UserNamespace(p.Config)
	if !ok {
		if spec.HostNetwork(p.Config) {
			return nil
		}
		return w.network.NewNetNS(w.layout.NetNS(p.ID))
	}
	ns, err := userns.New(pause.Binary(), userns.IDs(uids), userns.IDs(gids), !spec.HostNetwork(p.Config))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := userns.Pin(ns.User, w.layout.UserNS(p.ID)); err != nil {
		return err
	}
	w.step("pod.userns")
	if ns.Net == nil {
		return nil
	}
	return w.network.PinNetNS(w.layout.NetNS(p.ID), ns.Net)
}
