package cni

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childrensFaults grows with every child process of this one that has ended: none starts without
// page faults.
func childrensFaults(t *testing.T) int64 {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &used); err != nil {
		t.Fatal(err)
	}
	return used.Minflt
}

// TestRunsNoProgram: pods of the default network are connected and disconnected without any
// program, with and without ports of the host, in both families. No plugin need be installed.
func TestRunsNoProgram(t *testing.T) {
	h := newHost(t, func(c *Config) { c.Default = true }, dualStack)
	if !h.n.own.masq.works(t.Context()) {
		t.Skip("no nftables: ", h.n.own.masq.reason())
	}
	before := childrensFaults(t)
	p, q := h.pod("p1"), h.pod("p2")
	q.Ports = []Port{{HostPort: 18080, ContainerPort: 80}, {Protocol: "udp", HostPort: 18053, ContainerPort: 53}}
	for range 2 {
		h.setup(p)
		h.setup(q)
		h.teardown(q)
		h.teardown(p)
		h.reopen()
	}
	if after := childrensFaults(t); after != before {
		t.Error("a program was run")
	}
	// The measure is right: with plugins it grows.
	h.useNft(false)
	h.c.BinDirs = []string{realPlugins(t)}
	h.reopen()
	h.useNft(false)
	h.setup(p)
	h.teardown(p)
	if childrensFaults(t) == before {
		t.Error("plugins were run, and are not counted")
	}
}

// asEarlier makes the default network as versions did that ran plugins, as a file of the folder.
func (h *host) asEarlier() {
	h.t.Helper()
	w, err := h.n.current(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	conf := strings.ReplaceAll(string(w.chains[chainIndex(true, false)].Bytes), `"builtin":true,`, "")
	if strings.Contains(conf, "builtin") {
		h.t.Fatalf("configuration %s", conf)
	}
	h.conf("10-earlier.conflist", conf)
}

// leased returns the addresses in the folder of leases, and who has them.
func (h *host) leased() map[string]string {
	h.t.Helper()
	all := map[string]string{}
	entries, _ := os.ReadDir(string(h.n.own.leases()))
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			data, err := os.ReadFile(filepath.Join(string(h.n.own.leases()), e.Name()))
			if err != nil {
				h.t.Fatal(err)
			}
			all[e.Name()], _, _ = strings.Cut(string(data), "\r\n")
		}
	}
	return all
}

// TestPodsOfPlugins: pods that an earlier version has connected by plugins stay connected, are
// reached by new ones, keep their addresses, and are undone by the plugins.
func TestPodsOfPlugins(t *testing.T) {
	h := newHost(t, withDefault(t), dualStack)
	before := h.snapshot()
	h.asEarlier()
	old := h.pod("old")
	old.Ports = []Port{{HostPort: 18080, ContainerPort: 80}}
	ips := h.setup(old).IPs
	serve(t, old.NetNS, ":80")
	if err := os.Remove(filepath.Join(h.c.ConfDir, "10-earlier.conflist")); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	p := h.pod("new")
	p.Ports = []Port{{HostPort: 18081, ContainerPort: 81}}
	mine := h.setup(p).IPs
	serve(t, p.NetNS, ":81")
	if mine[0] == ips[0] || mine[1] == ips[1] || len(h.leased()) != 4 {
		t.Fatalf("addresses %v and %v, leases %v", ips, mine, h.leased())
	}
	for _, addr := range []string{netip.AddrPortFrom(ips[0], 80).String(), netip.AddrPortFrom(ips[1], 80).String(), "10.85.0.1:18080", "[fd85::1]:18080"} {
		insideNetNS(t, p.NetNS, func() error { _, err := ask(addr); return err })
	}
	insideNetNS(t, old.NetNS, func() error { _, err := ask("10.85.0.1:18081"); return err })
	h.teardown(old)
	if _, err := ask("127.0.0.1:18081"); err != nil {
		t.Error(err)
	}
	h.teardown(p)
	h.emptied(before, old, p)
}

// emptied removes namespaces and network and checks that nothing is left.
func (h *host) emptied(before string, pods ...Pod) {
	h.t.Helper()
	for _, p := range pods {
		if err := h.n.RemoveNetNS(p.NetNS); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := h.n.RemoveDefault(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.wantSnapshot(before)
}

// TestUndoneByPlugins: an earlier version, which runs plugins for the record of any pod, undoes what
// this one has made. Only the forwarded ports stay, until this version is there again.
func TestUndoneByPlugins(t *testing.T) {
	h := newHost(t, withDefault(t))
	before := h.snapshot()
	p, stays := h.pod("p1"), h.pod("p2")
	p.Ports = []Port{{HostPort: 18080, ContainerPort: 80}}
	stays.Ports = []Port{{HostPort: 18081, ContainerPort: 81}}
	h.setup(p)
	h.setup(stays)
	h.asEarlier()
	conf, err := os.ReadFile(filepath.Join(h.c.ConfDir, "10-earlier.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	d, _ := h.n.debts.Get("p1")
	d.Conf = conf
	if err := h.n.debts.Begin(t.Context(), d.Record); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(h.c.ConfDir, "10-earlier.conflist")); err != nil {
		t.Fatal(err)
	}
	h.teardown(p)
	if leased := h.leased(); len(leased) != 1 {
		t.Errorf("leases %v", leased)
	}
	h.reopen()
	h.ignoreOthers()
	if err := h.n.CollectGarbage(t.Context(), []string{"p2"}); err != nil {
		t.Fatal(err)
	}
	owners, err := h.n.own.masq.table.Owners(t.Context())
	if err != nil || !slices.Equal(owners, []string{"p2"}) {
		t.Errorf("ports are forwarded to %v, %v", owners, err)
	}
	h.teardown(stays)
	h.emptied(before, p, stays)
}

// TestKeysOfOthers: the keys of the default network mean something else in the configuration of a
// plugin of somebody else, and nothing at all there.
func TestKeysOfOthers(t *testing.T) {
	h := newHost(t)
	h.conf("10-x.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"fakenet","builtin":true,"bridge":{"a":1},"mtu":"1500",
		"hairpinMode":"no","ipam":{"dataDir":3,"ranges":"all"}}]}`)
	f := h.fake("fakenet", "", "")
	p := h.pod("p1")
	h.setup(p)
	h.teardown(p)
	if f.calls("ADD") != 1 || f.calls("DEL") != 1 {
		t.Errorf("calls %s", f.read("calls"))
	}
}
