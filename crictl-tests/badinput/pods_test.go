package badinput

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// badPods is RunPodSandbox, in the order of its message.
func badPods() []harness.BadRequest[*cri.RunPodSandboxRequest] {
	type request = *cri.RunPodSandboxRequest
	metadata := func(change func(*cri.PodSandboxMetadata)) func(request) {
		return func(r request) { change(r.Config.Metadata) }
	}
	ports := func(p ...*cri.PortMapping) func(request) { return func(r request) { r.Config.PortMappings = p } }
	dns := func(c *cri.DNSConfig) func(request) { return func(r request) { r.Config.DnsConfig = c } }
	parent := func(path string) func(request) { return func(r request) { r.Config.Linux.CgroupParent = path } }
	sysctl := func(key, value string) func(request) {
		return func(r request) { r.Config.Linux.Sysctls = map[string]string{key: value} }
	}
	security := func(change func(*cri.LinuxSandboxSecurityContext)) func(request) {
		return func(r request) { change(r.Config.Linux.SecurityContext) }
	}
	namespaces := func(change func(*cri.NamespaceOption)) func(request) {
		return func(r request) { change(r.Config.Linux.SecurityContext.NamespaceOptions) }
	}
	mapping := func(m ...*cri.IDMapping) func(request) {
		return namespaces(func(o *cri.NamespaceOption) {
			o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: m, Gids: m}
		})
	}
	long := strings.Repeat("n", 254)
	return []harness.BadRequest[request]{
		{Name: "no config", Change: func(r request) { r.Config = nil }, Field: "config"},
		{Name: "no metadata", Change: func(r request) { r.Config.Metadata = nil }, Field: "metadata"},
		{Name: "no name", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = "" }), Field: "metadata.name"},
		{Name: "long name", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = long }), Field: "metadata.name"},
		{Name: "long namespace", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Namespace = long }), Field: "metadata.namespace"},
		{Name: "long uid", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Uid = long }), Field: "metadata.uid"},
		{Name: "name is a path", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = "../x" }), Field: "metadata.name"},
		{Name: "namespace is a path", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Namespace = ".." }), Field: "metadata.namespace"},
		{Name: "uid is a path", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Uid = "a/b" }), Field: "metadata.uid"},
		{Name: "NUL in name", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = "a\x00b" }), Field: "metadata.name"},
		{Name: "NUL in namespace", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Namespace = "a\x00b" }), Field: "metadata.namespace"},
		{Name: "NUL in uid", Change: metadata(func(m *cri.PodSandboxMetadata) { m.Uid = "\x00" }), Field: "metadata.uid"},

		{Name: "host name of two lines", Change: func(r request) { r.Config.Hostname = "a\nb" }, Field: "hostname"},
		{Name: "long host name", Change: func(r request) { r.Config.Hostname = strings.Repeat("h", 65) }, Field: "hostname"},
		{Name: "relative logs", Change: func(r request) { r.Config.LogDirectory = "logs" }, Field: "log_directory"},
		{Name: "logs up", Change: func(r request) { r.Config.LogDirectory = "/var/log/../../x" }, Field: "log_directory"},

		{Name: "server of two lines", Change: dns(&cri.DNSConfig{Servers: []string{"192.0.2.1\nnameserver 192.0.2.2"}}), Field: "dns_config.servers"},
		{Name: "a megabyte of searches", Change: dns(&cri.DNSConfig{Searches: slices.Repeat([]string{strings.Repeat("a", 200)}, 5000)}), Field: "dns_config.searches"},
		{Name: "option of two lines", Change: dns(&cri.DNSConfig{Options: []string{"ndots:5\nsearch x"}}), Field: "dns_config.options"},

		{Name: "host port too large", Change: ports(&cri.PortMapping{HostPort: 65536, ContainerPort: 80}), Field: "port_mappings.host_port"},
		{Name: "host port negative", Change: ports(&cri.PortMapping{HostPort: -1, ContainerPort: 80}), Field: "port_mappings.host_port"},
		{Name: "no container port", Change: ports(&cri.PortMapping{HostPort: 80}), Field: "port_mappings.container_port"},
		{Name: "container port too large", Change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 65536}), Field: "port_mappings.container_port"},
		{Name: "container port negative", Change: ports(&cri.PortMapping{ContainerPort: -1}), Field: "port_mappings.container_port"},
		{Name: "host port twice", Change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80}, &cri.PortMapping{HostPort: 80, ContainerPort: 81}),
			Field: "port_mappings.host_port"},
		{Name: "host ip is none", Change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "not-an-ip"}), Field: "port_mappings.host_ip"},
		{Name: "protocol is none", Change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: 99}), Field: "port_mappings.protocol"},

		{Name: "cgroup parent up", Change: parent("/a/../../b"), Field: "linux.cgroup_parent"},
		{Name: "cgroup parent with a blank", Change: parent("/a b"), Field: "linux.cgroup_parent"},
		{Name: "cgroup parent with NUL", Change: parent("/a\x00"), Field: "linux.cgroup_parent"},
		{Name: "sysctl without a part", Change: sysctl("nonsense", "1"), Field: "linux.sysctls"},
		{Name: "sysctl of nobody", Change: sysctl("nonsense.key", "1"), Field: "nonsense.key"},
		{Name: "sysctl is a path", Change: sysctl("net/../../kernel.panic", "1"), Field: "linux.sysctls"},
		{Name: "sysctl of the host", Change: sysctl("vm.swappiness", "1"), Field: "vm.swappiness"},
		{Name: "sysctl of two lines", Change: sysctl("net.ipv4.ip_forward", "1\nkernel.panic=1"), Field: "net.ipv4.ip_forward"},
		{Name: "network sysctl on the host's network", Change: func(r request) {
			harness.OnHostNetwork(r.Config)
			r.Config.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, Field: "net.ipv4.ip_forward"},
		{Name: "negative memory", Change: func(r request) { r.Config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: -2} },
			Field: "linux.resources"},
		{Name: "negative overhead", Change: func(r request) { r.Config.Linux.Overhead = &cri.LinuxContainerResources{CpuShares: -1} },
			Field: "linux.overhead"},

		{Name: "network of a container", Change: namespaces(func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_CONTAINER }), Field: "namespace_options.network"},
		{Name: "ipc of a target", Change: namespaces(func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_TARGET }), Field: "namespace_options.ipc"},
		{Name: "pid of a target", Change: namespaces(func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_TARGET }), Field: "namespace_options.pid"},
		{Name: "pid mode is none", Change: namespaces(func(o *cri.NamespaceOption) { o.Pid = 42 }), Field: "namespace_options.pid"},
		{Name: "target of a pod", Change: namespaces(func(o *cri.NamespaceOption) { o.TargetId = "feed" }), Field: "namespace_options.target_id"},
		{Name: "empty id range", Change: mapping(&cri.IDMapping{HostId: 100000}), Field: "userns_options"},
		{Name: "id ranges overlap", Change: mapping(&cri.IDMapping{HostId: 100000, Length: 65536}, &cri.IDMapping{HostId: 200000, ContainerId: 1, Length: 10}),
			Field: "userns_options"},
		{Name: "id range too long", Change: mapping(&cri.IDMapping{HostId: 1<<32 - 10, Length: 11}), Field: "userns_options"},
		{Name: "id range with root of the host", Change: mapping(&cri.IDMapping{Length: 65536}), Field: "userns_options.uids: mapping 0 gives the pod root"},
		{Name: "id range with what is no id", Change: mapping(&cri.IDMapping{HostId: 1<<32 - 65536, Length: 65536}), Field: "userns_options.uids: mapping 0 includes"},

		{Name: "negative user", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -1} }), Field: "run_as_user"},
		{Name: "user beyond 31 bits", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1 << 31} }),
			Field: "run_as_user"},
		{Name: "group without user", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 1} }),
			Field: "run_as_group"},
		{Name: "negative supplemental group", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{-1} }),
			Field: "supplemental_groups"},
		{Name: "no seccomp file", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp = harness.Localhost("/no/such/profile.json") }),
			Field: "seccomp.localhost_ref"},
		{Name: "relative seccomp file", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp = harness.Localhost("profile.json") }),
			Field: "seccomp.localhost_ref"},
		{Name: "seccomp file up", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp = harness.Localhost("/etc/../etc/passwd") }),
			Field: "seccomp.localhost_ref"},
		{Name: "no seccomp type", Change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp.ProfileType = 42 }), Field: "seccomp.profile_type"},

		{Name: "windows", Change: func(r request) { r.Config.Windows = &cri.WindowsPodSandboxConfig{} }, Field: "windows"},
		{Name: "unknown handler", Change: func(r request) { r.RuntimeHandler = "no-such-handler" }, Field: `runtime_handler "no-such-handler"`},
	}
}

