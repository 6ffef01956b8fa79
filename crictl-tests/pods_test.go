package crictltests

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// awkward holds what a careless store would change: order, case, spaces, quotes, other scripts, an empty value, a newline.
var awkward = map[string]string{
	"kubernetes.io/config.seen": "2026-11-23T00:00:00.000000001Z", "EMPTY": "", "unicode": "Größe ☃", "json": `{"b": 1, "a":  "<&>"}`,
	"lines": "one\ntwo\r\n\ttabbed ", "path/with.dots-and_more": `back\slash "quotes" 'single'`,
}

func TestPodLifecycle(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	began := time.Now().UnixNano()
	p := d.runPod(func(c *cri.PodSandboxConfig) { c.Labels, c.Annotations = awkward, awkward })

	s := p.status()
	if s.Id != p.id || !proto.Equal(s.Metadata, p.config.Metadata) {
		t.Errorf("status is of %s %v, want %s %v", s.Id, s.Metadata, p.id, p.config.Metadata)
	}
	if s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("state %s", s.State)
	}
	if s.CreatedAt < began || s.CreatedAt > time.Now().UnixNano() {
		t.Errorf("created_at %d is not nanoseconds of now", s.CreatedAt)
	}
	wantSame(t, "labels", s.Labels, awkward)
	wantSame(t, "annotations", s.Annotations, awkward)
	if want := p.config.Linux.SecurityContext.NamespaceOptions; !proto.Equal(s.Linux.GetNamespaces().GetOptions(), want) {
		t.Errorf("namespaces %v, want the options as asked: %v", s.Linux.GetNamespaces().GetOptions(), want)
	}
	if ip, err := netip.ParseAddr(s.Network.GetIp()); err != nil || !netip.MustParsePrefix(d.subnet).Contains(ip) {
		t.Errorf("address %q is not of %s (%v)", s.Network.GetIp(), d.subnet, err)
	}

	p.stop()
	if s := p.status(); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("state after stop: %s", s.State)
	}
	p.stop()
	p.remove()
	_, err := d.runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	wantCode(t, err, codes.NotFound, p.id)
	p.remove()
	p.stop()
}

func wantSame(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d entries, want %d: %q", what, len(got), len(want), got)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q is %q, want %q byte for byte", what, k, got[k], v)
		}
	}
}

func TestPodRemovedWhileReady(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(idle())
	p.remove()
	_, err := d.runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.id})
	wantCode(t, err, codes.NotFound, c.id)
}

func TestListPods(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	blue := d.runPod(func(c *cri.PodSandboxConfig) { c.Labels = map[string]string{"colour": "blue", "size": "s"} })
	red := d.runPod(func(c *cri.PodSandboxConfig) { c.Labels = map[string]string{"colour": "red", "size": "s"} })
	red.stop()
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	for _, row := range []struct {
		name   string
		filter *cri.PodSandboxFilter
		want   []*pod
	}{
		{"no filter", nil, []*pod{blue, red}},
		{"empty filter", &cri.PodSandboxFilter{}, []*pod{blue, red}},
		{"id", &cri.PodSandboxFilter{Id: blue.id}, []*pod{blue}},
		{"start of the id", &cri.PodSandboxFilter{Id: blue.id[:13]}, []*pod{blue}},
		{"unknown id", &cri.PodSandboxFilter{Id: "feedfeedfeed"}, nil},
		{"state", &cri.PodSandboxFilter{State: ready}, []*pod{blue}},
		{"label", &cri.PodSandboxFilter{LabelSelector: map[string]string{"colour": "red"}}, []*pod{red}},
		{"all labels must match", &cri.PodSandboxFilter{LabelSelector: map[string]string{"colour": "red", "size": "l"}}, nil},
		{"id and state and label", &cri.PodSandboxFilter{Id: red.id, State: ready, LabelSelector: map[string]string{"size": "s"}}, nil},
	} {
		r, err := d.runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{Filter: row.filter})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		wantEqual(t, row.name+": the stream", d.podStream(row.filter), r)
		got := map[string]bool{}
		for _, item := range r.Items {
			got[item.Id] = true
		}
		if len(got) != len(row.want) {
			t.Errorf("%s: %d pods, want %d", row.name, len(got), len(row.want))
		}
		for _, p := range row.want {
			if !got[p.id] {
				t.Errorf("%s: pod %s is missing", row.name, p.config.Metadata.Name)
			}
		}
	}
}

