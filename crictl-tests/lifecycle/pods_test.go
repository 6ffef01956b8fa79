package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestPodLifecycle(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	began := time.Now().UnixNano()
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Labels, c.Annotations = harness.Awkward, harness.Awkward })

	s := p.Status()
	if s.Id != p.ID || !proto.Equal(s.Metadata, p.Config.Metadata) {
		t.Errorf("status is of %s %v, want %s %v", s.Id, s.Metadata, p.ID, p.Config.Metadata)
	}
	if s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("state %s", s.State)
	}
	if s.CreatedAt < began || s.CreatedAt > time.Now().UnixNano() {
		t.Errorf("created_at %d is not nanoseconds of now", s.CreatedAt)
	}
	wantSame(t, "labels", s.Labels, harness.Awkward)
	wantSame(t, "annotations", s.Annotations, harness.Awkward)
	if want := p.Config.Linux.SecurityContext.NamespaceOptions; !proto.Equal(s.Linux.GetNamespaces().GetOptions(), want) {
		t.Errorf("namespaces %v, want the options as asked: %v", s.Linux.GetNamespaces().GetOptions(), want)
	}
	if ip, err := netip.ParseAddr(s.Network.GetIp()); err != nil || !netip.MustParsePrefix(d.Subnet).Contains(ip) {
		t.Errorf("address %q is not of %s (%v)", s.Network.GetIp(), d.Subnet, err)
	}

	p.Stop()
	if s := p.Status(); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("state after stop: %s", s.State)
	}
	p.Stop()
	p.Remove()
	_, err := d.Runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	harness.WantCode(t, err, codes.NotFound, p.ID)
	p.Remove()
	p.Stop()
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
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(harness.Idle())
	p.Remove()
	_, err := d.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	harness.WantCode(t, err, codes.NotFound, c.ID)
}

func TestListPods(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	blue := d.RunPod(func(c *cri.PodSandboxConfig) { c.Labels = map[string]string{"colour": "blue", "size": "s"} })
	red := d.RunPod(func(c *cri.PodSandboxConfig) { c.Labels = map[string]string{"colour": "red", "size": "s"} })
	red.Stop()
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	for _, row := range []struct {
		name   string
		filter *cri.PodSandboxFilter
		want   []*harness.Pod
	}{
		{"no filter", nil, []*harness.Pod{blue, red}},
		{"empty filter", &cri.PodSandboxFilter{}, []*harness.Pod{blue, red}},
		{"id", &cri.PodSandboxFilter{Id: blue.ID}, []*harness.Pod{blue}},
		{"start of the id", &cri.PodSandboxFilter{Id: blue.ID[:13]}, []*harness.Pod{blue}},
		{"unknown id", &cri.PodSandboxFilter{Id: "feedfeedfeed"}, nil},
		{"state", &cri.PodSandboxFilter{State: ready}, []*harness.Pod{blue}},
		{"label", &cri.PodSandboxFilter{LabelSelector: map[string]string{"colour": "red"}}, []*harness.Pod{red}},
		{"all labels must match", &cri.PodSandboxFilter{LabelSelector: map[string]string{"colour": "red", "size": "l"}}, nil},
		{"id and state and label", &cri.PodSandboxFilter{Id: red.ID, State: ready, LabelSelector: map[string]string{"size": "s"}}, nil},
	} {
		r, err := d.Runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{Filter: row.filter})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		harness.WantEqual(t, row.name+": the stream", podStream(d, row.filter), r)
		got := map[string]bool{}
		for _, item := range r.Items {
			got[item.Id] = true
		}
		if len(got) != len(row.want) {
			t.Errorf("%s: %d pods, want %d", row.name, len(got), len(row.want))
		}
		for _, p := range row.want {
			if !got[p.ID] {
				t.Errorf("%s: pod %s is missing", row.name, p.Config.Metadata.Name)
			}
		}
	}
}

func TestPodFilesSeenFromInside(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.Hostname = "box"
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.53", "192.0.2.54"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"}}
	})
	c := p.Run(harness.Idle())
	if got := strings.TrimSpace(c.Exec("hostname")); got != "box" {
		t.Errorf("hostname %q", got)
	}
	if got := strings.TrimSpace(c.Exec("cat", "/etc/hostname")); got != "box" {
		t.Errorf("/etc/hostname %q", got)
	}
	resolv := c.Exec("cat", "/etc/resolv.conf")
	for _, want := range []string{"nameserver 192.0.2.53\n", "nameserver 192.0.2.54\n", "search a.test b.test\n", "options ndots:5\n"} {
		if !strings.Contains(resolv, want) {
			t.Errorf("/etc/resolv.conf lacks %q:\n%s", want, resolv)
		}
	}
	if kind := strings.TrimSpace(c.Exec("stat", "-f", "-c", "%T", "/dev/shm")); kind != "tmpfs" {
		t.Errorf("/dev/shm is %s", kind)
	}
	if size := c.Exec("df", "-m", "/dev/shm"); !strings.Contains(size, " 64 ") && !strings.Contains(size, " 64.0M ") {
		t.Errorf("/dev/shm is not 64 MiB:\n%s", size)
	}
	if _, err := c.TryExec(10, "touch", "/dev/shm/written"); err != nil {
		t.Error(err)
	}
}

