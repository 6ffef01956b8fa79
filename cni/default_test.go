package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/cribox/cribox/cni/namespace"
)

func TestDefaultNetwork(t *testing.T) {
	h := newHost(t, withDefault(t))
	before := h.snapshot()
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	p := h.pod("p1")
	res := h.setup(p)
	if len(res.IPs) != 1 || !netip.MustParsePrefix(defaultSubnet).Contains(res.IPs[0]) {
		t.Fatalf("addresses %v", res.IPs)
	}
	serve(t, p.NetNS, ":80")
	if _, err := ask(res.IPs[0].String() + ":80"); err != nil {
		t.Fatalf("pod is not reachable from the host: %v", err)
	}
	if _, err := os.Stat(h.c.ledgerFile("p1")); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(h.c.debtsFile()); err != nil || st.Size() != 0 {
		t.Fatalf("the default network wrote a synced debt: %v %v", st, err)
	}
	wantErr(t, h.n.RemoveDefault(t.Context()), errdefs.ErrFailedPrecondition)
	_, err := h.n.Setup(t.Context(), p)
	wantErr(t, err, errdefs.ErrAlreadyExists)
	h.teardown(p)
	h.teardown(p)
	if err := h.n.RemoveNetNS(p.NetNS); err != nil {
		t.Fatal(err)
	}
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.wantSnapshot(before)
}

func (c *Config) ledgerFile(pod string) string { return c.recordDir() + "/" + pod }

func TestHostPort(t *testing.T) {
	h := newHost(t, withDefault(t))
	p := h.pod("p1")
	p.Ports = []Port{{Protocol: "TCP", HostPort: 18080, ContainerPort: 80}, {ContainerPort: 81}}
	res := h.setup(p)
	serve(t, p.NetNS, ":80")
	gateway := "10.83.0.1"
	for _, addr := range []string{"127.0.0.1:18080", gateway + ":18080"} {
		if _, err := ask(addr); err != nil {
			t.Errorf("host port at %s: %v", addr, err)
		}
	}
	// From another pod, and from the pod itself, through the host's address.
	q := h.pod("p2")
	h.setup(q)
	for _, netns := range []string{q.NetNS, p.NetNS} {
		insideNetNS(t, netns, func() error {
			_, err := ask(gateway + ":18080")
			return err
		})
	}
	_ = res
	h.teardown(p)
	h.teardown(q)
	if left := strings.Join(rules(t), "\n"); strings.Contains(left, "dnat") {
		t.Fatalf("rules left:\n%s", left)
	}
}

// TestMasquerade: a pod reaches addresses beyond the host with the host's address, and other pods
// with its own.
func TestMasquerade(t *testing.T) {
	h := newHost(t, withDefault(t))
	world := h.pod("world")
	connectWorld(t, world.NetNS)
	serve(t, world.NetNS, "198.51.100.2:80")
	p, q := h.pod("p1"), h.pod("p2")
	ip := h.setup(p).IPs[0]
	h.setup(q)
	serve(t, q.NetNS, ":80")
	wantSeen := func(from, to, want string) {
		t.Helper()
		insideNetNS(t, from, func() error {
			seen, err := ask(to)
			if err == nil && seen != want {
				err = fmt.Errorf("%s sees %s, want %s", to, seen, want)
			}
			return err
		})
	}
	wantSeen(p.NetNS, "198.51.100.2:80", "198.51.100.1")
	wantSeen(p.NetNS, nextIP(ip)+":80", ip.String())

	// Somebody flushes the ruleset: setting up the next pod restores it for all.
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("flush: %v %s", err, out)
	}
	r := h.pod("p3")
	h.setup(r)
	wantSeen(p.NetNS, "198.51.100.2:80", "198.51.100.1")
	for _, pod := range []Pod{p, q, r} {
		h.teardown(pod)
	}
}

