package harness

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/crictl-tests/ledger"
)

var (
	subnetsMu sync.Mutex
	subnets   = map[string]bool{}
)

// freeSubnet returns a /24 that no route of this host and no other test uses.
func freeSubnet(t testing.TB) string {
	t.Helper()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	subnetsMu.Lock()
	defer subnetsMu.Unlock()
	for {
		n := &net.IPNet{IP: net.IPv4(10, byte(128+rand.IntN(120)), byte(rand.IntN(256)), 0).To4(), Mask: net.CIDRMask(24, 32)}
		taken := slices.ContainsFunc(routes, func(r netlink.Route) bool {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() {
				return false
			}
			return r.Dst.Contains(n.IP) || n.Contains(r.Dst.IP)
		})
		if !taken && !subnets[n.String()] {
			subnets[n.String()] = true
			return n.String()
		}
	}
}

// settled leaves out of a running daemon's ledger what it may rightly keep once made: the bridge of
// its network, the allocator's notes, empty folders of its house.
func (d *Daemon) settled(l ledger.Ledger) ledger.Ledger {
	out := ledger.Ledger{}
	for kind, lines := range l {
		for _, line := range lines {
			if !mayStay(kind, line) && !(d.blobs && strings.HasPrefix(line, filepath.Join(d.Root, "content")+"/")) {
				out[kind] = append(out[kind], line)
			}
		}
	}
	return out
}

var houseKeeping = map[string]*regexp.Regexp{
	// The parent of pods that name none, and the scopes of shim and logger.
	ledger.Cgroups: regexp.MustCompile(`^/sys/fs/cgroup(/[^/]+)?/cribox(-[0-9a-f]{6}|_[0-9a-f]{6}\.slice)$|/cribox-(shim|logger)-[0-9a-f]{6}\.scope$`),
	ledger.Units:   regexp.MustCompile(`^cribox(-(shim|logger)-[0-9a-f]{6}\.scope|_[0-9a-f]{6}\.slice)$`),
	ledger.Links:   regexp.MustCompile(`^bridge `),
	// Masquerading for the whole subnet, and the guard of the host's loopback.
	ledger.Rules: regexp.MustCompile(`^nft: (table inet cribox_|iifname "cbr[0-9a-f]{6}" ip daddr 127\.0\.0\.0/8 drop$)`),
	ledger.Files: regexp.MustCompile(`/(last_reserved_ip\.\d+|lock|pause/pause|cni/pod-cidr)$|\.torn(/|$)|leases/[^/]+$|/test-leases$|/(imported|pinned)\.json$`),
	// A connection of a client comes and goes with the client, not with pods; so do the runtime's
	// own poll descriptors. What a library forgets to close at the start is closed when memory is
	// collected.
	ledger.Fds: regexp.MustCompile(`^serve socket$|eventpoll|eventfd|fsverity-check|^serve /$|^serve /etc/(group|passwd)$`),
}

func mayStay(kind, line string) bool {
	if r := houseKeeping[kind]; r != nil && r.MatchString(line) {
		return true
	}
	if kind != ledger.Files {
		return false
	}
	info, err := os.Lstat(line)
	return err == nil && info.IsDir() && isHouse(line)
}

// isHouse tells a folder that belongs to a package from one that belongs to a pod, container, layer
// or image.
func isHouse(path string) bool {
	return !carriesID.MatchString(filepath.Base(path))
}

var carriesID = regexp.MustCompile(`^[0-9]+$|[0-9a-f]{12,}|-`)

// common returns the lines of a that b has too.
func common(a, b []string) []string {
	var out []string
	for _, line := range a {
		if i := slices.Index(b, line); i >= 0 {
			out, b = append(out, line), slices.Delete(slices.Clone(b), i, i+1)
		}
	}
	return out
}

// removeOwnNetwork takes away the bridge of a network that the test, not the daemon, has
// configured.
func (d *Daemon) removeOwnNetwork() {
	if link, err := netlink.LinkByName("cbt" + d.Instance()); err == nil {
		_ = netlink.LinkDel(link)
	}
}

// sweepHost takes away what a failed test has left outside its folder.
func sweepHost(d *Daemon) {
	l, err := ledger.Take(d.Scope())
	if err != nil {
		d.Errorf("count what is to be swept: %v", err)
		return
	}
	unmountBelow(d.Dir)
	for _, name := range l[ledger.Netns] {
		path := filepath.Join("/run/netns", name)
		_ = unix.Unmount(path, unix.MNT_DETACH)
		_ = os.Remove(path)
	}
	for _, line := range l[ledger.Links] {
		var kind, name string
		if _, err := fmt.Sscan(line, &kind, &name); err == nil {
			if link, err := netlink.LinkByName(name); err == nil {
				_ = netlink.LinkDel(link)
			}
		}
	}
	_ = exec.Command("nft", "delete", "table", "inet", "cribox_"+d.Instance()).Run()
	for _, name := range l[ledger.Units] {
		_ = exec.Command("systemctl", "stop", name).Run()
		_ = exec.Command("systemctl", "reset-failed", name).Run()
	}
	slices.Reverse(l[ledger.Cgroups]) // the deepest first
	for _, path := range l[ledger.Cgroups] {
		_ = os.Remove(path)
	}
}

func unmountBelow(dir string) {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	lines := bytes.Split(data, []byte("\n"))
	slices.Reverse(lines)
	for _, line := range lines {
		if fields := bytes.Fields(line); len(fields) > 4 && bytes.HasPrefix(fields[4], []byte(dir+"/")) {
			_ = unix.Unmount(string(fields[4]), unix.MNT_DETACH)
		}
	}
}

// ExitsAreKept reports whether the kernel says of a process how it ended, after nobody was there to see it: Linux 6.15 does, to who has
// its pidfd. Before it, containers that end while there is no shim have the reason Unknown.
func ExitsAreKept() bool {
	var name unix.Utsname
	var major, minor int
	if unix.Uname(&name) != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 15)
}

// Alive reports whether a process exists and is not a zombie.
func Alive(pid int) bool {
	p, err := ledger.Look(pid)
	return err == nil && p.State != 'Z' && syscall.Kill(pid, 0) == nil
}

// LacksAppArmor says why this host cannot confine with AppArmor; "" when it can.
func LacksAppArmor() string {
	if enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || len(enabled) == 0 || enabled[0] != 'Y' {
		return "this kernel has no AppArmor"
	}
	return ""
}

// WantNoProcess waits until no process of the container carries the argument.
func (d *Daemon) WantNoProcess(c *Container, arg string) {
	d.Helper()
	Eventually(d, "the process to be gone", func() error {
		for _, p := range d.ProcessesOf(c.ID) {
			for _, a := range p.Args {
				if strings.Contains(a, arg) {
					return Unless(false, "process %d still runs: %s", p.Pid, p.Name())
				}
			}
		}
		return nil
	})
}

// HostFile reads a file of the host.
func HostFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
