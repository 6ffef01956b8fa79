package crictltests

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
)

// badPods is RunPodSandbox, in the order of its message.
func badPods() []bad[*cri.RunPodSandboxRequest] {
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
	return []bad[request]{
		{name: "no config", change: func(r request) { r.Config = nil }, field: "config"},
		{name: "no metadata", change: func(r request) { r.Config.Metadata = nil }, field: "metadata"},
		{name: "no name", change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = "" }), field: "metadata.name"},
		{name: "long name", change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = long }), field: "metadata.name"},
		{name: "long namespace", change: metadata(func(m *cri.PodSandboxMetadata) { m.Namespace = long }), field: "metadata.namespace"},
		{name: "long uid", change: metadata(func(m *cri.PodSandboxMetadata) { m.Uid = long }), field: "metadata.uid"},
		{name: "name is a path", change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = "../x" }), field: "metadata.name"},
		{name: "namespace is a path", change: metadata(func(m *cri.PodSandboxMetadata) { m.Namespace = ".." }), field: "metadata.namespace"},
		{name: "uid is a path", change: metadata(func(m *cri.PodSandboxMetadata) { m.Uid = "a/b" }), field: "metadata.uid"},
		{name: "NUL in name", change: metadata(func(m *cri.PodSandboxMetadata) { m.Name = "a\x00b" }), field: "metadata.name"},
		{name: "NUL in namespace", change: metadata(func(m *cri.PodSandboxMetadata) { m.Namespace = "a\x00b" }), field: "metadata.namespace"},
		{name: "NUL in uid", change: metadata(func(m *cri.PodSandboxMetadata) { m.Uid = "\x00" }), field: "metadata.uid"},

		{name: "host name of two lines", change: func(r request) { r.Config.Hostname = "a\nb" }, field: "hostname"},
		{name: "long host name", change: func(r request) { r.Config.Hostname = strings.Repeat("h", 65) }, field: "hostname"},
		{name: "relative logs", change: func(r request) { r.Config.LogDirectory = "logs" }, field: "log_directory"},
		{name: "logs up", change: func(r request) { r.Config.LogDirectory = "/var/log/../../x" }, field: "log_directory"},

		{name: "server of two lines", change: dns(&cri.DNSConfig{Servers: []string{"192.0.2.1\nnameserver 192.0.2.2"}}), field: "dns_config.servers"},
		{name: "a megabyte of searches", change: dns(&cri.DNSConfig{Searches: slices.Repeat([]string{strings.Repeat("a", 200)}, 5000)}), field: "dns_config.searches"},
		{name: "option of two lines", change: dns(&cri.DNSConfig{Options: []string{"ndots:5\nsearch x"}}), field: "dns_config.options"},

		{name: "host port too large", change: ports(&cri.PortMapping{HostPort: 65536, ContainerPort: 80}), field: "port_mappings.host_port"},
		{name: "host port negative", change: ports(&cri.PortMapping{HostPort: -1, ContainerPort: 80}), field: "port_mappings.host_port"},
		{name: "no container port", change: ports(&cri.PortMapping{HostPort: 80}), field: "port_mappings.container_port"},
		{name: "container port too large", change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 65536}), field: "port_mappings.container_port"},
		{name: "container port negative", change: ports(&cri.PortMapping{ContainerPort: -1}), field: "port_mappings.container_port"},
		{name: "host port twice", change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80}, &cri.PortMapping{HostPort: 80, ContainerPort: 81}),
			field: "port_mappings.host_port"},
		{name: "host ip is none", change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "not-an-ip"}), field: "port_mappings.host_ip"},
		{name: "protocol is none", change: ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: 99}), field: "port_mappings.protocol"},

		{name: "cgroup parent up", change: parent("/a/../../b"), field: "linux.cgroup_parent"},
		{name: "cgroup parent with a blank", change: parent("/a b"), field: "linux.cgroup_parent"},
		{name: "cgroup parent with NUL", change: parent("/a\x00"), field: "linux.cgroup_parent"},
		{name: "sysctl without a part", change: sysctl("nonsense", "1"), field: "linux.sysctls"},
		{name: "sysctl of nobody", change: sysctl("nonsense.key", "1"), field: "nonsense.key"},
		{name: "sysctl is a path", change: sysctl("net/../../kernel.panic", "1"), field: "linux.sysctls"},
		{name: "sysctl of the host", change: sysctl("vm.swappiness", "1"), field: "vm.swappiness"},
		{name: "sysctl of two lines", change: sysctl("net.ipv4.ip_forward", "1\nkernel.panic=1"), field: "net.ipv4.ip_forward"},
		{name: "network sysctl on the host's network", change: func(r request) {
			onHostNetwork(r.Config)
			r.Config.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, field: "net.ipv4.ip_forward"},
		{name: "negative memory", change: func(r request) { r.Config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: -2} },
			field: "linux.resources"},
		{name: "negative overhead", change: func(r request) { r.Config.Linux.Overhead = &cri.LinuxContainerResources{CpuShares: -1} },
			field: "linux.overhead"},

		{name: "network of a container", change: namespaces(func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_CONTAINER }), field: "namespace_options.network"},
		{name: "ipc of a target", change: namespaces(func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_TARGET }), field: "namespace_options.ipc"},
		{name: "pid of a target", change: namespaces(func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_TARGET }), field: "namespace_options.pid"},
		{name: "pid mode is none", change: namespaces(func(o *cri.NamespaceOption) { o.Pid = 42 }), field: "namespace_options.pid"},
		{name: "target of a pod", change: namespaces(func(o *cri.NamespaceOption) { o.TargetId = "feed" }), field: "namespace_options.target_id"},
		{name: "empty id range", change: mapping(&cri.IDMapping{HostId: 100000}), field: "userns_options"},
		{name: "id ranges overlap", change: mapping(&cri.IDMapping{HostId: 100000, Length: 65536}, &cri.IDMapping{HostId: 200000, ContainerId: 1, Length: 10}),
			field: "userns_options"},
		{name: "id range too long", change: mapping(&cri.IDMapping{HostId: 1<<32 - 10, Length: 11}), field: "userns_options"},
		{name: "id range with root of the host", change: mapping(&cri.IDMapping{Length: 65536}), field: "userns_options.uids: mapping 0 gives the pod root"},
		{name: "id range with what is no id", change: mapping(&cri.IDMapping{HostId: 1<<32 - 65536, Length: 65536}), field: "userns_options.uids: mapping 0 includes"},

		{name: "negative user", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -1} }), field: "run_as_user"},
		{name: "user beyond 31 bits", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1 << 31} }),
			field: "run_as_user"},
		{name: "group without user", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 1} }),
			field: "run_as_group"},
		{name: "negative supplemental group", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{-1} }),
			field: "supplemental_groups"},
		{name: "no seccomp file", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp = localhost("/no/such/profile.json") }),
			field: "seccomp.localhost_ref"},
		{name: "relative seccomp file", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp = localhost("profile.json") }),
			field: "seccomp.localhost_ref"},
		{name: "seccomp file up", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp = localhost("/etc/../etc/passwd") }),
			field: "seccomp.localhost_ref"},
		{name: "no seccomp type", change: security(func(s *cri.LinuxSandboxSecurityContext) { s.Seccomp.ProfileType = 42 }), field: "seccomp.profile_type"},

		{name: "windows", change: func(r request) { r.Config.Windows = &cri.WindowsPodSandboxConfig{} }, field: "windows"},
		{name: "unknown handler", change: func(r request) { r.RuntimeHandler = "no-such-handler" }, field: `runtime_handler "no-such-handler"`},
	}
}