// TestNoMasquerade: pods of other nodes see the pod's own address, all others the node's.
func TestNoMasquerade(t *testing.T) {
	h := newHost(t, withDefault(t), func(c *Config) {
		c.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("10.64.0.0/10"), netip.MustParsePrefix("198.51.100.2/32"), netip.MustParsePrefix("fd00::/8")}
	})
	world := h.pod("world")
	connectWorld(t, world.NetNS)
	insideNetNS(t, world.NetNS, func() error {
		address(t, "uplink", "198.51.100.3/24")
		_, pods, _ := net.ParseCIDR(defaultSubnet)
		return netlink.RouteAdd(&netlink.Route{Dst: pods, Gw: net.ParseIP("198.51.100.1")})
	})
	serve(t, world.NetNS, ":80")
	p := h.pod("p1")
	ip := h.setup(p).IPs[0]
	for to, want := range map[string]string{"198.51.100.2:80": ip.String(), "198.51.100.3:80": "198.51.100.1"} {
		insideNetNS(t, p.NetNS, func() error {
			seen, err := ask(to)
			if err == nil && seen != want {
				err = fmt.Errorf("%s sees %s, want %s", to, seen, want)
			}
			return err
		})
	}
	h.teardown(p)
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func nextIP(a netip.Addr) string { return a.Next().String() }

// connectWorld creates a veth pair between the host (198.51.100.1) and a namespace (198.51.100.2).
func connectWorld(t *testing.T, netns string) {
	t.Helper()
	f, err := os.Open(netns)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	wire := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "world0"}, PeerName: "uplink", PeerNamespace: netlink.NsFd(f.Fd())}
	if err := netlink.LinkAdd(wire); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(wire) })
	address(t, "world0", "198.51.100.1/24")
	insideNetNS(t, netns, func() error { address(t, "uplink", "198.51.100.2/24"); return nil })
}

func address(t *testing.T, link, cidr string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	ip, n, err := net.ParseCIDR(cidr)
	if err != nil {
		t.Fatal(err)
	}
	n.IP = ip
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: n}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

func TestNetNSDeletedByHand(t *testing.T) {
	for _, nft := range []bool{true, false} {
		t.Run(fmt.Sprintf("nft=%v", nft), func(t *testing.T) {
			h := newHost(t, withDefault(t))
			h.useNft(nft)
			before := h.snapshot()
			p := h.pod("p1")
			p.Ports = []Port{{HostPort: 18080, ContainerPort: 80}}
			h.setup(p)
			if err := namespace.Remove(p.NetNS); err != nil {
				t.Fatal(err)
			}
			h.reopen()
			h.useNft(nft)
			wantErr(t, h.n.RemoveDefault(t.Context()), errdefs.ErrFailedPrecondition, "p1")
			h.teardown(p)
			if left := strings.Join(rules(t), "\n"); strings.Contains(left, "CNI-") || strings.Contains(left, "dnat") {
				t.Fatalf("rules of the pod are left:\n%s", left)
			}
			if err := h.n.RemoveDefault(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.wantSnapshot(before)
		})
	}
}

// useNft sets whether nft is considered usable.
func (h *host) useNft(yes bool) {
	h.n.own.masq.mu.Lock()
	h.n.own.masq.usable, h.n.own.masq.asked = yes, time.Now()
	h.n.own.masq.mu.Unlock()
	h.n.folder.mu.Lock()
	h.n.folder.seen = reading{}
	h.n.folder.mu.Unlock()
}

func TestWithoutNft(t *testing.T) {
	h := newHost(t, withDefault(t))
	h.useNft(false)
	before := h.snapshot()
	p := h.pod("p1")
	h.setup(p)
	if !strings.Contains(strings.Join(rules(t), "\n"), "iptables-save") {
		t.Fatalf("no rules of the bridge plugin:\n%s", strings.Join(rules(t), "\n"))
	}
	h.teardown(p)
	if err := h.n.RemoveNetNS(p.NetNS); err != nil {
		t.Fatal(err)
	}
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.wantSnapshot(before)
}

// TestRemoveForgottenRules: RemoveDefault removes rules of pods that have no record.
func TestRemoveForgottenRules(t *testing.T) {
	h := newHost(t, withDefault(t))
	h.useNft(false)
	before := h.snapshot()
	p := h.pod("p1")
	h.setup(p)
	if err := os.Remove(h.c.ledgerFile("p1")); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	h.useNft(false)
	wantErr(t, h.n.RemoveDefault(t.Context()), errdefs.ErrFailedPrecondition, "attached to cbrabc123")
	if err := namespace.Remove(p.NetNS); err != nil {
		t.Fatal(err)
	}
	waitNoPorts(t, h)
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = os.RemoveAll(h.c.cacheDir())
	h.wantSnapshot(before)
}

// waitNoPorts waits until the kernel has removed the links of a deleted namespace.
func waitNoPorts(t *testing.T, h *host) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate, 100), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := h.n.own.attached()
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
		select {
		case <-updates:
		case <-t.Context().Done():
			t.Fatal("ports stay")
		}
	}
}

