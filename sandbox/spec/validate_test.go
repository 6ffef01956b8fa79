package spec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAcceptsWhatKubeletSends(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	p.Config.PortMappings = []*runtimeapi.PortMapping{
		{ContainerPort: 80}, {ContainerPort: 80, HostPort: 8080}, {ContainerPort: 80, HostPort: 8080, Protocol: runtimeapi.Protocol_UDP},
		{ContainerPort: 81, HostPort: 8080, HostIp: "10.0.0.1"}, {},
	}
	p.Config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10", "fd00::a"}, Searches: []string{"shop.svc.cluster.local", "."}, Options: []string{"ndots:5"}}
	p.Config.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "1024 65535", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "10", "net.ipv4.tcp_rmem": "4096\t87380\t6291456", "net.ipv4.tcp_congestion_control": "bbr"}
	p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	p.Config.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	p.Config.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}
	if err := ValidatePod(p.Config, h); err != nil {
		t.Error(err)
	}
	c.Config.LogPath = "web/0.log"
	c.Config.Envs = []*runtimeapi.KeyValue{{Key: "HOME", Value: []byte("/r\nx::0:0::/:/bin/sh")}, {Key: "A.B-c d", Value: nil}}
	c.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/pods/1/etc-hosts"}, {ContainerPath: "/dev/termination-log", HostPath: "/var/lib/kubelet/t"},
		{ContainerPath: "/host/proc", HostPath: "/proc"}, {ContainerPath: "/sys", HostPath: "/sys"}, {ContainerPath: "/dev", HostPath: "/dev"},
		{ContainerPath: "/proc/meminfo", HostPath: "/var/lib/lxcfs/proc/meminfo"}, {ContainerPath: "/a/../b/", HostPath: "/mnt//x/"},
	}
	c.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "mrw"}}
	c.security().MaskedPaths = []string{"/proc/kcore"}
	c.security().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL", "sys_admin", "CAP_NET_ADMIN"}, DropCapabilities: []string{"all", "Kill"}}
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: -1, CpuShares: 2, MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: 15 << 20, OomScoreAdj: 1000, CpusetCpus: "0,2-3", CpusetMems: "0"}
	if err := ValidateContainer(p.Config, c.Config, h); err != nil {
		t.Error(err)
	}
	if err := ValidateContainer(&runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "i"}}, Host{}); err != nil {
		t.Errorf("a request without any linux part: %v", err)
	}
}

// hostileNames is what no name may be (SEC-17).
var hostileNames = []string{"", "../../etc/x", "a/b", "..", ".", "a\x00b", "a\nb", "a\x7f", strings.Repeat("x", 4096)}

