package cni

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What cannot be read at the moment must not be treated as absent.

// unreadable is a regular file whose read fails with EIO.
const unreadable = "/proc/self/mem"

// cover makes a file unreadable until uncover is called.
func cover(t *testing.T, file string) (uncover func()) {
	t.Helper()
	wantNil(t, unix.Mount(unreadable, file, "", unix.MS_BIND, ""))
	uncover = func() { _ = unix.Unmount(file, unix.MNT_DETACH) }
	t.Cleanup(uncover)
	return uncover
}

// withoutDescriptors runs f while this process cannot open any file.
func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var before unix.Rlimit
	wantNil(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	none := before
	none.Cur = 3
	wantNil(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
	defer func() { wantNil(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) }()
	f()
}

// TestUnreadableConfiguration: while the first configuration file is unreadable, neither a later
// one nor the default network is used instead.
func TestUnreadableConfiguration(t *testing.T) {
	h := newHost(t, withDefault(t))
	first := filepath.Join(h.c.ConfDir, "05-y.conflist")
	h.conf("05-y.conflist", list("y", "host-local"))
	uncover := cover(t, first)
	h.reopen()
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "05-y.conflist", "input/output error")
	h.conf("10-x.conflist", list("x", "host-local"))
	wantErr(t, h.n.Ready(), errdefs.ErrUnavailable, "05-y.conflist", "input/output error")
	uncover()
	h.wantNetwork("y")
	// If it was read before, it stays in use.
	uncover = cover(t, first)
	h.wantNetwork("y")
	uncover()
	h.wantNetwork("y")
	// It also stays while a file that sorts before it is unreadable.
	h.conf("01-z.conflist", list("z", "host-local"))
	uncover = cover(t, filepath.Join(h.c.ConfDir, "01-z.conflist"))
	h.wantNetwork("y")
	uncover()
	h.wantNetwork("z")
}

// TestUnreadableRecord: an unreadable record is read again for the DEL; until then the debt stays.
func TestUnreadableRecord(t *testing.T) {
	h := newHost(t, withDefault(t))
	p := h.pod("p1")
	h.setup(p)
	uncover := cover(t, h.c.ledgerFile("p1"))
	h.reopen()
	wantErr(t, h.n.Teardown(t.Context(), p), errdefs.ErrUnavailable, "record", "input/output error")
	if d := h.n.Debts(); len(d) != 1 {
		t.Fatalf("debts %v", d)
	}
	uncover()
	h.teardown(p)
	if d := h.n.Debts(); len(d) != 0 {
		t.Fatalf("debts %v", d)
	}
}

// TestUnreadablePodCIDR: if the pod CIDR is unreadable, pods do not get addresses of another range.
func TestUnreadablePodCIDR(t *testing.T) {
	h := newHost(t, withDefault(t))
	wantNil(t, h.n.SetPodCIDR("10.87.0.0/24"))
	defer cover(t, PodCIDRFile(h.c.State))()
	_, err := Open(t.Context(), h.c)
	wantErr(t, err, nil, "pod CIDR", "input/output error")
}

// TestUnreadableNetNS: if it is unknown whether the pod's namespace exists, DEL is not called as if
// it did not.
func TestUnreadableNetNS(t *testing.T) {
	h, f := fakeHost(t)
	p := h.pod("p1")
	folder, link := filepath.Dir(p.NetNS), filepath.Dir(p.NetNS)+".link"
	wantNil(t, os.Symlink(folder, link))
	p.NetNS = filepath.Join(link, "p1")
	h.setup(p)
	wantNil(t, os.Remove(link))
	wantNil(t, os.Symlink(link, link)) // to itself
	wantErr(t, h.n.Teardown(t.Context(), p), errdefs.ErrUnavailable, "network namespace", "symbolic link")
	if f.calls("DEL") != 0 {
		t.Error("DEL was called")
	}
	wantNil(t, os.Remove(link))
	wantNil(t, os.Symlink(folder, link))
	h.teardown(p)
	if calls := f.read("calls"); !strings.Contains(calls, "DEL p1 "+p.NetNS) {
		t.Errorf("the plugin was called %s", calls)
	}
}

// TestUnreadablePlugin: a plugin that cannot be inspected does not count as not installed;
// otherwise the pod would run without its bandwidth limits.
func TestUnreadablePlugin(t *testing.T) {
	real := realPlugins(t)
	h := newHost(t, func(c *Config) { c.Default = true })
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		wantNil(t, os.Symlink(filepath.Join(real, plugin), filepath.Join(h.c.BinDirs[0], plugin)))
	}
	shaper := filepath.Join(h.c.BinDirs[0], "bandwidth")
	wantNil(t, os.Symlink(shaper, shaper)) // a link to itself
	p := h.pod("p1")
	p.Annotations = map[string]string{ingressAnnotation: "1M"}
	_, err := h.n.Setup(t.Context(), p)
	wantErr(t, err, errdefs.ErrUnavailable, "bandwidth", "symbolic link")
	wantNil(t, os.Remove(shaper))
	h.setup(p)
	h.teardown(p)
}

// TestUnreadableMTU: the last known MTU of the uplink is used while the kernel cannot be asked.
func TestUnreadableMTU(t *testing.T) {
	h := newHost(t, withDefault(t))
	uplink := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "uplink0", MTU: 1400}}
	wantNil(t, netlink.LinkAdd(uplink))
	t.Cleanup(func() { _ = netlink.LinkDel(uplink) })
	address(t, "uplink0", "198.51.100.1/24")
	wantNil(t, netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Index, Gw: []byte{198, 51, 100, 2}}))
	if mtu := h.n.own.uplinkMTU(); mtu != 1400 {
		t.Fatalf("MTU %d", mtu)
	}
	withoutDescriptors(t, func() {
		if _, err := os.Open("/"); !errors.Is(err, unix.EMFILE) {
			t.Fatal(err)
		}
		if mtu := h.n.own.uplinkMTU(); mtu != 1400 {
			t.Errorf("MTU %d while nothing can be opened", mtu)
		}
	})
}
