package cni

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const dualSubnet = "10.85.0.0/24,fd85::/64"

// dualStack gives the default network IPv4 and IPv6.
func dualStack(c *Config) { c.Subnet = dualSubnet }

// dialOnce connects once, from the calling thread's namespace.
func dialOnce(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 30*time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

// TestIPv6AtOnce: the kernel runs duplicate detection for a new IPv6 address for one or two
// seconds, and does not use the address meanwhile. The first pods must not wait for that: host,
// pods and gateway are reachable at once.
func TestIPv6AtOnce(t *testing.T) {
	h := newHost(t, withDefault(t), dualStack)
	before := h.snapshot()
	p := h.pod("p1")
	res := h.setup(p)
	if tentative := tentativeAddresses(t, h.n.own.bridge); tentative != "" {
		t.Errorf("the bridge cannot use %s yet", tentative)
	}
	insideNetNS(t, p.NetNS, func() error {
		if tentative := tentativeAddresses(t, ifName); tentative != "" {
			t.Errorf("the pod cannot use %s yet", tentative)
		}
		return nil
	})
	ip := res.IPs[1].String()
	serve(t, p.NetNS, ":80")
	if err := dialOnce("[" + ip + "]:80"); err != nil {
		t.Errorf("from the host to the pod: %v", err)
	}
	serve(t, "/proc/thread-self/ns/net", "[fd85::1]:80")
	insideNetNS(t, p.NetNS, func() error {
		if err := dialOnce("[fd85::1]:80"); err != nil {
			t.Errorf("from the pod to its gateway: %v", err)
		}
		return nil
	})
	q := h.pod("p2")
	h.setup(q)
	insideNetNS(t, q.NetNS, func() error {
		if err := dialOnce("[" + ip + "]:80"); err != nil {
			t.Errorf("from pod to pod: %v", err)
		}
		return nil
	})
	for _, pod := range []Pod{p, q} {
		h.teardown(pod)
		if err := h.n.RemoveNetNS(pod.NetNS); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.wantSnapshot(before)
}

// tentativeAddresses lists the IPv6 addresses, except link-local ones, that are still in duplicate
// detection.
func tentativeAddresses(t *testing.T, name string) string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 && !a.IP.IsLinkLocalUnicast() {
			found = append(found, a.IP.String())
		}
	}
	return strings.Join(found, " ")
}

// TestIPv6AtOnceWhereAllLook: the same when all interfaces of the host run duplicate detection.
func TestIPv6AtOnceWhereAllLook(t *testing.T) {
	h := newHost(t, withDefault(t), dualStack)
	writeTestFile(t, "/proc/sys/net/ipv6/conf/all/accept_dad", "1", 0)
	t.Cleanup(func() { writeTestFile(t, "/proc/sys/net/ipv6/conf/all/accept_dad", "0", 0) })
	p := h.pod("p1")
	ip := h.setup(p).IPs[1].String()
	serve(t, p.NetNS, ":80")
	if err := dialOnce("[" + ip + "]:80"); err != nil {
		t.Errorf("from the host to the pod: %v", err)
	}
	h.teardown(p)
}

// TestIPv6SwitchedOff: if IPv6 is disabled, an IPv6 subnet cannot be served, and the error says
// what to do.
func TestIPv6SwitchedOff(t *testing.T) {
	h := newHost(t, withDefault(t), dualStack)
	writeTestFile(t, "/proc/sys/net/ipv6/conf/default/disable_ipv6", "1", 0)
	t.Cleanup(func() { writeTestFile(t, "/proc/sys/net/ipv6/conf/default/disable_ipv6", "0", 0) })
	p := h.pod("p1")
	_, err := h.n.Setup(t.Context(), p)
	wantErr(t, err, errdefs.ErrUnavailable, "fd85::1/64", "disable_ipv6")
	if d := h.n.Debts(); len(d) > 0 {
		t.Errorf("debts %v", d)
	}
}

// TestHostPortOfAFamily: a port on 0.0.0.0 is for all IPv4 addresses of the host, one on :: for all
// IPv6 addresses, and one without an address for both. So the same number may lead to two ports of
// a pod.
func TestHostPortOfAFamily(t *testing.T) {
	for _, nft := range []bool{true, false} {
		t.Run(fmt.Sprintf("nft=%v", nft), func(t *testing.T) {
			h := newHost(t, withDefault(t), dualStack)
			h.useNft(nft)
			p := h.pod("p1")
			p.Ports = []Port{
				{HostPort: 18080, ContainerPort: 80, HostIP: "0.0.0.0"}, {HostPort: 18080, ContainerPort: 81, HostIP: "::"},
				{HostPort: 18081, ContainerPort: 80, HostIP: "0.0.0.0"}, {HostPort: 18082, ContainerPort: 81, HostIP: "::"},
				{HostPort: 18083, ContainerPort: 80}, {HostPort: 18083, ContainerPort: 80},
				{HostPort: 18084, ContainerPort: 81, HostIP: "::ffff:0.0.0.0"},
			}
			h.setup(p)
			greet(t, p.NetNS, ":80", "eighty")
			greet(t, p.NetNS, ":81", "eighty-one")
			for _, c := range []struct {
				port   string
				v4, v6 string // "" = no reply
			}{
				{"18080", "eighty", "eighty-one"}, {"18081", "eighty", ""}, {"18082", "", "eighty-one"}, {"18083", "eighty", "eighty"}, {"18084", "eighty-one", ""},
			} {
				for addr, want := range map[string]string{"10.85.0.1:": c.v4, "[fd85::1]:": c.v6} {
					got, err := askOnce(addr + c.port)
					if got != want || (err != nil) != (want == "") {
						t.Errorf("%s%s answers %q, want %q: %v", addr, c.port, got, want, err)
					}
				}
			}
			h.teardown(p)
		})
	}
}

// greet replies to every connection to addr in the namespace with a text.
func greet(t *testing.T, netns, addr, text string) {
	t.Helper()
	insideNetNS(t, netns, func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, text)
				c.Close()
			}
		}()
		return nil
	})
}

func askOnce(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 30*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	data, err := io.ReadAll(c)
	return string(data), err
}