func localhost(path string) *cri.SecurityProfile {
	return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: path}
}

func TestBadPods(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	before := d.ledger()
	wantRefused(t, badPods(), func() *cri.RunPodSandboxRequest { return &cri.RunPodSandboxRequest{Config: d.podConfig()} }, d.askForPod, d.removePod)
	if left := d.listed(); len(left) > 0 {
		t.Errorf("refused pods are listed: %v", left)
	}
	d.wantFlat(before)
}

func (d *daemon) askForPod(r *cri.RunPodSandboxRequest) (string, error) {
	reply, err := d.runtime.RunPodSandbox(context.Background(), r)
	return reply.GetPodSandboxId(), err
}

func (d *daemon) removePod(id string) { (&pod{daemon: d, id: id}).remove() }

// TestNameIsTaken: what differs in anything is another pod, and there is one of that name and attempt already.
func TestNameIsTaken(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	first := d.runPod()
	before := d.ledger()
	type request = *cri.RunPodSandboxRequest
	wantRefused(t, []bad[request]{
		{name: "other labels", change: func(r request) { r.Config.Labels["app"] = "other" }, field: first.id, code: codes.AlreadyExists},
		{name: "other logs", change: func(r request) { r.Config.LogDirectory = filepath.Join(d.logs(), "other") }, field: first.id, code: codes.AlreadyExists},
		{name: "other handler", change: func(r request) { r.RuntimeHandler = "runc" }, field: first.id, code: codes.AlreadyExists},
	}, func() request { return &cri.RunPodSandboxRequest{Config: proto.CloneOf(first.config)} }, d.askForPod, d.removePod)
	if left := d.listed(); len(left) != 1 {
		t.Errorf("listed are %v, want %s alone", left, first.id)
	}
	d.wantFlat(before)
}