func TestBadPods(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	before := d.Ledger()
	harness.WantRefused(t, badPods(), func() *cri.RunPodSandboxRequest { return &cri.RunPodSandboxRequest{Config: d.PodConfig()} }, func(r *cri.RunPodSandboxRequest) (string, error) { return askForPod(d, r) }, func(id string) { removePod(d, id) })
	if left := d.Listed(); len(left) > 0 {
		t.Errorf("refused pods are listed: %v", left)
	}
	d.WantFlat(before)
}

func askForPod(d *harness.Daemon, r *cri.RunPodSandboxRequest) (string, error) {
	reply, err := d.Runtime.RunPodSandbox(context.Background(), r)
	return reply.GetPodSandboxId(), err
}

func removePod(d *harness.Daemon, id string) { (&harness.Pod{Daemon: d, ID: id}).Remove() }

// TestNameIsTaken: what differs in anything is another pod, and there is one of that name and attempt already.
func TestNameIsTaken(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	first := d.RunPod()
	before := d.Ledger()
	type request = *cri.RunPodSandboxRequest
	harness.WantRefused(t, []harness.BadRequest[request]{
		{Name: "other labels", Change: func(r request) { r.Config.Labels["app"] = "other" }, Field: first.ID, Code: codes.AlreadyExists},
		{Name: "other logs", Change: func(r request) { r.Config.LogDirectory = filepath.Join(d.Logs(), "other") }, Field: first.ID, Code: codes.AlreadyExists},
		{Name: "other handler", Change: func(r request) { r.RuntimeHandler = "runc" }, Field: first.ID, Code: codes.AlreadyExists},
	}, func() request { return &cri.RunPodSandboxRequest{Config: proto.CloneOf(first.Config)} }, func(r *cri.RunPodSandboxRequest) (string, error) { return askForPod(d, r) }, func(id string) { removePod(d, id) })
	if left := d.Listed(); len(left) != 1 {
		t.Errorf("listed are %v, want %s alone", left, first.ID)
	}
	d.WantFlat(before)
}