func TestTwoInstances(t *testing.T) {
	real := withDefault(t)
	a := newHost(t, real, func(c *Config) { c.Instance, c.Subnet = "aaaaaa", "10.201.0.0/24" })
	b := newHost(t, real, func(c *Config) { c.Instance, c.Subnet = "bbbbbb", "10.202.0.0/24" })
	before := a.snapshot() + b.snapshot()
	const pods = 6
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	var all []func()
	for i := range pods {
		for _, h := range []*host{a, b} {
			p := h.pod(fmt.Sprint("p", i))
			p.Ports = []Port{{HostPort: int32(20000 + 100*i + len(all)), ContainerPort: 80}}
			all = append(all, func() { h.teardown(p); _ = h.n.RemoveNetNS(p.NetNS) })
			wg.Go(func() {
				res, err := h.n.Setup(t.Context(), p)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if seen[res.IPs[0]] {
					t.Errorf("address %v twice", res.IPs[0])
				}
				seen[res.IPs[0]] = true
			})
		}
	}
	wg.Wait()
	if len(seen) != 2*pods {
		t.Fatalf("%d addresses", len(seen))
	}
	for i, undo := range all {
		if i%2 == 0 {
			undo()
		}
	}
	if err := a.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	if present, err := b.n.own.masq.present(t.Context(), b.n.own.subnets()); err != nil || !present {
		t.Fatal("one instance took the other's masquerading away")
	}
	if n, err := b.n.own.attached(); err != nil || n != pods {
		t.Fatalf("the other instance has %d pods: %v", n, err)
	}
	for i, undo := range all {
		if i%2 == 1 {
			undo()
		}
	}
	if err := b.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := a.snapshot() + b.snapshot(); after != before {
		t.Fatalf("left: %s", after)
	}
}

func TestSubnetOverlap(t *testing.T) {
	wire := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other0"}}
	if err := netlink.LinkAdd(wire); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netlink.LinkDel(wire) }()
	address(t, "other0", "10.83.7.1/24")
	h := newHost(t, withDefault(t))
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "10.83.0.0/16", "10.83.7.0/24", "other0")
	p := h.pod("p1")
	_, err := h.n.Setup(t.Context(), p)
	wantErr(t, err, errdefs.ErrUnavailable, "other0")
	if d := h.n.Debts(); len(d) != 0 {
		t.Fatalf("debts %v", d)
	}
	if l, err := h.n.own.link(); l != nil || err != nil {
		t.Fatalf("a bridge was made: %v %v", l, err)
	}
	if err := h.n.SetPodCIDR("10.84.0.0/24"); err != nil {
		t.Fatal(err)
	}
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	h.setupIn("10.84.0.0/24", p)
	// A route that is added later does not disconnect pods.
	address(t, "other0", "10.84.0.129/25")
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	h.teardown(p)
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// setupIn connects a pod and checks that its address is in this subnet.
func (h *host) setupIn(subnet string, p Pod) {
	h.t.Helper()
	if ip := h.setup(p).IPs[0]; !netip.MustParsePrefix(subnet).Contains(ip) {
		h.t.Errorf("address %v is not in %s", ip, subnet)
	}
}