// TestStopAndRemoveAgain: both may be asked at any time, any number of times.
func TestStopAndRemoveAgain(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.pulled(busybox)
	before := d.ledger()
	p := d.runPod()
	p.run(idle())
	for _, ask := range []func(){p.stop, p.remove} {
		var all sync.WaitGroup
		for range 10 {
			all.Go(ask)
		}
		all.Wait()
		ask()
	}
	_, err := d.runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	wantCode(t, err, codes.NotFound, p.id)
	d.wantFlat(before)
}

// TestNoNetworkNoPod: what would need a network waits for one, and leaves nothing.
func TestNoNetworkNoPod(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withOwnNetwork())
	before := d.ledger()
	_, err := d.tryPod(d.podConfig())
	wantCode(t, err, codes.Unavailable, "no network")
	if left := d.listed(); len(left) > 0 {
		t.Errorf("listed: %v", left)
	}
	d.wantFlat(before)
}

// TestNoDescriptors: a daemon that can open nothing says that it has too little of something, and leaves nothing half done.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
	config, another := p.containerConfig(idle()), d.podConfig(onHostNetwork)
	before := d.ledger()
	var usual unix.Rlimit
	d.must(unix.Prlimit(d.process.pid(), unix.RLIMIT_NOFILE, nil, &usual))
	d.must(unix.Prlimit(d.process.pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Max: usual.Max}, nil))
	_, pod := d.tryPod(another)
	_, container := p.tryCreate(config)
	_, image := d.tryPull(d.ref("web:1"), nil)
	d.must(unix.Prlimit(d.process.pid(), unix.RLIMIT_NOFILE, &usual, nil))
	for _, err := range []error{pod, container, image} {
		wantCode(t, err, codes.ResourceExhausted, "too many open files")
	}
	d.wantFlat(before)
	second, err := d.tryPod(another)
	d.must(err)
	second.run(idle())
}

// TestFullDisk: a pod whose record cannot be written is refused as what it is, and leaves nothing.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	d := prepareDaemon(t)
	d.must(os.MkdirAll(d.root, 0o700))
	d.must(syscall.Mount("tmpfs", d.root, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = syscall.Unmount(d.root, syscall.MNT_DETACH) })
	d.start()
	d.empty = d.ledger()
	filler := filepath.Join(d.root, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	before := d.ledger()
	_, err := d.tryPod(d.podConfig())
	wantCode(t, err, codes.ResourceExhausted)
	d.wantFlat(before)
	d.must(os.Remove(filler))
	d.runPod()
	d.removeAll()
	d.shutdown()
	d.empty = nil // it has ended, and its root is about to go
}