// TestStopAndRemoveAgain: both may be asked at any time, any number of times.
func TestStopAndRemoveAgain(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	before := d.Ledger()
	p := d.RunPod()
	p.Run(harness.Idle())
	for _, ask := range []func(){p.Stop, p.Remove} {
		var all sync.WaitGroup
		for range 10 {
			all.Go(ask)
		}
		all.Wait()
		ask()
	}
	_, err := d.Runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	harness.WantCode(t, err, codes.NotFound, p.ID)
	d.WantFlat(before)
}

// TestNoNetworkNoPod: what would need a network waits for one, and leaves nothing.
func TestNoNetworkNoPod(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithOwnNetwork())
	before := d.Ledger()
	_, err := d.TryPod(d.PodConfig())
	harness.WantCode(t, err, codes.Unavailable, "no network")
	if left := d.Listed(); len(left) > 0 {
		t.Errorf("listed: %v", left)
	}
	d.WantFlat(before)
}

// TestNoDescriptors: a daemon that can open nothing says that it has too little of something, and leaves nothing half done.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	config, another := p.ContainerConfig(harness.Idle()), d.PodConfig(harness.OnHostNetwork)
	before := d.Ledger()
	var usual unix.Rlimit
	d.Must(unix.Prlimit(d.Process.PID(), unix.RLIMIT_NOFILE, nil, &usual))
	d.Must(unix.Prlimit(d.Process.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Max: usual.Max}, nil))
	_, pod := d.TryPod(another)
	_, container := p.TryCreate(config)
	_, image := d.TryPull(d.Ref("web:1"), nil)
	d.Must(unix.Prlimit(d.Process.PID(), unix.RLIMIT_NOFILE, &usual, nil))
	for _, err := range []error{pod, container, image} {
		harness.WantCode(t, err, codes.ResourceExhausted, "too many open files")
	}
	d.WantFlat(before)
	second, err := d.TryPod(another)
	d.Must(err)
	second.Run(harness.Idle())
}

// TestFullDisk: a pod whose record cannot be written is refused as what it is, and leaves nothing.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t)
	d.Must(os.MkdirAll(d.Root, 0o700))
	d.Must(syscall.Mount("tmpfs", d.Root, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = syscall.Unmount(d.Root, syscall.MNT_DETACH) })
	d.Start()
	d.Empty = d.Ledger()
	filler := filepath.Join(d.Root, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	before := d.Ledger()
	_, err := d.TryPod(d.PodConfig())
	harness.WantCode(t, err, codes.ResourceExhausted)
	d.WantFlat(before)
	d.Must(os.Remove(filler))
	d.RunPod()
	d.RemoveAll()
	d.Shutdown()
	d.Empty = nil // it has ended, and its root is about to go
}