func TestRefusesPods(t *testing.T) {
	linux := func(p *runtimeapi.PodSandboxConfig) *runtimeapi.LinuxPodSandboxConfig { return p.Linux }
	sc := func(p *runtimeapi.PodSandboxConfig) *runtimeapi.LinuxSandboxSecurityContext {
		return p.Linux.SecurityContext
	}
	type row struct {
		field  string
		change func(*runtimeapi.PodSandboxConfig)
	}
	rows := []row{
		{"metadata", func(p *runtimeapi.PodSandboxConfig) { p.Metadata = nil }},
		{"dns_config.searches", func(p *runtimeapi.PodSandboxConfig) {
			p.DnsConfig = &runtimeapi.DNSConfig{Searches: slices.Repeat([]string{strings.Repeat("x", 200)}, 2000)}
		}},
		{"dns_config.servers", func(p *runtimeapi.PodSandboxConfig) {
			p.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\nnameserver 6.6.6.6"}}
		}},
		{"dns_config.searches", func(p *runtimeapi.PodSandboxConfig) {
			p.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a\x00b"}}
		}},
		{"dns_config.options", func(p *runtimeapi.PodSandboxConfig) {
			p.DnsConfig = &runtimeapi.DNSConfig{Options: []string{"ndots:1\noptions x"}}
		}},
		{"pid", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		}},
		{"pid", func(p *runtimeapi.PodSandboxConfig) { sc(p).NamespaceOptions.Pid = 77 }},
		{"network", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).NamespaceOptions.Network = runtimeapi.NamespaceMode_CONTAINER
		}},
		{"ipc", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_TARGET
		}},
		{"target_id", func(p *runtimeapi.PodSandboxConfig) { sc(p).NamespaceOptions.TargetId = "x" }},
		{"run_as_group", func(p *runtimeapi.PodSandboxConfig) { sc(p).RunAsGroup = &runtimeapi.Int64Value{} }},
		{"run_as_user", func(p *runtimeapi.PodSandboxConfig) { sc(p).RunAsUser = &runtimeapi.Int64Value{Value: 1 << 31} }},
		{"supplemental_groups", func(p *runtimeapi.PodSandboxConfig) { sc(p).SupplementalGroups = []int64{-1} }},
		{"supplemental_groups_policy", func(p *runtimeapi.PodSandboxConfig) { sc(p).SupplementalGroupsPolicy = 9 }},
		{"seccomp", func(p *runtimeapi.PodSandboxConfig) { sc(p).Seccomp.ProfileType = 9 }},
		{"seccomp.localhost_ref", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).Seccomp.ProfileType = runtimeapi.SecurityProfile_Localhost
		}},
		{"seccomp", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).Seccomp, sc(p).SeccompProfilePath = nil, "nonsense" //nolint:staticcheck // older kubelets
		}},
		{"linux.overhead", func(p *runtimeapi.PodSandboxConfig) {
			linux(p).Overhead = &runtimeapi.LinuxContainerResources{CpuShares: -1}
		}},
	}
	for _, name := range hostileNames {
		rows = append(rows,
			row{"metadata.name", func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Name = name }},
		)
		if name != "" {
			rows = append(rows,
				row{"metadata.namespace", func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Namespace = name }},
				row{"metadata.uid", func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Uid = name }},
				row{"hostname", func(p *runtimeapi.PodSandboxConfig) { p.Hostname = name }})
		}
	}
	for _, dir := range []string{"relative", "/var/log/../../etc", "/a\x00b", "/a\nb", "/" + strings.Repeat("x", 5000), "/proc/self/cwd", "/proc/1/root/x"} {
		rows = append(rows, row{"log_directory", func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = dir }})
	}
	for _, parent := range []string{"../x", "/a/../b", "/a b", "/a\nb", "a;b", "/" + strings.Repeat("x", 5000)} {
		rows = append(rows, row{"cgroup_parent", func(p *runtimeapi.PodSandboxConfig) { linux(p).CgroupParent = parent }})
	}
	// SEC-13
	for name, value := range map[string]string{
		"net.ipv4.ip_forward": "1+kernel.core_pattern=|/x", "net.core.somaxconn": "1 kernel.x=1", "../kernel/core_pattern": "x", "kernel.core_pattern": "|/x",
		"net/ipv4/conf/eth0.100/forwarding": "1", "net.ipv4.ip_unprivileged_port_start": "0\n1", "kernel.shm_rmid_forced_": "1", "kernel.msg": "1", "net": "1", "net.": "1",
		"net..ipv4": "1", "net.ipv4.\x00": "1", "kernel.shmmax.x": "1", "fs.mqueue": "1", "kernel.hostname": "x", "user.max_user_namespaces": "1", "net.x": "a\x00b", "net.y": "a=b",
		"NET.ipv4.x": "1", "net.ipv4/../../kernel/core_pattern": "x", "net.../kernel.core_pattern": "x", "vm.overcommit_memory": "1",
	} {
		rows = append(rows, row{"sysctls", func(p *runtimeapi.PodSandboxConfig) { linux(p).Sysctls = map[string]string{name: value} }})
	}
	rows = append(rows,
		row{"sysctls", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
			linux(p).Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
		}},
		row{"sysctls", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
			linux(p).Sysctls = map[string]string{"fs.mqueue.msg_max": "1"}
		}},
		row{"sysctls", func(p *runtimeapi.PodSandboxConfig) {
			sc(p).NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
			linux(p).Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}},
	)
	for _, m := range []*runtimeapi.PortMapping{
		{HostPort: 80}, {HostPort: 80, ContainerPort: 65536}, {HostPort: 65536, ContainerPort: 80}, {HostPort: -1, ContainerPort: 80},
		{ContainerPort: -1}, {HostPort: 80, ContainerPort: 80, Protocol: 9}, {HostPort: 80, ContainerPort: 80, HostIp: "localhost"},
	} {
		rows = append(rows, row{"port_mappings", func(p *runtimeapi.PodSandboxConfig) { p.PortMappings = []*runtimeapi.PortMapping{m} }})
	}
	rows = append(rows, row{"port_mappings.host_port", func(p *runtimeapi.PodSandboxConfig) {
		p.PortMappings = []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 1, HostIp: "::"}, {HostPort: 80, ContainerPort: 2, HostIp: "0:0::0"}}
	}})
	for _, u := range []*runtimeapi.UserNamespace{
		{Mode: runtimeapi.NamespaceMode_CONTAINER}, {Mode: runtimeapi.NamespaceMode_NODE, Uids: []*runtimeapi.IDMapping{{Length: 1}}},
		{Uids: []*runtimeapi.IDMapping{{Length: 0}}}, {Gids: []*runtimeapi.IDMapping{{HostId: 1<<32 - 1, Length: 2}}},
		{Uids: []*runtimeapi.IDMapping{{Length: 10}, {HostId: 9, ContainerId: 100, Length: 10}}}, {Uids: []*runtimeapi.IDMapping{nil}},
		{}, {Mode: runtimeapi.NamespaceMode_TARGET}, {Uids: aUserNamespace().Uids}, {Gids: aUserNamespace().Gids},
		{Uids: aUserNamespace().Uids, Gids: []*runtimeapi.IDMapping{{HostId: 100, Length: 10}, {HostId: 110, ContainerId: 10, Length: 10}}},
		{Uids: []*runtimeapi.IDMapping{{Length: 65536}}, Gids: aUserNamespace().Gids}, {Uids: aUserNamespace().Uids, Gids: []*runtimeapi.IDMapping{{Length: 1}}},
		{Uids: []*runtimeapi.IDMapping{{HostId: 1<<32 - 65536, Length: 65536}}, Gids: aUserNamespace().Gids},
		{Uids: aUserNamespace().Uids, Gids: []*runtimeapi.IDMapping{{HostId: 1, Length: 1<<32 - 1}}},
		{Uids: aUserNamespace().Uids, Gids: []*runtimeapi.IDMapping{{ContainerId: 1, HostId: 1000, Length: 10}}},
	} {
		rows = append(rows, row{"userns_options", func(p *runtimeapi.PodSandboxConfig) { sc(p).NamespaceOptions.UsernsOptions = u }})
	}
	for field, change := range map[string]func(*runtimeapi.LinuxSandboxSecurityContext){
		"pid": func(sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		},
		"ipc": func(sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
		},
	} {
		rows = append(rows, row{field, func(p *runtimeapi.PodSandboxConfig) {
			sc(p).NamespaceOptions.UsernsOptions = aUserNamespace()
			change(sc(p))
		}})
	}
	for i, r := range rows {
		t.Run(fmt.Sprintf("%d %s", i, r.field), func(t *testing.T) {
			p := aPod()
			r.change(p.Config)
			wantInvalid(t, ValidatePod(p.Config, aHost()), r.field)
			if _, _, err := ForPod(aHost(), p); !errdefs.IsInvalidArgument(err) {
				t.Errorf("ForPod makes a spec of it: %v", err)
			}
		})
	}
	wantInvalid(t, ValidatePod(nil, aHost()), "config")
	h := aHost()
	h.SystemdCgroup = true
	for _, parent := range []string{"/kubepods", "a:b.slice", "x.slice/y.service", ".slice", "a--b.slice", "-a.slice", "a-.slice", "/", "a.slice/b"} {
		p := aPod()
		p.Config.Linux.CgroupParent = parent
		wantInvalid(t, ValidatePod(p.Config, h), "cgroup_parent")
	}
}