func TestSetPodCIDR(t *testing.T) {
	h := newHost(t, withDefault(t))
	for _, bad := range []string{"x", "10.0.0.0", "10.0.0.0/31", "10.0.0.0/24,10.1.0.0/24", "10.0.0.0/24;1", "0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/8", "fe80::/64"} {
		wantErr(t, h.n.SetPodCIDR(bad), errdefs.ErrInvalidArgument)
	}
	if err := h.n.SetPodCIDR(""); err != nil {
		t.Fatal(err)
	}
	p := h.pod("p1")
	h.setup(p)
	wantErr(t, h.n.SetPodCIDR("10.85.0.0/24"), errdefs.ErrFailedPrecondition, "10.83.0.0/16")
	if err := h.n.SetPodCIDR("10.83.0.0/16"); err != nil {
		t.Fatalf("the same subnet: %v", err)
	}
	h.teardown(p)
	// The bridge still has the route of the larger subnet; since that is ours, it is no overlap.
	if err := h.n.SetPodCIDR("10.83.64.0/24"); err != nil {
		t.Fatal(err)
	}
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := h.n.SetPodCIDR("10.85.0.0/24, fd00:85::/64"); err != nil {
		t.Fatal(err)
	}
	h.reopen() // the pod CIDR is stored
	res := h.setup(p)
	if len(res.IPs) != 2 || !netip.MustParsePrefix("10.85.0.0/24").Contains(res.IPs[0]) || !netip.MustParsePrefix("fd00:85::/64").Contains(res.IPs[1]) {
		t.Fatalf("addresses %v", res.IPs)
	}
	serve(t, p.NetNS, ":80")
	for _, ip := range res.IPs {
		if _, err := ask(netip.AddrPortFrom(ip, 80).String()); err != nil {
			t.Error(err)
		}
	}
	h.teardown(p)
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestNoNetworkBeforePodCIDR: if the kubelet sets the subnet, no pod is connected before that.
func TestNoNetworkBeforePodCIDR(t *testing.T) {
	h := newHost(t, withDefault(t), func(c *Config) { c.Subnet = PodCIDR })
	p := h.pod("p1")
	for range 2 {
		wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "the kubelet has not set the pod CIDR")
		_, err := h.n.Setup(t.Context(), p)
		wantErr(t, err, errdefs.ErrUnavailable, "the kubelet has not set the pod CIDR")
		h.reopen()
	}
	if d := h.n.Debts(); len(d) != 0 {
		t.Errorf("debts %v", d)
	}
	if err := h.n.SetPodCIDR("10.85.0.0/24"); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	h.setupIn("10.85.0.0/24", p)
	h.teardown(p)
}

// TestPodCIDRAfterAnotherRange: existing pods keep their addresses, and Ready says that they block
// the new subnet. They can be torn down, even with a record that a power cut has emptied.
func TestPodCIDRAfterAnotherRange(t *testing.T) {
	h := newHost(t, withDefault(t))
	p := h.pod("p1")
	h.setup(p)
	h.c.Subnet = PodCIDR
	h.reopen()
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "1 pods still have addresses of an earlier range")
	wantErr(t, h.n.SetPodCIDR("10.85.0.0/24"), errdefs.ErrFailedPrecondition, "1 pods are attached to another")
	if err := os.Truncate(filepath.Join(h.c.recordDir(), p.ID), 0); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	h.teardown(p)
	if d := h.n.Debts(); len(d) != 0 {
		t.Errorf("debts %v", d)
	}
}

// TestPodCIDRWhileJoining: the subnet cannot change while a pod is being connected, even if the
// bridge does not show it yet.
func TestPodCIDRWhileJoining(t *testing.T) {
	h := newHost(t, withDefault(t))
	var once sync.Once
	h.n.step = func(name string) {
		if name == "cni.add" {
			once.Do(func() { wantErr(t, h.n.SetPodCIDR("10.85.0.0/24"), errdefs.ErrFailedPrecondition, "10.83.0.0/16") })
		}
	}
	first, second := h.pod("p1"), h.pod("p2")
	h.setup(first)
	h.setup(second)
	h.teardown(first)
	h.teardown(second)
	if err := h.n.SetPodCIDR("10.85.0.0/24"); err != nil {
		t.Fatal(err)
	}
	h.setupIn("10.85.0.0/24", first)
	h.teardown(first)
}