func TestPodFilesSeenFromInside(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(func(c *cri.PodSandboxConfig) {
		c.Hostname = "box"
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53", "192.0.2.54"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"}}
	})
	c := p.run(idle())
	if got := strings.TrimSpace(c.exec("hostname")); got != "box" {
		t.Errorf("hostname %q", got)
	}
	if got := strings.TrimSpace(c.exec("cat", "/etc/hostname")); got != "box" {
		t.Errorf("/etc/hostname %q", got)
	}
	resolv := c.exec("cat", "/etc/resolv.conf")
	for _, want := range []string{"nameserver 192.0.2.53\n", "nameserver 192.0.2.54\n", "search a.test b.test\n", "options ndots:5\n"} {
		if !strings.Contains(resolv, want) {
			t.Errorf("/etc/resolv.conf lacks %q:\n%s", want, resolv)
		}
	}
	if kind := strings.TrimSpace(c.exec("stat", "-f", "-c", "%T", "/dev/shm")); kind != "tmpfs" {
		t.Errorf("/dev/shm is %s", kind)
	}
	if size := c.exec("df", "-m", "/dev/shm"); !strings.Contains(size, " 64 ") && !strings.Contains(size, " 64.0M ") {
		t.Errorf("/dev/shm is not 64 MiB:\n%s", size)
	}
	if _, err := c.tryExec(10, "touch", "/dev/shm/written"); err != nil {
		t.Error(err)
	}
}

func TestResolvConfOfTheHost(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	want, err := os.ReadFile("/etc/resolv.conf")
	d.must(err)
	c := d.runPod().run(idle())
	if got := c.exec("cat", "/etc/resolv.conf"); got != string(want) {
		t.Errorf("a pod without dns_config sees\n%swant the host's\n%s", got, want)
	}
}

func TestHostNetwork(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withOwnNetwork()) // the pod of a network's own installer runs before there is a network
	p := d.runPod(onHostNetwork)
	s := p.status()
	if ip := s.GetNetwork().GetIp(); ip != "" {
		t.Errorf("a pod on the host's network has the address %s", ip)
	}
	if mode := s.Linux.GetNamespaces().GetOptions().GetNetwork(); mode != cri.NamespaceMode_NODE {
		t.Errorf("network mode %s, want NODE as asked", mode)
	}
	c := p.run(idle())
	if got, want := namespace(c, "net"), hostNamespace(t, "net"); got != want {
		t.Errorf("network namespace %s, want the host's %s", got, want)
	}
	if got, want := strings.TrimSpace(c.exec("hostname")), hostname(t); got != want {
		t.Errorf("hostname %q, want the host's %q", got, want)
	}
}

// namespace is the namespace of a kind that the container is in.
func namespace(c *container, kind string) string {
	c.Helper()
	return strings.TrimSpace(c.exec("readlink", "/proc/self/ns/"+kind))
}

func hostNamespace(t testing.TB, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func hostname(t testing.TB) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, row := range []struct {
		kind   string
		choose func(*cri.NamespaceOption, cri.NamespaceMode)
		mode   cri.NamespaceMode
		shared bool // by two containers of the pod
		host   bool
	}{
		{"pid", setPid, cri.NamespaceMode_CONTAINER, false, false},
		{"pid", setPid, cri.NamespaceMode_POD, true, false},
		{"pid", setPid, cri.NamespaceMode_NODE, true, true},
		{"ipc", setIpc, cri.NamespaceMode_POD, true, false},
		{"ipc", setIpc, cri.NamespaceMode_NODE, true, true},
		{"net", setNet, cri.NamespaceMode_POD, true, false},
		{"uts", setNet, cri.NamespaceMode_POD, true, false},
		{"mnt", setNet, cri.NamespaceMode_POD, false, false},
	} {
		p := d.runPod(func(c *cri.PodSandboxConfig) { row.choose(c.Linux.SecurityContext.NamespaceOptions, row.mode) })
		a, b := p.run(idle()), p.run(idle())
		first, second := namespace(a, row.kind), namespace(b, row.kind)
		if (first == second) != row.shared {
			t.Errorf("%s %s: two containers are in %s and %s, shared should be %t", row.kind, row.mode, first, second, row.shared)
		}
		if host := hostNamespace(t, row.kind); (first == host) != row.host {
			t.Errorf("%s %s: the container is in %s, the host in %s, the host's should be %t", row.kind, row.mode, first, host, row.host)
		}
		p.stop()
		p.remove()
	}
}