func TestMissingHostFeaturesForPods(t *testing.T) {
	for name, change := range map[string]func(*Host, *Pod){
		"user namespaces": func(h *Host, p *Pod) {
			inUserNamespace(p, nil)
			h.NoUserNamespaces = "no id-mapped mounts"
		},
		"/sys of the host": func(h *Host, p *Pod) {
			inUserNamespace(p, nil)
			p.Config.Linux.SecurityContext.NamespaceOptions.Network, p.NetNS = runtimeapi.NamespaceMode_NODE, ""
			h.RecursiveReadOnly = false
		},
		"seccomp": func(h *Host, _ *Pod) { h.Seccomp = false },
		"apparmor": func(_ *Host, p *Pod) {
			p.Config.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{}
		},
		"selinux": func(h *Host, p *Pod) {
			h.SELinuxOff, p.Config.Linux.SecurityContext.SelinuxOptions = true, &runtimeapi.SELinuxOption{Level: "s0:c1"}
		},
		"selinux without a label": func(h *Host, p *Pod) {
			h.SELinux, p.Config.Linux.SecurityContext.SelinuxOptions = true, &runtimeapi.SELinuxOption{Role: "r"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, p := aHost(), aPod()
			change(&h, &p)
			_, _, err := ForPod(h, p)
			wantPrecondition(t, err)
		})
	}
}

