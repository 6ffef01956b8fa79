package cni

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gateway returns the address that host-local uses as the gateway of a subnet: the first.
func gateway(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
}

// raise creates the bridge with its IPv6 gateway addresses before the bridge plugin does. For
// addresses that the plugin adds, the kernel runs duplicate address detection for up to two
// seconds, and the first pods would have no IPv6 meanwhile. Nobody else can have these addresses on
// our own bridge, so raise adds them without detection. The plugin accepts a bridge and addresses
// that already exist. raise may run concurrently.
func (b *bridgeNetwork) raise(subnets []netip.Prefix) error {
	for _, s := range subnets {
		if !s.Addr().Is6() {
			continue
		}
		l, err := b.makeBridge()
		if err != nil {
			return err
		}
		err = addGateway(l, gateway(s))
		if errors.Is(err, unix.EACCES) {
			err = fmt.Errorf("%w: IPv6 is disabled on this host; set net.ipv6.conf.default.disable_ipv6 to 0", err)
		}
		if err != nil {
			return fmt.Errorf("address %s of bridge %s: %w", gateway(s), b.bridge, err)
		}
	}
	return nil
}

// makeBridge returns the bridge, and creates it, like the plugin does, if necessary. It sets the
// hardware address: otherwise the kernel would change it with each pod that is added or removed.
func (b *bridgeNetwork) makeBridge() (netlink.Link, error) {
	l, err := b.link()
	if l != nil || err != nil {
		return l, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = b.bridge, b.uplinkMTU(), newHardwareAddr()
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make bridge %s: %w", b.bridge, err)
	}
	l, err = b.link()
	if err == nil && l == nil {
		err = fmt.Errorf("bridge %s was deleted by another process: %w", b.bridge, unix.ENODEV)
	}
	return l, err
}

// newHardwareAddr returns a random, locally administered unicast address.
func newHardwareAddr() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// addGateway adds an IPv6 address, without duplicate detection, to the bridge, if it does not have
// it.
func addGateway(l netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