func TestResolvConfOfTheHost(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	want, err := os.ReadFile("/etc/resolv.conf")
	d.Must(err)
	c := d.RunPod().Run(harness.Idle())
	if got := c.Exec("cat", "/etc/resolv.conf"); got != string(want) {
		t.Errorf("a pod without dns_config sees\n%swant the host's\n%s", got, want)
	}
}

func TestHostNetwork(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithOwnNetwork()) // the pod of a network's own installer runs before there is a network
	p := d.RunPod(harness.OnHostNetwork)
	s := p.Status()
	if ip := s.GetNetwork().GetIp(); ip != "" {
		t.Errorf("a pod on the host's network has the address %s", ip)
	}
	if mode := s.Linux.GetNamespaces().GetOptions().GetNetwork(); mode != cri.NamespaceMode_NODE {
		t.Errorf("network mode %s, want NODE as asked", mode)
	}
	c := p.Run(harness.Idle())
	if got, want := namespace(c, "net"), hostNamespace(t, "net"); got != want {
		t.Errorf("network namespace %s, want the host's %s", got, want)
	}
	if got, want := strings.TrimSpace(c.Exec("hostname")), harness.Hostname(t); got != want {
		t.Errorf("hostname %q, want the host's %q", got, want)
	}
}

// namespace is the namespace of a kind that the container is in.
func namespace(c *harness.Container, kind string) string {
	c.Helper()
	return strings.TrimSpace(c.Exec("readlink", "/proc/self/ns/"+kind))
}

func hostNamespace(t testing.TB, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
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
		p := d.RunPod(func(c *cri.PodSandboxConfig) { row.choose(c.Linux.SecurityContext.NamespaceOptions, row.mode) })
		a, b := p.Run(harness.Idle()), p.Run(harness.Idle())
		first, second := namespace(a, row.kind), namespace(b, row.kind)
		if (first == second) != row.shared {
			t.Errorf("%s %s: two containers are in %s and %s, shared should be %t", row.kind, row.mode, first, second, row.shared)
		}
		if host := hostNamespace(t, row.kind); (first == host) != row.host {
			t.Errorf("%s %s: the container is in %s, the host in %s, the host's should be %t", row.kind, row.mode, first, host, row.host)
		}
		p.Stop()
		p.Remove()
	}
}

func setPid(o *cri.NamespaceOption, m cri.NamespaceMode) { o.Pid = m }

func setIpc(o *cri.NamespaceOption, m cri.NamespaceMode) { o.Ipc = m }

func setNet(o *cri.NamespaceOption, m cri.NamespaceMode) { o.Network = m }

func TestSysctls(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "40000\t41000", "kernel/shm_rmid_forced": "1", "net/core/somaxconn": "77\n"}
	})
	c := p.Run(harness.Idle())
	for path, want := range map[string]string{
		"net/ipv4/ip_local_port_range": "40000 41000", "kernel/shm_rmid_forced": "1", "net/core/somaxconn": "77",
	} {
		if got := strings.Join(strings.Fields(c.Exec("cat", "/proc/sys/"+path)), " "); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

// TestCgroupParent: the pod's cgroup is the kubelet's. Containers are made under it, and it stays when they go.
func TestCgroupParent(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	parent := d.MakeCgroup()
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent })
	c := p.Run(harness.Idle())
	for _, line := range strings.Split(strings.TrimSpace(harness.MustLook(c).Cgroup), "\n") {
		fields := strings.SplitN(line, ":", 3)
		if harness.ControllerIsUsed(fields[1]) && !strings.HasPrefix(fields[2], parent+"/") {
			t.Errorf("the container is in %s, want under %s", line, parent)
		}
	}
	p.Stop()
	p.Remove()
	for _, folder := range harness.Hierarchies(t) {
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
	d := harness.NewDaemon(t)
	port := harness.FreePort(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{
			{Protocol: cri.Protocol_TCP, HostPort: int32(port), ContainerPort: 8080},
			{Protocol: cri.Protocol_TCP, ContainerPort: 9090}, // as a kubelet sends it for a port that is only declared
		}
	})
	p.Run(harness.Shell("mkdir -p /www && echo through the host > /www/index.html && exec httpd -f -p 8080 -h /www"))
	harness.Eventually(t, "the mapped port to answer", func() error {
		body, err := harness.HTTPGet(fmt.Sprintf("http://%s:%d/index.html", harness.HostAddress(t), port))
		if err == nil {
			err = harness.Unless(body == "through the host\n", "it says %q", body)
		}
		return err
	})
	p.Stop()
	if _, err := harness.HTTPGet(fmt.Sprintf("http://%s:%d/", harness.HostAddress(t), port)); err == nil {
		t.Error("the mapped port answers although the pod is stopped")
	}
}