func TestRefusesContainers(t *testing.T) {
	sc := func(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
		return c.Linux.SecurityContext
	}
	type row struct {
		field  string
		change func(*runtimeapi.ContainerConfig)
	}
	var rows []row
	add := func(field string, change func(*runtimeapi.ContainerConfig)) { rows = append(rows, row{field, change}) }

	add("metadata", func(c *runtimeapi.ContainerConfig) { c.Metadata = nil })
	add("image", func(c *runtimeapi.ContainerConfig) { c.Image = nil })
	add("image", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "" })
	for _, name := range hostileNames {
		add("metadata.name", func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = name })
	}
	for _, p := range []string{"/", "/../x", "../x", "a/../../b", "a\x00", "a\nb", ".", "dir/", strings.Repeat("x", 5000)} {
		add("log_path", func(c *runtimeapi.ContainerConfig) { c.LogPath = p })
	}
	// SEC-14
	for _, dir := range []string{"relative", "./x", "/proc/self/fd/3", "/proc/1/root", "/proc/../proc/self/fd/7", "/a\x00b", "/a\nb"} {
		add("working_dir", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = dir })
	}
	add("command", func(c *runtimeapi.ContainerConfig) { c.Command = []string{""} })
	add("command", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"a\x00b"} })
	add("args", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"a\x00b"} })
	add("command", func(c *runtimeapi.ContainerConfig) { c.Args = []string{strings.Repeat("x", 3<<20)} })
	add("command", func(c *runtimeapi.ContainerConfig) {
		for range 30 {
			c.Args = append(c.Args, strings.Repeat("x", 100<<10))
		}
	})
	add("envs", func(c *runtimeapi.ContainerConfig) {
		for i := range 200000 {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: fmt.Sprint(i)})
		}
	})
	add("envs", func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: make([]byte, 128<<10-2)}}
	})
	for _, e := range []*runtimeapi.KeyValue{nil, {}, {Key: "A=B"}, {Key: "A\x00"}, {Key: "A", Value: []byte("\x00")}} {
		add("envs", func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{e} })
	}
	image := &runtimeapi.ImageSpec{Image: "sha256:1"}
	for field, list := range map[string][]*runtimeapi.Mount{
		"mounts.container_path": {
			nil, {HostPath: "/a"}, {HostPath: "/a", ContainerPath: "/"}, {HostPath: "/a", ContainerPath: "/x/.."},
			{HostPath: "/a", ContainerPath: "/proc/cpuinfo/x"}, {HostPath: "/a", ContainerPath: "/proc/sys"}, {HostPath: "/a", ContainerPath: "/x/../proc/1"}, {HostPath: "/a", ContainerPath: "/a\x00"},
		},
		"mounts.host_path": {
			{ContainerPath: "/a"}, {ContainerPath: "/a", HostPath: "rel"}, {ContainerPath: "/a", HostPath: "/proc/self/fd/5"}, {ContainerPath: "/a", HostPath: "/proc/1/root"},
			{ContainerPath: "/a", HostPath: "//proc/./thread-self/cwd"}, {ContainerPath: "/a", HostPath: "/dev/fd/3"}, {ContainerPath: "/a", HostPath: "/x/../../etc"},
			{ContainerPath: "/a", HostPath: "/b", Image: image}, {ContainerPath: "/a", HostPath: "/\x00"},
		},
		"mounts.image_sub_path": {
			{ContainerPath: "/a", Image: image, ImageSubPath: ".."}, {ContainerPath: "/a", Image: image, ImageSubPath: "/etc"},
			{ContainerPath: "/a", Image: image, ImageSubPath: "a/../../b"},
		},
		"mounts.image":    {{ContainerPath: "/a", Image: &runtimeapi.ImageSpec{}}},
		"mounts.readonly": {{ContainerPath: "/a", Image: image}, {ContainerPath: "/a", Image: image, ImageSubPath: "x"}},
		"mounts.propagation": {
			{ContainerPath: "/a", HostPath: "/b", Propagation: 9}, {ContainerPath: "/a", Image: image, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		},
		"mounts.recursive_read_only": {
			{ContainerPath: "/a", HostPath: "/b", RecursiveReadOnly: true},
			{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		},
		"mounts.mount_options": {
			{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"rshared"}}, {ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"noexec", "suid"}},
			{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"nodev,exec"}},
		},
		"mounts.uidMappings": {{ContainerPath: "/a", HostPath: "/b", UidMappings: []*runtimeapi.IDMapping{{}}}},
	} {
		for _, m := range list {
			add(field, func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{m} })
		}
	}
	for _, d := range []*runtimeapi.Device{
		nil, {ContainerPath: "/a", HostPath: "/dev/a", Permissions: "xyz"}, {ContainerPath: "/a", HostPath: "/dev/a", Permissions: "r w"},
		{ContainerPath: "a", HostPath: "/dev/a", Permissions: "r"}, {ContainerPath: "/a", HostPath: "a", Permissions: "r"}, {ContainerPath: "/a", HostPath: "/proc/self/fd/1", Permissions: "r"},
	} {
		add("devices", func(c *runtimeapi.ContainerConfig) { c.Devices = []*runtimeapi.Device{d} })
	}
	add("CDI_devices", func(c *runtimeapi.ContainerConfig) { c.CDIDevices = []*runtimeapi.CDIDevice{{}} })
	for _, n := range []runtimeapi.Signal{-1, 66, 1000} {
		add("stop_signal", func(c *runtimeapi.ContainerConfig) { c.StopSignal = n })
	}
	add("privileged", func(c *runtimeapi.ContainerConfig) { sc(c).Privileged = true })
	for field, o := range map[string]*runtimeapi.NamespaceOption{
		"network": {Network: runtimeapi.NamespaceMode_NODE}, "ipc": {Ipc: runtimeapi.NamespaceMode_NODE}, "pid": {Pid: runtimeapi.NamespaceMode_NODE},
		"target_id":                 {Pid: runtimeapi.NamespaceMode_TARGET},
		"namespace_options":         {Network: runtimeapi.NamespaceMode_CONTAINER},
		"namespace_options.ipc":     {Ipc: runtimeapi.NamespaceMode_TARGET, TargetId: "x"},
		"options.target_id":         {TargetId: "x"},
		"namespace_options.network": {Network: 42},
		"userns_options":            {UsernsOptions: &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{{}}}},
		"userns_options.mode":       {UsernsOptions: aUserNamespace()},
	} {
		add(field, func(c *runtimeapi.ContainerConfig) { sc(c).NamespaceOptions = o })
	}
	for _, p := range []string{"", "rel", "/a/../b", "/a\x00"} {
		add("masked_paths", func(c *runtimeapi.ContainerConfig) { sc(c).MaskedPaths = []string{p} })
		add("readonly_paths", func(c *runtimeapi.ContainerConfig) { sc(c).ReadonlyPaths = []string{p} })
	}
	// SEC-08
	for _, ref := range []string{"", "x", "../x", "/a/../x", "/a//b", "/a\x00", "/proc/self/fd/3"} {
		add("seccomp", func(c *runtimeapi.ContainerConfig) {
			sc(c).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
		})
		add("seccomp", func(c *runtimeapi.ContainerConfig) {
			sc(c).SeccompProfilePath = "localhost/" + ref //nolint:staticcheck // older kubelets
		})
	}
	add("seccomp", func(c *runtimeapi.ContainerConfig) { sc(c).Seccomp = &runtimeapi.SecurityProfile{LocalhostRef: "/x"} })
	add("seccomp", func(c *runtimeapi.ContainerConfig) { sc(c).Seccomp = &runtimeapi.SecurityProfile{ProfileType: 3} })
	add("apparmor", func(c *runtimeapi.ContainerConfig) { sc(c).Apparmor = &runtimeapi.SecurityProfile{ProfileType: 2} })
	for part, o := range map[string]*runtimeapi.SELinuxOption{
		"user": {User: "a:b"}, "role": {Role: " "}, "type": {Type: "t\n"}, "level": {Level: "s0:c1,"},
	} {
		add("selinux_options."+part, func(c *runtimeapi.ContainerConfig) { sc(c).SelinuxOptions = o })
	}
	add("apparmor", func(c *runtimeapi.ContainerConfig) {
		sc(c).ApparmorProfile = "nonsense" //nolint:staticcheck // older kubelets
	})
	for field, r := range map[string]*runtimeapi.LinuxContainerResources{
		"cpu_shares": {CpuShares: -1}, "cpu_quota": {CpuQuota: -2}, "resources.cpu_quota": {CpuQuota: 999}, "cpu_period": {CpuPeriod: -1},
		"resources.cpu_period": {CpuPeriod: 1000001}, "memory_limit": {MemoryLimitInBytes: -2}, "memory_limit_in_bytes": {MemoryLimitInBytes: 1},
		"memory_swap": {MemorySwapLimitInBytes: -2}, "memory_swap_limit": {MemoryLimitInBytes: 4 << 20, MemorySwapLimitInBytes: 2 << 20},
		"oom_score_adj": {OomScoreAdj: 1001}, "resources.oom_score_adj": {OomScoreAdj: -1001},
		"cpuset_cpus": {CpusetCpus: "9999"}, "resources.cpuset_cpus": {CpusetCpus: "0-99999999999"}, "cpus": {CpusetCpus: "3-1"}, "cpuset": {CpusetCpus: strings.Repeat("0-65535,", 500) + "0"}, "cpuset_mems": {CpusetMems: "a"}, "mems": {CpusetMems: "0,"},
		"hugepage_limits":           {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 1}}},
		"resources.hugepage_limits": {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../2MB"}}}, "hugepage": {HugepageLimits: []*runtimeapi.HugepageLimit{nil}},
		"unified": {Unified: map[string]string{"../memory.max": "1"}}, "resources.unified": {Unified: map[string]string{"memory.max": "1\n2"}}, "unif": {Unified: map[string]string{"cgroup.kill": "1"}},
		"unifi": {Unified: map[string]string{"memory/max": "1"}}, "uni": {Unified: map[string]string{"memory.max\n": "1"}}, "un": {Unified: map[string]string{"": "1"}},
	} {
		add(field, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r })
	}

	for i, r := range rows {
		t.Run(fmt.Sprintf("%d %s", i, r.field), func(t *testing.T) {
			p, c := aPod(), aContainer()
			r.change(c.Config)
			c.Mounts = make([]Mount, len(c.Config.Mounts))
			wantInvalid(t, ValidateContainer(p.Config, c.Config, aHost()), r.field)
			if _, _, err := ForContainer(aHost(), p, c); !errdefs.IsInvalidArgument(err) {
				t.Errorf("ForContainer makes a spec of it: %v", err)
			}
		})
	}
	wantInvalid(t, ValidateContainer(aPod().Config, nil, aHost()), "config")
	wantInvalid(t, ValidateContainer(nil, aContainer().Config, aHost()), "sandbox_config")
}