func setPid(o *cri.NamespaceOption, m cri.NamespaceMode) { o.Pid = m }
func setIpc(o *cri.NamespaceOption, m cri.NamespaceMode) { o.Ipc = m }
func setNet(o *cri.NamespaceOption, m cri.NamespaceMode) { o.Network = m }

func TestSysctls(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "40000\t41000", "kernel/shm_rmid_forced": "1", "net/core/somaxconn": "77\n"}
	})
	c := p.run(idle())
	for path, want := range map[string]string{
		"net/ipv4/ip_local_port_range": "40000 41000", "kernel/shm_rmid_forced": "1", "net/core/somaxconn": "77",
	} {
		if got := strings.Join(strings.Fields(c.exec("cat", "/proc/sys/"+path)), " "); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

// TestCgroupParent: the pod's cgroup is the kubelet's. Containers are made under it, and it stays when they go.
func TestCgroupParent(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	parent := d.makeCgroup()
	p := d.runPod(func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	c := p.run(idle())
	for _, line := range strings.Split(strings.TrimSpace(mustLook(c).Cgroup), "\n") {
		fields := strings.SplitN(line, ":", 3)
		if controllerIsUsed(fields[1]) && !strings.HasPrefix(fields[2], parent+"/") {
			t.Errorf("the container is in %s, want under %s", line, parent)
		}
	}
	p.stop()
	p.remove()
	for _, folder := range hierarchies(t) {
		entries, err := os.ReadDir(filepath.Join(folder, parent))
		if err != nil {
			t.Errorf("the kubelet's cgroup is gone: %v", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				t.Errorf("%s was left in %s", e.Name(), filepath.Join(folder, parent))
			}
		}
	}
}

func TestPortMapping(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	port := freePort(t)
	p := d.runPod(func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{
			{Protocol: cri.Protocol_TCP, HostPort: int32(port), ContainerPort: 8080},
			{Protocol: cri.Protocol_TCP, ContainerPort: 9090}, // as a kubelet sends it for a port that is only declared
		}
	})
	p.run(shell("mkdir -p /www && echo through the host > /www/index.html && exec httpd -f -p 8080 -h /www"))
	eventually(t, "the mapped port to answer", func() error {
		body, err := get(fmt.Sprintf("http://%s:%d/index.html", hostAddress(t), port))
		if err == nil {
			err = unless(body == "through the host\n", "it says %q", body)
		}
		return err
	})
	p.stop()
	if _, err := get(fmt.Sprintf("http://%s:%d/", hostAddress(t), port)); err == nil {
		t.Error("the mapped port answers although the pod is stopped")
	}
}

// deadAddress is one where nobody listens, and nobody can while the test runs.
func deadAddress(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// hostAddress is an address of this host that is not loopback.
func hostAddress(t testing.TB) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("this host has no address but loopback")
	return ""
}

func get(url string) (string, error) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

// TestNetworkReadyFollowsTheFolder: what /etc/cni/net.d says counts now, not what it said at the start.
func TestNetworkReadyFollowsTheFolder(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withOwnNetwork())
	d.wantCondition(cri.NetworkReady, false)
	d.wantCondition(cri.RuntimeReady, true)
	_, err := d.tryPod(d.podConfig())
	wantCode(t, err, codes.Unavailable, "network")

	d.writeNetwork("first")
	d.wantCondition(cri.NetworkReady, true)
	p := d.runPod()
	p.ip()

	d.must(os.RemoveAll(d.confDir()))
	d.wantCondition(cri.NetworkReady, false)
	p.stop() // needs what the pod was connected with, not what the folder holds now
	p.remove()

	d.must(os.MkdirAll(d.confDir(), 0o755))
	d.writeNetwork("second")
	d.wantCondition(cri.NetworkReady, true)
	d.runPod().ip()
}

// writeNetwork puts a network of the standard plugins into the folder, in one step.
func (d *daemon) writeNetwork(name string) {
	d.Helper()
	d.writeNetworkOf(name, fmt.Sprintf(`[{"subnet": %q}]`, d.subnet))
}

