package bridge

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge is a bridge with an address per subnet, which is the gateway of the containers.
type Bridge struct {
	Name     string
	MTU      int // of the bridge and of all links to it; 0 = the kernel's default
	Hairpin  bool
	Gateways []netip.Prefix
}

// Link is an end of a pair of links.
type Link struct {
	Index int
	Name  string
	MAC   net.HardwareAddr
}

// Ensure makes the bridge and whatever it lacks, and lets the host forward packets. An existing
// bridge with these addresses is used as it is. It may run concurrently.
func (b *Bridge) Ensure(ctx context.Context) (Link, error) {
	h, err := handle(ctx)
	if err != nil {
		return Link{}, err
	}
	defer h.Close()
	l, err := b.make(h)
	if err != nil {
		return Link{}, err
	}
	for _, g := range b.Gateways {
		if err := addGateway(h, l, g); err != nil {
			return Link{}, fmt.Errorf("address %s of bridge %s: %w", g, b.Name, err)
		}
		if err := forward(g.Addr().Is6()); err != nil {
			return Link{}, err
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return Link{}, fmt.Errorf("bridge %s: %w", b.Name, err)
		}
	}
	return linkOf(l), nil
}

// handle returns a netlink socket whose every wait ends with ctx.
func handle(ctx context.Context) (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := h.SetSocketTimeout(patience(ctx)); err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// maxPatience is how long a reply of the kernel is waited for when ctx has no deadline.
const maxPatience = time.Minute

func patience(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return maxPatience
	}
	return max(time.Until(end), time.Millisecond)
}

// make returns the bridge. It sets the hardware address of a new one: otherwise the kernel would
// change it with each link that is added or removed.
func (b *Bridge) make(h *netlink.Handle) (netlink.Link, error) {
	l, err := h.LinkByName(b.Name)
	if isGone(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = b.Name, b.MTU, randomMAC()
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", b.Name, kindError(err, "bridge"))
		}
		ignoreAdvertisements(b.Name)
		l, err = h.LinkByName(b.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	if l.Type() != "bridge" {
		return nil, fmt.Errorf("link %s is not a bridge", b.Name)
	}
	return l, nil
}

// kindError adds to the error of a new link what is wrong when the kernel does not know its kind.
func kindError(err error, module string) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: this kernel lacks the module %s: %w", err, module, errdefs.ErrUnavailable)
	}
	return err
}

func linkOf(l netlink.Link) Link {
	return Link{Index: l.Attrs().Index, Name: l.Attrs().Name, MAC: l.Attrs().HardwareAddr}
}

// addGateway adds an address to the bridge if it does not have it. Nobody else can have an IPv6
// address of the bridge, so the kernel need not look for duplicates, which takes two seconds.
func addGateway(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	err := h.AddrAdd(l, addr)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if errors.Is(err, unix.EACCES) && p.Addr().Is6() {
		return fmt.Errorf("%w: IPv6 is disabled on this host; set net.ipv6.conf.default.disable_ipv6 to 0: %w",
			err, errdefs.ErrUnavailable)
	}
	return err
}

// randomMAC returns a random, locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isGone(err error) bool {
	return errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV)
}

// forward lets the host forward packets of a family.
func forward(ipv6 bool) error {
	if ipv6 {
		return set("net/ipv6/conf/all/forwarding", "1")
	}
	return set("net/ipv4/ip_forward", "1")
}

// ignoreAdvertisements keeps a link from taking routes from router advertisements of containers. A
// host without IPv6 has no such setting.
func ignoreAdvertisements(link string) { _ = set("net/ipv6/conf/"+link+"/accept_ra", "0") }

// LetLoopbackOut lets packets from 127.0.0.1 leave through the bridge, for ports of the host that
// are forwarded to a container.
func LetLoopbackOut(bridge string) error {
	return set("net/ipv4/conf/"+bridge+"/route_localnet", "1")
}

// set writes a setting of the kernel, for the network namespace of the calling thread, if it has
// another value: /proc/sys may be read-only.
func set(name, value string) error {
	path := "/proc/sys/" + name
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(bytes.TrimSpace(old), []byte(value)) {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}
