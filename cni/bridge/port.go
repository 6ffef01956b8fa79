package bridge

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Port is the connection of one container: a pair of links, one end on the bridge, the other in the
// network namespace of the container.
type Port struct {
	NetNS     string // path of the pinned namespace; "" = it is gone
	Bridge    string // name of the bridge
	ID        string // of the container
	Inside    string // name of the link in the namespace
	Addresses []netip.Prefix
	// Routes are what the container reaches through the gateway of the same family.
	Routes   []netip.Prefix
	Gateways []netip.Addr

	random net.HardwareAddr // the hardware address of a container without IPv4
}

// Name returns the name of the link on the host, which follows from bridge and container.
// NetworkManager leaves links alone that begin with veth.
func (p *Port) Name() string {
	return fmt.Sprintf("veth%x", sha256.Sum256([]byte(p.Bridge+"/"+p.ID)))[:unix.IFNAMSIZ-1]
}

// MAC returns the hardware address of the container. It follows from the IPv4 address: whoever
// remembers the neighbour that had the address before reaches the new one.
func (p *Port) MAC() net.HardwareAddr {
	for _, a := range p.Addresses {
		if a.Addr().Is4() {
			return append(net.HardwareAddr{0x0a, 0x58}, a.Addr().AsSlice()...)
		}
	}
	if p.random == nil {
		p.random = randomMAC()
	}
	return p.random
}

// Plug makes the pair of links, with the end on the host up and on the bridge, and the other in the
// namespace. The kernel does that in one step. It returns the end on the host.
func (b *Bridge) Plug(ctx context.Context, bridge Link, p *Port) (Link, error) {
	ns, err := os.Open(p.NetNS)
	if err != nil {
		return Link{}, fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	if err := b.pair(bridge.Index, p, ns); err != nil {
		return Link{}, fmt.Errorf("make links %s and %s: %w", p.Name(), p.Inside, kindError(err, "veth"))
	}
	ignoreAdvertisements(p.Name())
	h, err := handle(ctx)
	if err != nil {
		return Link{}, err
	}
	defer h.Close()
	l, err := h.LinkByName(p.Name())
	if err != nil {
		return Link{}, fmt.Errorf("link %s: %w", p.Name(), err)
	}
	if err := h.LinkSetHairpin(l, b.Hairpin); err != nil {
		return Link{}, fmt.Errorf("hairpin of link %s: %w", p.Name(), err)
	}
	return linkOf(l), nil
}

// pair sends the one request that Plug is made of.
func (b *Bridge) pair(bridge int, p *Port, ns *os.File) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Change, msg.Flags = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(p.Name())))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(p.Inside))
	peer.AddRtAttr(unix.IFLA_ADDRESS, p.MAC())
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Fd())))
	if b.MTU > 0 {
		mtu := nl.Uint32Attr(uint32(b.MTU))
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, mtu))
		peer.AddRtAttr(unix.IFLA_MTU, mtu)
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Unplug removes the pair of links, if it exists: by the name on the host, or by the name inside
// for a pair that somebody else has made. inside runs a function on a thread in the namespace.
func (p *Port) Unplug(ctx context.Context, inside func(func() error) error) error {
	h, err := handle(ctx)
	if err != nil {
		return err
	}
	defer h.Close()
	found, err := remove(h, p.Name())
	if found || err != nil || p.NetNS == "" {
		return err
	}
	return inside(func() error {
		h, err := handle(ctx)
		if err != nil {
			return err
		}
		defer h.Close()
		_, err = remove(h, p.Inside)
		return err
	})
}

func remove(h *netlink.Handle, name string) (found bool, err error) {
	l, err := h.LinkByName(name)
	if isGone(err) {
		return false, nil
	}
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !isGone(err) {
		return true, fmt.Errorf("remove link %s: %w", name, err)
	}
	return true, nil
}

// Configure sets up the link inside the namespace. It runs on a thread in the namespace. The
// returned socket can send through the link from outside; nil if the kernel has none.
func (p *Port) Configure(ctx context.Context) (*Announcer, error) {
	h, err := handle(ctx)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, err := h.LinkByName(p.Inside)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", p.Inside, err)
	}
	if err := p.settings(); err != nil {
		return nil, err
	}
	for _, a := range p.Addresses {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return nil, fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("link %s: %w", p.Inside, err)
	}
	for _, r := range p.Routes {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r), Gw: p.gateway(r)}
		if err := h.RouteAdd(route); err != nil {
			return nil, fmt.Errorf("route to %s: %w", r, err)
		}
	}
	return newAnnouncer(l.Attrs().Index, p.MAC(), p.Addresses), nil
}

func (p *Port) gateway(route netip.Prefix) net.IP {
	for _, g := range p.Gateways {
		if g.Is4() == route.Addr().Is4() {
			return g.AsSlice()
		}
	}
	return nil
}

// settings are those of the plugin bridge: no search for duplicates of IPv6 addresses, an
// announcement when the link comes up, and IPv6 only where the container gets such an address.
func (p *Port) settings() error {
	_ = set("net/ipv6/conf/"+p.Inside+"/accept_dad", "0")
	_ = set("net/ipv4/conf/"+p.Inside+"/arp_notify", "1")
	for _, a := range p.Addresses {
		if !a.Addr().Is6() {
			continue
		}
		_ = set("net/ipv6/conf/"+p.Inside+"/ndisc_notify", "1")
		for _, name := range []string{"lo/disable_ipv6", p.Inside + "/disable_ipv6"} {
			if err := set("net/ipv6/conf/"+name, "0"); err != nil {
				return err
			}
		}
		return set("net/ipv6/conf/"+p.Inside+"/keep_addr_on_down", "1")
	}
	return nil
}

// upTimeout is how long the kernel may take to let packets pass the bridge: it usually has done so
// when it is asked, and is late only when it has much to do.
const upTimeout = 5 * time.Second

// AwaitUp waits until the bridge lets packets of the link pass.
func AwaitUp(ctx context.Context, host Link) error {
	h, err := handle(ctx)
	if err != nil {
		return err
	}
	defer h.Close()
	if up, err := isUp(h, host); up || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return fmt.Errorf("watch link %s: %w", host.Name, err)
	}
	for { // it may have come up before the subscription
		if up, err := isUp(h, host); up || err != nil {
			return err
		}
		select {
		case _, open := <-updates:
			if !open {
				return fmt.Errorf("watch link %s: the kernel sends no more changes", host.Name)
			}
		case <-ctx.Done():
			return fmt.Errorf("link %s does not come up: %w", host.Name, ctx.Err())
		}
	}
}

func isUp(h *netlink.Handle, host Link) (bool, error) {
	l, err := h.LinkByIndex(host.Index)
	if err != nil {
		return false, fmt.Errorf("link %s: %w", host.Name, err)
	}
	return l.Attrs().OperState == netlink.OperUp, nil
}