func TestMissingHostFeaturesForContainers(t *testing.T) {
	mount := func(c *Container, m *runtimeapi.Mount, r Mount) {
		c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{m}, []Mount{r}
	}
	for name, change := range map[string]func(*Host, *Container){
		"recursive read-only": func(h *Host, c *Container) {
			h.RecursiveReadOnly = false
			mount(c, &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Readonly: true, RecursiveReadOnly: true}, Mount{Source: "/b"})
		},
		"slave of a private mount": func(_ *Host, c *Container) {
			mount(c, &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, Mount{Source: "/b"})
		},
		"shared of a slave mount": func(_ *Host, c *Container) {
			mount(c, &runtimeapi.Mount{ContainerPath: "/a", HostPath: "/b", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}, Mount{Source: "/b", Slave: true})
		},
		"capability": func(h *Host, c *Container) {
			h.Grantable = []string{"CAP_CHOWN"}
			c.security().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}
		},
		"seccomp": func(h *Host, c *Container) {
			h.Seccomp, c.security().Seccomp = false, &runtimeapi.SecurityProfile{}
		},
		"apparmor": func(_ *Host, c *Container) { c.security().Apparmor = &runtimeapi.SecurityProfile{} },
		"apparmor, deprecated": func(_ *Host, c *Container) {
			c.security().ApparmorProfile = "localhost/x" //nolint:staticcheck // older kubelets
		},
		"apparmor's default": func(h *Host, c *Container) {
			h.AppArmor, c.security().Apparmor = true, &runtimeapi.SecurityProfile{}
		},
		"selinux": func(h *Host, c *Container) {
			h.SELinuxOff, c.security().SelinuxOptions = true, &runtimeapi.SELinuxOption{Type: "t"}
		},
		"selinux without a label": func(h *Host, c *Container) {
			h.SELinux, c.security().SelinuxOptions = true, &runtimeapi.SELinuxOption{User: "u"}
		},
		"unified": func(h *Host, c *Container) {
			h.CgroupV2 = false
			c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, p, c := aHost(), aPod(), aContainer()
			change(&h, &c)
			_, _, err := ForContainer(h, p, c)
			wantPrecondition(t, err)
			// By this word, and only at the beginning, a kubelet knows what to tell the pod's
			// author.
			if name == "recursive read-only" && !strings.HasPrefix(err.Error(), "RROUnsupported: ") {
				t.Error(err)
			}
		})
	}
}

// TestImageIsChecked: the image is as hostile as the request.
func TestImageIsChecked(t *testing.T) {
	for field, change := range map[string]func(*Container){
		"command":     func(c *Container) { c.Image.Config.Entrypoint, c.Image.Config.Cmd = nil, nil },
		"working_dir": func(c *Container) { c.Image.Config.WorkingDir = "/proc/self/fd/8" },
		"working":     func(c *Container) { c.Image.Config.WorkingDir = "up/../.." },
		"image.env":   func(c *Container) { c.Image.Config.Env = []string{"A=\x00"} },
		"envs":        func(c *Container) { c.Image.Config.Env = []string{"A=" + strings.Repeat("x", 1<<18)} },
		"comman":      func(c *Container) { c.Image.Config.Cmd = []string{"a\x00"} },
		"uid":         func(c *Container) { c.User.UID = 1 << 31 },
		"gid":         func(c *Container) { c.User.AdditionalGIDs = []uint32{1 << 31} },
	} {
		t.Run(field, func(t *testing.T) {
			h, p, c := aHost(), aPod(), aContainer()
			change(&c)
			_, _, err := ForContainer(h, p, c)
			wantInvalid(t, err, field)
		})
	}
}
