package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/bridge"
)

// What the default network reads from the kernel about links, addresses and routes, and the bridge
// that it prepares for plugins. Dumps are small, or made only while the bridge does not exist.

// dumpTries is how often an interrupted dump is tried before the interruption becomes an error.
const dumpTries = 5

func dump[T any](ask func() ([]T, error)) ([]T, error) {
	for i := 1; ; i++ {
		all, err := ask()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == dumpTries {
			return all, err
		}
	}
}

func isGone(err error) bool {
	return errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV)
}

// link returns the bridge, nil when there is none.
func (b *bridgeNetwork) link() (netlink.Link, error) {
	l, err := netlink.LinkByName(b.bridge)
	if isGone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", b.bridge, err)
	}
	return l, nil
}

// index returns the index of the bridge, -1 when there is none.
func (b *bridgeNetwork) index() (int, error) {
	l, err := b.link()
	if l == nil || err != nil {
		return -1, err
	}
	return l.Attrs().Index, nil
}

// attached returns the number of ports of the bridge.
func (b *bridgeNetwork) attached() (int, error) {
	l, err := b.link()
	if l == nil || err != nil {
		return 0, err
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return 0, fmt.Errorf("list links: %w", err)
	}
	n := 0
	for _, port := range links {
		if port.Attrs().MasterIndex == l.Attrs().Index {
			n++
		}
	}
	return n, nil
}

func (b *bridgeNetwork) removeBridge() error {
	l, err := b.link()
	if l == nil || err != nil {
		return err
	}
	if err := netlink.LinkDel(l); err != nil && !isGone(err) {
		return fmt.Errorf("remove bridge %s: %w", b.bridge, err)
	}
	return nil
}

// survey inspects our bridge. serving: it has a gateway address of subnets, so they were already
// found to overlap nothing. stale: the bridge, if it has another address, which the bridge plugin
// would not change, and no ports. An error while pods use another address.
func (b *bridgeNetwork) survey(subnets []netip.Prefix) (serving bool, stale netlink.Link, err error) {
	l, err := b.link()
	if l == nil || err != nil {
		return false, nil, err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return false, nil, fmt.Errorf("addresses of %s: %w", b.bridge, err)
	}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if !ok || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if isGateway(p, subnets) {
			serving = true
			continue
		}
		busy, err := b.attached()
		if err != nil {
			return false, nil, err
		}
		if busy > 0 {
			return false, nil, fmt.Errorf("bridge %s serves %d pods in %s, not in %s",
				b.bridge, busy, p.Masked(), joinPrefixes(subnets))
		}
		return false, l, nil
	}
	return serving, nil, nil
}

// isGateway reports whether p is the gateway address of one of subnets.
func isGateway(p netip.Prefix, subnets []netip.Prefix) bool {
	for _, s := range subnets {
		if p == gateway(s) {
			return true
		}
	}
	return false
}

// overlap returns an error that names a route, not of our bridge, that overlaps subnets; nil if
// there is none.
func (b *bridgeNetwork) overlap(subnets []netip.Prefix) error {
	before, err := b.index()
	if err != nil {
		return err
	}
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	// Pods come concurrently: another one may have created the bridge meanwhile.
	after, err := b.index()
	if err != nil {
		return err
	}
	for _, r := range routes {
		p, ok := prefixOf(r.Dst)
		if !ok || p.Bits() == 0 || r.LinkIndex == before || r.LinkIndex == after || p.Addr().IsLinkLocalUnicast() ||
			p.Addr().IsMulticast() {
			continue
		}
		for _, s := range subnets {
			if s.Overlaps(p) {
				return fmt.Errorf("subnet %s overlaps the route %s%s; choose another subnet", s, p, linkSuffix(r.LinkIndex))
			}
		}
	}
	return nil
}

func linkSuffix(index int) string {
	l, err := netlink.LinkByIndex(index)
	if index == 0 || err != nil {
		return ""
	}
	return " of " + l.Attrs().Name
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if a = a.Unmap(); a.BitLen() != bits {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}

// uplinkMTU returns the MTU of the default route's link if it is below Ethernet's (a cloud's
// tunnel), otherwise 0: larger packets of pods would depend on ICMP replies.
//
// It asks the kernel for the route to a distant address, not for all routes, because it runs
// whenever the network is read: the route may appear or change long after the daemon's start.
func (b *bridgeNetwork) uplinkMTU() int {
	mtu, err := askUplinkMTU()
	if err != nil { // it cannot be read now: use the last known value
		return int(b.mtu.Load())
	}
	b.mtu.Store(int64(mtu))
	return mtu
}

func askUplinkMTU() (int, error) {
	for _, address := range world {
		routes, err := netlink.RouteGet(address)
		if isShortage(err) {
			return 0, err
		}
		if err != nil || len(routes) == 0 { // no route, or the host drops packets to this address
			continue
		}
		l, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if isShortage(err) {
			return 0, err
		}
		if err == nil && l.Attrs().MTU >= 576 && l.Attrs().MTU < 1500 {
			return l.Attrs().MTU, nil
		}
		return 0, nil
	}
	return 0, nil
}

// isShortage reports whether err is a temporary lack of resources, which says nothing about the
// request.
func isShortage(err error) bool {
	for _, short := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, short) {
			return true
		}
	}
	return false
}

// world are distant addresses: one that nobody uses (RFC 5737) and that hardly any host has a
// special route for, and an ordinary one in case the host drops packets to the first. No packet is
// sent to them.
var world = []net.IP{net.IPv4(192, 0, 2, 1), net.IPv4(1, 1, 1, 1)}

// gateway returns the address that host-local uses as the gateway of a subnet: the first.
func gateway(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
}

// raise creates the bridge with its IPv6 gateway addresses before the bridge plugin does. For
// addresses that the plugin adds, the kernel runs duplicate address detection for up to two
// seconds, and the first pods would have no IPv6 meanwhile. The plugin accepts a bridge and
// addresses that already exist. raise may run concurrently.
func (b *bridgeNetwork) raise(ctx context.Context, subnets []netip.Prefix) error {
	first := &bridge.Bridge{Name: b.bridge, MTU: b.uplinkMTU()}
	for _, s := range subnets {
		if s.Addr().Is6() {
			first.Gateways = append(first.Gateways, gateway(s))
		}
	}
	if len(first.Gateways) == 0 {
		return nil
	}
	_, err := first.Ensure(ctx)
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
