package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// serveUDP answers every packet to addr in the namespace with its own address.
func serveUDP(t *testing.T, netns, addr string) {
	t.Helper()
	insideNetNS(t, netns, func() error {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(append([]byte(addr+" "), buf[:n]...), from)
			}
		}()
		return nil
	})
}

// askUDP returns the answer of serveUDP, from a client whose packets come from always the same port.
func askUDP(from, to string) (string, error) {
	d := net.Dialer{Timeout: 3 * time.Second}
	if from != "" {
		local, err := net.ResolveUDPAddr("udp", from)
		if err != nil {
			return "", err
		}
		d.LocalAddr = local
	}
	c, err := d.Dial("udp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	buf := make([]byte, 128)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// TestPortsOfTheHost: ports of the host lead to the pod in both families, by protocol and address of the
// host: from the host, from another pod, from the pod itself, and from outside, whose address the
// pod sees.
func TestPortsOfTheHost(t *testing.T) {
	h := newHost(t, withDefault(t), dualStack)
	if !h.n.own.masq.works(t.Context()) {
		t.Skip("no nftables: ", h.n.own.masq.reason())
	}
	world := h.pod("world")
	connectWorld(t, world.NetNS)
	p, q := h.pod("p1"), h.pod("p2")
	p.Ports = []Port{
		{HostPort: 18080, ContainerPort: 80},
		{HostPort: 18081, ContainerPort: 81, HostIP: "198.51.100.1"},
		{HostPort: 18082, ContainerPort: 82, HostIP: "::"},
		{HostPort: 18053, ContainerPort: 53, Protocol: "UDP"},
		{HostPort: 18090, ContainerPort: 90, Protocol: "SCTP"},
	}
	ips := h.setup(p).IPs
	h.setup(q)
	for _, port := range []string{":80", ":81", ":82"} {
		serve(t, p.NetNS, port)
	}
	serveUDP(t, p.NetNS, ":53")
	here, outside := "/proc/thread-self/ns/net", world.NetNS
	for _, row := range []struct {
		from, to, sees string // sees: the client's address for the pod; "-": no answer
	}{
		{here, "127.0.0.1:18080", "10.85.0.1"}, {here, "198.51.100.1:18080", ""}, {here, "[fd85::1]:18080", ""},
		{q.NetNS, "10.85.0.1:18080", "10.85.0.3"}, {q.NetNS, "[fd85::1]:18080", "fd85::3"}, {q.NetNS, "198.51.100.1:18081", "10.85.0.3"},
		{p.NetNS, "10.85.0.1:18080", "10.85.0.1"}, {p.NetNS, "[fd85::1]:18080", "fd85::1"},
		{outside, "198.51.100.1:18080", "198.51.100.2"}, {outside, "198.51.100.1:18081", "198.51.100.2"},
		{q.NetNS, "[fd85::1]:18082", "fd85::3"},
		{q.NetNS, "10.85.0.1:18081", "-"}, {q.NetNS, "10.85.0.1:18082", "-"}, {outside, "198.51.100.1:18082", "-"},
		{outside, "198.51.100.2:18080", "-"}, {q.NetNS, net.JoinHostPort(ips[0].String(), "18080"), "-"},
	} {
		insideNetNS(t, row.from, func() error {
			got, err := ask(row.to)
			if row.sees == "-" && err == nil || row.sees != "-" && (err != nil || row.sees != "" && got != row.sees) {
				t.Errorf("from %s to %s: the pod sees %q, want %q: %v", row.from, row.to, got, row.sees, err)
			}
			return nil
		})
	}
	for _, to := range []string{"127.0.0.1:18053", "198.51.100.1:18053"} {
		if got, err := askUDP("", to); err != nil || got != ":53 hello" {
			t.Errorf("UDP to %s: %q %v", to, got, err)
		}
	}
	insideNetNS(t, outside, func() error { return sctpConnect([4]byte{198, 51, 100, 1}, 18090) })
	h.teardown(p)
	h.teardown(q)
}

// sctpConnect sends an INIT and wants an answer of the pod, which has no SCTP: that it refuses shows
// that the packet has come there. A kernel without SCTP is no error.
func sctpConnect(to [4]byte, port int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.Connect(s, &unix.SockaddrInet4{Addr: to, Port: port}); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("SCTP: %w", err)
	}
	return nil
}

// TestPortOfTwo: of two pods that want the same port of the host, the first has it; when it goes,
// the second.
func TestPortOfTwo(t *testing.T) {
	h := newHost(t, withDefault(t))
	if !h.n.own.masq.works(t.Context()) {
		t.Skip("no nftables: ", h.n.own.masq.reason())
	}
	p, q := h.pod("p1"), h.pod("p2")
	p.Ports = []Port{{HostPort: 18053, ContainerPort: 53, Protocol: "udp"}}
	q.Ports = []Port{{HostPort: 18053, ContainerPort: 54, Protocol: "udp"}}
	h.setup(p)
	h.setup(q)
	serveUDP(t, p.NetNS, ":53")
	serveUDP(t, q.NetNS, ":54")
	// Always the same client: the kernel must forget where its packets went before.
	wantAnswer := func(want string) {
		t.Helper()
		if got, err := askUDP("10.83.0.1:9999", "10.83.0.1:18053"); err != nil || got != want {
			t.Errorf("%q %v, want %q", got, err, want)
		}
	}
	wantAnswer(":53 hello")
	h.teardown(p)
	wantAnswer(":54 hello")
	h.setup(p)
	wantAnswer(":54 hello")
	h.teardown(q)
	wantAnswer(":53 hello")
	h.teardown(p)
}

// TestSEC81LoopbackOfTheHost: a pod that may change its routes sends packets to 127.0.0.1 of the
// host. They do not arrive, although the bridge lets packets from there out for host ports.
func TestSEC81LoopbackOfTheHost(t *testing.T) {
	h := newHost(t, withDefault(t))
	if !h.n.own.masq.works(t.Context()) {
		t.Skip("no nftables: ", h.n.own.masq.reason())
	}
	p := h.pod("p1")
	p.Ports = []Port{{HostPort: 18080, ContainerPort: 80}}
	h.setup(p)
	serve(t, "/proc/thread-self/ns/net", "127.0.0.1:18999")
	insideNetNS(t, p.NetNS, func() error { return routeLoopbackOut() })
	reach := func() error {
		var err error
		insideNetNS(t, p.NetNS, func() error {
			var c net.Conn
			d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 83, 0, 2)}}
			if c, err = d.Dial("tcp", "127.0.0.1:18999"); err == nil {
				c.Close()
			}
			return nil
		})
		return err
	}
	if err := reach(); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a pod reaches a program at the host's 127.0.0.1: %v", err)
	}
	h.teardown(p)
}

// routeLoopbackOut has the calling thread's namespace send packets to 127.0.0.1 to its gateway.
func routeLoopbackOut() error {
	l, err := netlink.LinkByName(ifName)
	if err != nil {
		return err
	}
	_, one, _ := net.ParseCIDR("127.0.0.1/32")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: one.IP, Mask: net.CIDRMask(8, 32)}}); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+ifName+"/route_localnet", []byte("1"), 0o644); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: one, LinkIndex: l.Attrs().Index, Gw: net.IPv4(10, 83, 0, 1)})
}
