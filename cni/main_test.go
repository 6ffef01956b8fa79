package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/namespace"
	"github.com/cribox/cribox/cni/program"
)

// The tests run in a network and a mount namespace of their own: their host has only lo, and
// nothing they leave behind stays on the machine.
const insideEnv = "CRIBOX_CNI_TEST_INSIDE"

func TestMain(m *testing.M) {
	if script := os.Getenv(crashEnv); script != "" {
		crash(script)
	}
	if os.Geteuid() != 0 {
		fmt.Println("SKIP: network tests need root")
		return
	}
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if err := makeHost(); err != nil {
		fmt.Fprintln(os.Stderr, "test host:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func runInside() int {
	runtime.LockOSThread() // Pdeathsig is sent when the thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "test namespaces:", err)
		}
		return 1
	}
	return 0
}

func makeHost() error {
	if err := unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	// Do not keep namespaces alive that are pinned on the machine.
	if err := unix.Unmount("/run/netns", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// realPlugins returns the folder of the standard plugins.
func realPlugins(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{os.Getenv("CRIBOX_BIN"), "../bin"} {
		if dir == "" {
			continue
		}
		dir, err := filepath.Abs(filepath.Join(dir, "cni"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := program.Find("bridge", []string{dir}); err == nil {
			return dir
		}
	}
	t.Skip("no CNI plugins in $CRIBOX_BIN/cni or ../bin/cni")
	return ""
}

// host is one daemon: its folders and its Networks, which can be opened again.
type host struct {
	t testing.TB
	c Config
	n *Networks
}

func newHost(t testing.TB, change ...func(*Config)) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, c: Config{ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")}, Instance: "abc123",
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Timeout: 30 * time.Second}}
	for _, f := range change {
		f(&h.c)
	}
	for _, d := range append([]string{h.c.ConfDir, h.c.Root, h.c.State, h.netnsDir()}, h.c.BinDirs...) {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = h.n.own.removeBridge() // the default network of the next test has the same name
		_ = h.n.own.masq.remove(context.Background())
		_ = unix.Unmount(h.netnsDir(), unix.MNT_DETACH)
	})
	h.reopen()
	return h
}

// withDefault configures the real plugins and the default network.
func withDefault(t testing.TB) func(*Config) {
	dir := realPlugins(t)
	return func(c *Config) { c.Default, c.BinDirs = true, []string{dir} }
}

// reopen does what a restarted daemon does.
func (h *host) reopen() {
	h.t.Helper()
	n, err := Open(h.t.Context(), h.c)
	if err != nil {
		h.t.Fatal(err)
	}
	h.n = n
}

func (h *host) netnsDir() string { return filepath.Join(filepath.Dir(h.c.Root), "netns") }

// pod returns a pod with a namespace, which is removed when the test ends.
func (h *host) pod(id string) Pod {
	h.t.Helper()
	p := Pod{ID: id, Name: "web", Namespace: "default", UID: "uid-" + id, NetNS: filepath.Join(h.netnsDir(), id)}
	if err := h.n.NewNetNS(p.NetNS); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = namespace.Remove(p.NetNS) })
	return p
}

func (h *host) setup(p Pod) Result {
	h.t.Helper()
	res, err := h.n.Setup(h.t.Context(), p)
	if err != nil {
		h.t.Fatalf("set up %s: %v", p.ID, err)
	}
	return res
}

func (h *host) teardown(p Pod) {
	h.t.Helper()
	if err := h.n.Teardown(h.t.Context(), p); err != nil {
		h.t.Fatalf("tear down %s: %v", p.ID, err)
	}
}

// conf writes a configuration file in one go.
func (h *host) conf(name, content string) {
	h.t.Helper()
	writeTestFile(h.t, filepath.Join(h.c.ConfDir, name), content, 0o644)
}