// writeNetworkOf is writeNetwork with ranges of host-local.
func (d *daemon) writeNetworkOf(name, ranges string) {
	d.Helper()
	name += "-" + d.instance()
	conflist := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [
		{"type": "bridge", "bridge": "cbt%s", "isGateway": true, "ipMasq": true,
		 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [%s]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}]}`,
		name, d.instance(), filepath.Join(d.state, "test-leases"), ranges)
	unfinished := filepath.Join(d.dir, name)
	d.must(os.WriteFile(unfinished, []byte(conflist), 0o600))
	d.must(os.Rename(unfinished, filepath.Join(d.confDir(), "10-"+name+".conflist")))
}

func (d *daemon) wantCondition(kind string, want bool) {
	d.Helper()
	eventually(d, fmt.Sprintf("%s=%t", kind, want), func() error {
		r, err := d.runtime.Status(context.Background(), &cri.StatusRequest{})
		if err != nil {
			return err
		}
		for _, c := range r.Status.Conditions {
			if c.Type != kind {
				continue
			}
			if !c.Status && (c.Reason == "" || c.Message == "") {
				return fmt.Errorf("%s is false without reason and message: %v", kind, c)
			}
			return unless(c.Status == want, "it is %v", c)
		}
		return fmt.Errorf("no such condition in %v", r.Status.Conditions)
	})
}

func TestPauseDies(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	pause := d.processesOf(p.id)
	if len(pause) != 1 {
		t.Fatalf("a fresh pod has %d processes: %v", len(pause), pause)
	}
	d.must(syscall.Kill(pause[0].Pid, syscall.SIGKILL))
	eventually(t, "the pod to be NOTREADY by itself", func() error {
		s := p.status()
		return unless(s.State == cri.PodSandboxState_SANDBOX_NOTREADY, "it is %s", s.State)
	})
}

// TestSamePodTwice: a request that comes again joins the one in flight, or gets its result.
func TestSamePodTwice(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	config := d.podConfig()
	ids := make([]string, 4)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			p, err := d.tryPod(config)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = p.id
		})
	}
	all.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("the same request got different pods: %v", ids)
		}
	}
	again, err := d.tryPod(config)
	d.must(err)
	if again.id != ids[0] {
		t.Errorf("a late repetition got %s, want %s", again.id, ids[0])
	}
	other := proto.CloneOf(config)
	other.Hostname = "other"
	_, err = d.tryPod(other)
	wantCode(t, err, codes.AlreadyExists, ids[0])

	next := proto.CloneOf(config)
	next.Metadata.Attempt++
	second, err := d.tryPod(next)
	d.must(err)
	if second.id == ids[0] {
		t.Error("the next attempt got the pod of the first")
	}
}

// semantic is what the CRI asks of runtime_version; a kubelet shows anything else as Unknown.
var semantic = regexp.MustCompile(`^v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

func TestVersionAndStatus(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, asked := range []string{"", "0.1.0", "v9"} {
		v, err := d.runtime.Version(context.Background(), &cri.VersionRequest{Version: asked})
		d.must(err)
		if v.Version != "0.1.0" || v.RuntimeName != "cribox" || !semantic.MatchString(v.RuntimeVersion) || v.RuntimeApiVersion != "v1" {
			t.Errorf("version: %v", v)
		}
	}
	s, err := d.runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.must(err)
	if len(s.Info) == 0 {
		t.Error("a verbose status has no info")
	}
	for key, value := range s.Info {
		if !json.Valid([]byte(value)) {
			t.Errorf("the information %s is no JSON: %s", key, value)
		}
	}
	brief, err := d.runtime.Status(context.Background(), &cri.StatusRequest{})
	d.must(err)
	if len(brief.Info) > 0 {
		t.Errorf("a status that is not verbose has info: %v", brief.Info)
	}
	config, err := d.runtime.RuntimeConfig(context.Background(), &cri.RuntimeConfigRequest{})
	d.must(err)
	driver := cri.CgroupDriver_CGROUPFS
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		driver = cri.CgroupDriver_SYSTEMD
	}
	if config.Linux == nil || config.Linux.CgroupDriver != driver {
		t.Errorf("runtime config: %v", config)
	}
	handlers := map[string]bool{}
	for _, h := range s.RuntimeHandlers {
		handlers[h.Name] = true
	}
	if !handlers[""] || !handlers["runc"] {
		t.Errorf("runtime handlers %v lack the default or runc", s.RuntimeHandlers)
	}
	d.wantCondition(cri.RuntimeReady, true)
	d.wantCondition(cri.NetworkReady, true)
}

func TestUpdateRuntimeConfig(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	update := func(cidr string) error {
		_, err := d.runtime.UpdateRuntimeConfig(context.Background(), &cri.UpdateRuntimeConfigRequest{
			RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	d.must(update(d.subnet))
	wantCode(t, update("10.0.0.0/99"), codes.InvalidArgument, "10.0.0.0/99")
	_, err := d.runtime.UpdateRuntimeConfig(context.Background(), &cri.UpdateRuntimeConfigRequest{})
	d.must(err)
}