// TestUplinkMTU: the default route may appear after the daemon's start, as with DHCP, and may
// change later.
func TestUplinkMTU(t *testing.T) {
	h := newHost(t, withDefault(t))
	wantMTU := func(want int) {
		t.Helper()
		p := h.pod("p1")
		h.setup(p)
		insideNetNS(t, p.NetNS, func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil && l.Attrs().MTU != want {
				err = fmt.Errorf("a pod's MTU is %d, want %d", l.Attrs().MTU, want)
			}
			return err
		})
		h.teardown(p)
		if err := namespace.Remove(p.NetNS); err != nil {
			t.Fatal(err)
		}
	}
	wantMTU(1500)
	uplink := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "up0", MTU: 1400}}
	if err := netlink.LinkAdd(uplink); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(uplink) })
	address(t, "up0", "198.51.100.1/24")
	route := netlink.Route{LinkIndex: uplink.Attrs().Index, Gw: net.IPv4(198, 51, 100, 2)}
	if err := netlink.RouteAdd(&route); err != nil {
		t.Fatal(err)
	}
	wantMTU(1400)
	if err := netlink.RouteDel(&route); err != nil {
		t.Fatal(err)
	}
	wantMTU(1500)
}

// TestNftablesLater: if the kernel refuses nftables when the daemon starts, plugins do the work, and
// the kernel is asked again.
func TestNftablesLater(t *testing.T) {
	h := newHost(t, withDefault(t))
	refusal := errors.New("no such module")
	h.n.own.masq = newMasquerade("cribox_abc123", nil)
	works := h.n.own.masq.probe
	h.n.own.masq.probe = func(context.Context) error { return refusal }
	h.n.folder.seen = reading{}
	masquerades := func() (byPlugin bool) {
		w, err := h.n.current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Plugins []struct{ IPMasq, Builtin bool }
		}
		if err := json.Unmarshal(w.chains[0].Bytes, &list); err != nil {
			t.Fatal(err)
		}
		if list.Plugins[0].IPMasq == list.Plugins[0].Builtin {
			t.Errorf("configuration %s", w.chains[0].Bytes)
		}
		return list.Plugins[0].IPMasq
	}
	if !masquerades() {
		t.Error("without nftables nobody masquerades")
	}
	masq := h.n.own.masq
	masq.probe = works
	masq.mu.Lock()
	masq.asked = masq.asked.Add(-probeAgain)
	masq.mu.Unlock()
	if masquerades() {
		t.Error("nftables work again, and are not used")
	}
}

func TestBandwidth(t *testing.T) {
	h := newHost(t, withDefault(t))
	before := h.snapshot()
	p := h.pod("p1")
	p.Annotations = map[string]string{ingressAnnotation: "10M", egressAnnotation: "5M"}
	h.setup(p)
	if !strings.Contains(h.snapshot(), "link bwp") {
		t.Fatalf("no shaping:\n%s", h.snapshot())
	}
	h.teardown(p)
	if err := h.n.RemoveNetNS(p.NetNS); err != nil {
		t.Fatal(err)
	}
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.wantSnapshot(before)
}

// TestOwnTypeInFile: a file with our plugin type means the default network, with the file's other
// plugins around it, which count as foreign.
func TestOwnTypeInFile(t *testing.T) {
	real := realPlugins(t)
	h := newHost(t, func(c *Config) { c.BinDirs = append(c.BinDirs, real) })
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "no network configuration")
	h.conf("10-own.conflist", list("theirs", "cribox", "fakemeta"))
	f := h.fake("fakemeta", fakeLease+`echo '{"cniVersion":"1.0.0","ips":[{"address":"10.83.0.2/16"}]}'`, "")
	if err := h.n.Ready(); err != nil {
		t.Fatal(err)
	}
	p := h.pod("p1")
	h.setup(p)
	if !strings.Contains(f.read("stdin.ADD"), `"name":"cribox-abc123"`) {
		t.Fatalf("stdin %s", f.read("stdin.ADD"))
	}
	if st, err := os.Stat(h.c.debtsFile()); err != nil || st.Size() == 0 {
		t.Fatal("a foreign plugin without a synced debt")
	}
	h.teardown(p)
	f.wantLeases(0)
	if err := h.n.RemoveDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	twice := newHost(t, func(c *Config) { c.BinDirs = append(c.BinDirs, real) })
	twice.conf("10-own.conflist", list("theirs", "cribox", "cribox"))
	wantErr(t, twice.n.Ready(), nil, "cribox occurs 2 times")
}