func writeTestFile(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// fake is a plugin, written in shell, that keeps one lease file per container and records its
// calls.
type fake struct {
	t    testing.TB
	dir  string // what it has recorded
	path string
	name string
}

const (
	fakeResult  = `echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.2/24"}]}'`
	fakeLease   = `: > $D/lease.$CNI_CONTAINERID; `
	fakeRelease = `rm -f $D/lease.$CNI_CONTAINERID`
)

// fake installs a plugin with scripts for ADD and DEL; "" is the normal behaviour.
func (h *host) fake(name, add, del string) *fake {
	h.t.Helper()
	f := &fake{t: h.t, name: name, dir: filepath.Join(filepath.Dir(h.c.Root), "fake-"+name), path: filepath.Join(h.c.BinDirs[0], name)}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	f.behave(add, del)
	return f
}

func (f *fake) behave(add, del string) {
	f.t.Helper()
	if add == "" {
		add = fakeLease + fakeResult
	}
	if del == "" {
		del = fakeRelease
	}
	script := fmt.Sprintf(`#!/bin/sh
D=%s
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}'; exit 0 ;;
esac
cat > $D/stdin.$CNI_COMMAND
env > $D/env.$CNI_COMMAND
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS" >> $D/calls
case $CNI_COMMAND in
ADD)
%s
;;
DEL)
%s
;;
esac
`, f.dir, add, del)
	// Replaced by a rename, as installers do, so that a running copy is not written to.
	writeTestFile(f.t, f.path+".new", script, 0o755)
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) read(name string) string {
	data, _ := os.ReadFile(filepath.Join(f.dir, name))
	return string(data)
}

// calls returns how often the plugin was called with verb.
func (f *fake) calls(verb string) int {
	return strings.Count("\n"+f.read("calls"), "\n"+verb+" ")
}

func (f *fake) leases() []string {
	names, err := filepath.Glob(filepath.Join(f.dir, "lease.*"))
	if err != nil {
		f.t.Fatal(err)
	}
	return names
}

func (f *fake) wantLeases(n int) {
	f.t.Helper()
	if got := f.leases(); len(got) != n {
		f.t.Fatalf("%d leases of %s, want %d: %v", len(got), f.name, n, got)
	}
}

// list returns a configuration with the named plugins.
func list(name string, plugins ...string) string {
	var all []map[string]any
	for _, p := range plugins {
		all = append(all, map[string]any{"type": p, "capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "dns": true}})
	}
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": all})
	if err != nil {
		panic(err)
	}
	return string(data)
}

// snapshot returns, as text to compare, everything that a network could leave on the host.
func (h *host) snapshot() string {
	h.t.Helper()
	var out []string
	links, err := netlink.LinkList()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if path := strings.Fields(line)[4]; strings.HasPrefix(path, h.netnsDir()+"/") {
			out = append(out, "netns "+path)
		}
	}
	for _, dir := range []string{h.c.leaseDir(), h.c.recordDir(), filepath.Join(h.c.cacheDir(), "results"), h.netnsDir()} {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "last_reserved_ip") {
				out = append(out, "file "+path)
			}
			return nil
		})
	}
	if debts := h.n.Debts(); len(debts) > 0 {
		out = append(out, fmt.Sprint("debts ", debts))
	}
	out = append(out, rules(h.t)...)
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// rules lists nat rules that have an effect: those of pods, and our table.
func rules(t testing.TB) []string {
	t.Helper()
	var out []string
	nft, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Skip("nft is needed to compare rules: ", err)
	}
	for line := range strings.Lines(string(nft)) {
		if strings.Contains(line, "mark") {
			// portmap's own rules in iptables, shared by all pods of all networks; they stay.
			continue
		}
		if strings.Contains(line, "masquerade") || strings.Contains(line, "dnat") || strings.Contains(line, "table inet cribox") || strings.Contains(line, "xt target") {
			out = append(out, "rule "+strings.TrimSpace(line))
		}
	}
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		saved, _ := exec.Command(tool, "-t", "nat").Output()
		for line := range strings.Lines(string(saved)) {
			if strings.HasPrefix(line, ":CNI-") && !strings.HasPrefix(line, ":CNI-HOSTPORT") || strings.Contains(line, "-j CNI-") && !strings.Contains(line, "-j CNI-HOSTPORT") {
				out = append(out, tool+" "+strings.TrimSpace(line))
			}
		}
	}
	return out
}

func (h *host) wantSnapshot(want string) {
	h.t.Helper()
	if got := h.snapshot(); got != want {
		h.t.Fatalf("left on the host:\n%s\n--- want ---\n%s", got, want)
	}
}

// insideNetNS runs f on a thread inside the namespace.
func insideNetNS(t testing.TB, path string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", path, err)
	}
}

// serve replies to every connection to addr in the namespace with the client's address, as the
// server sees it.
func serve(t testing.TB, netns, addr string) {
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
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprint(c, host)
				c.Close()
			}
		}()
		return nil
	})
}

// ask connects from the calling thread's namespace and returns the reply of serve. It retries for a
// while, because the first IPv6 address of a new bridge may not be usable at once.
func ask(addr string) (answer string, err error) {
	for range 10 {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", addr, 3*time.Second); err != nil {
			continue
		}
		defer c.Close()
		data, err := io.ReadAll(c)
		return string(data), err
	}
	return "", err
}

func wantErr(t testing.TB, err, class error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if class != nil && !errors.Is(err, class) {
		t.Fatalf("error %q is not of class %v", err, class)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Fatalf("error %q does not say %q", err, part)
		}
	}
}

// gone waits until the process has ended, by its pidfd.
func gone(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		if n > 0 {
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	t.Fatalf("process %d is still there", pid)
}