// TestNetworkReadyFollowsTheFolder: what /etc/cni/net.d says counts now, not what it said at the start.
func TestNetworkReadyFollowsTheFolder(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithOwnNetwork())
	d.WantCondition(cri.NetworkReady, false)
	d.WantCondition(cri.RuntimeReady, true)
	_, err := d.TryPod(d.PodConfig())
	harness.WantCode(t, err, codes.Unavailable, "network")

	d.WriteNetwork("first")
	d.WantCondition(cri.NetworkReady, true)
	p := d.RunPod()
	p.IP()

	d.Must(os.RemoveAll(d.ConfDir()))
	d.WantCondition(cri.NetworkReady, false)
	p.Stop() // needs what the pod was connected with, not what the folder holds now
	p.Remove()

	d.Must(os.MkdirAll(d.ConfDir(), 0o755))
	d.WriteNetwork("second")
	d.WantCondition(cri.NetworkReady, true)
	d.RunPod().IP()
}

func TestPauseDies(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	pause := d.ProcessesOf(p.ID)
	if len(pause) != 1 {
		t.Fatalf("a fresh pod has %d processes: %v", len(pause), pause)
	}
	d.Must(syscall.Kill(pause[0].Pid, syscall.SIGKILL))
	harness.Eventually(t, "the pod to be NOTREADY by itself", func() error {
		s := p.Status()
		return harness.Unless(s.State == cri.PodSandboxState_SANDBOX_NOTREADY, "it is %s", s.State)
	})
}

// TestSamePodTwice: a request that comes again joins the one in flight, or gets its result.
func TestSamePodTwice(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	config := d.PodConfig()
	ids := make([]string, 4)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			p, err := d.TryPod(config)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = p.ID
		})
	}
	all.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("the same request got different pods: %v", ids)
		}
	}
	again, err := d.TryPod(config)
	d.Must(err)
	if again.ID != ids[0] {
		t.Errorf("a late repetition got %s, want %s", again.ID, ids[0])
	}
	other := proto.CloneOf(config)
	other.Hostname = "other"
	_, err = d.TryPod(other)
	harness.WantCode(t, err, codes.AlreadyExists, ids[0])

	next := proto.CloneOf(config)
	next.Metadata.Attempt++
	second, err := d.TryPod(next)
	d.Must(err)
	if second.ID == ids[0] {
		t.Error("the next attempt got the pod of the first")
	}
}

// semantic is what the CRI asks of runtime_version; a kubelet shows anything else as Unknown.
var semantic = regexp.MustCompile(`^v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

func TestVersionAndStatus(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	for _, asked := range []string{"", "0.1.0", "v9"} {
		v, err := d.Runtime.Version(context.Background(), &cri.VersionRequest{Version: asked})
		d.Must(err)
		if v.Version != "0.1.0" || v.RuntimeName != "cribox" || !semantic.MatchString(v.RuntimeVersion) || v.RuntimeApiVersion != "v1" {
			t.Errorf("version: %v", v)
		}
	}
	s, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.Must(err)
	if len(s.Info) == 0 {
		t.Error("a verbose status has no info")
	}
	for key, value := range s.Info {
		if !json.Valid([]byte(value)) {
			t.Errorf("the information %s is no JSON: %s", key, value)
		}
	}
	brief, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{})
	d.Must(err)
	if len(brief.Info) > 0 {
		t.Errorf("a status that is not verbose has info: %v", brief.Info)
	}
	config, err := d.Runtime.RuntimeConfig(context.Background(), &cri.RuntimeConfigRequest{})
	d.Must(err)
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
	d.WantCondition(cri.RuntimeReady, true)
	d.WantCondition(cri.NetworkReady, true)
}

func TestUpdateRuntimeConfig(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	update := func(cidr string) error {
		_, err := d.Runtime.UpdateRuntimeConfig(context.Background(), &cri.UpdateRuntimeConfigRequest{
			RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	d.Must(update(d.Subnet))
	harness.WantCode(t, update("10.0.0.0/99"), codes.InvalidArgument, "10.0.0.0/99")
	_, err := d.Runtime.UpdateRuntimeConfig(context.Background(), &cri.UpdateRuntimeConfigRequest{})
	d.Must(err)
}
