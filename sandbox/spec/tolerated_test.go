package spec

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/capability"
)

// Requests that are odd by the letter, and run everywhere else.

func notesOf(t *testing.T, h Host, p Pod, c Container) (*specs.Spec, string) {
	t.Helper()
	s, notes, err := ForContainer(h, p, c)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, n := range notes {
		all = append(all, n.String())
	}
	return s, strings.Join(all, "\n")
}

func TestLastMountWins(t *testing.T) {
	c := aContainer()
	c.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/data/", HostPath: "/first"}, {ContainerPath: "/data/sub", HostPath: "/sub"}, {ContainerPath: "/dev/termination-log", HostPath: "/volume"},
		{ContainerPath: "/x/../data", HostPath: "/second"}, {ContainerPath: "/dev/termination-log", HostPath: "/kubelet"},
	}
	for _, m := range c.Config.Mounts {
		c.Mounts = append(c.Mounts, Mount{Source: m.HostPath})
	}
	s, notes := notesOf(t, aHost(), aPod(), c)
	got := map[string]string{}
	for _, m := range s.Mounts {
		if m.Type == "bind" && got[m.Destination] != "" {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		got[m.Destination] = m.Source
	}
	if got["/data"] != "/second" || got["/data/sub"] != "/sub" || got["/dev/termination-log"] != "/kubelet" {
		t.Errorf("%v", got)
	}
	if strings.Count(notes, "occurs more than once") != 2 || !strings.Contains(notes, "/first was not") {
		t.Errorf("the notes are %q", notes)
	}
}

func TestMountsOnProc(t *testing.T) {
	for _, place := range append([]string{"/proc"}, procPlaces...) {
		c := aContainer()
		c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{{ContainerPath: place, HostPath: "/proc"}}, []Mount{{Source: "/proc", Proc: true}}
		s := mustContainer(t, aHost(), aPod(), c)
		if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == place && m.Type == "bind" }) {
			t.Errorf("nothing is bound at %s", place)
		}
	}
	c := aContainer()
	c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/proc", HostPath: "/tmp"}}, []Mount{{Source: "/tmp"}}
	_, _, err := ForContainer(aHost(), aPod(), c)
	wantInvalid(t, err, "mounts.container_path")
}

// TestManyVariables: a namespace with 5,200 services.
func TestManyVariables(t *testing.T) {
	c := aContainer()
	for i := range 36_400 {
		c.Config.Envs = append(c.Config.Envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("SERVICE_%d", i), Value: []byte("tcp://10.1.2.3:80")})
	}
	s := mustContainer(t, aHost(), aPod(), c)
	if len(s.Process.Env) < 36_400 {
		t.Errorf("%d variables", len(s.Process.Env))
	}
	h := aHost()
	for _, row := range []struct {
		stack uint64
		bytes int
		taken bool
	}{
		{0, 2<<20 - 100, true}, {0, 2<<20 + 1, false}, {16 << 20, 4<<20 - 100, true}, {16 << 20, 4<<20 + 1, false}, {1 << 40, 6<<20 - 100, true},
		{1 << 40, 6<<20 + 1, false}, {1 << 10, 128<<10 - 100, true}, {1 << 10, 128<<10 + 1, false},
	} {
		h.StackLimit = row.stack
		var args []string
		for left := row.bytes; left > 0; left -= 64 << 10 {
			args = append(args, strings.Repeat("x", max(0, min(left, 64<<10)-9)))
		}
		c := aContainer()
		c.Config.Args, c.Image.Config.Env, c.Image.Config.Entrypoint = args, nil, []string{"x"}
		_, _, err := ForContainer(h, aPod(), c)
		if row.bytes%1024 == 1 { // what cannot be
			wantInvalid(t, err, "args")
			continue
		}
		if err := ValidateContainer(aPod().Config, c.Config, h); err != nil {
			t.Errorf("%+v: %v", row, err)
		}
	}
	h.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_STACK", Soft: 24 << 20, Hard: 24 << 20}}
	if got := h.execLimit(); got != 6<<20 {
		t.Errorf("with a stack of 24 MiB the limit is %d", got)
	}
}

func TestOddRequestsRun(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	p.Config.Metadata.Namespace, p.Config.Metadata.Uid = "", ""
	p.Config.Linux.Sysctls = map[string]string{"kernel.domainname": "example.org"}
	p.Config.DnsConfig = &runtimeapi.DNSConfig{Servers: slices.Repeat([]string{"10.0.0.1"}, 1000), Searches: slices.Repeat([]string{"a.example"}, 1000)}
	p.Config.PortMappings = []*runtimeapi.PortMapping{
		{HostPort: 80, ContainerPort: 1}, {HostPort: 80, ContainerPort: 1, HostIp: "0.0.0.0"}, {HostPort: 80, ContainerPort: 2, HostIp: "::"}, {HostPort: 80, ContainerPort: 3, HostIp: "10.0.0.1"},
	}
	if err := ValidatePod(p.Config, h); err != nil {
		t.Error(err)
	}
	h.Capabilities = capability.Known(37) // Linux 5.7
	c.security().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"BPF", "CAP_CAP_KILL", "NET_ADMIN"}, AddAmbientCapabilities: []string{"PERFMON"},
		DropCapabilities: []string{"CHECKPOINT_RESTORE"}}
	c.Config.Envs = []*runtimeapi.KeyValue{{Key: "KEYSTORE", Value: []byte{0xff, 'a', 0xfe, 0xfd}}}
	s, notes := notesOf(t, h, p, c)
	if !slices.Contains(s.Process.Env, "KEYSTORE=\ufffda\ufffd") || !strings.Contains(notes, "KEYSTORE") {
		t.Errorf("%q, %q", s.Process.Env, notes)
	}
	if !slices.Contains(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN") || len(s.Process.Capabilities.Ambient) > 0 {
		t.Errorf("%v", s.Process.Capabilities)
	}
	for _, word := range []string{"does not know CAP_BPF", "does not know CAP_CAP_KILL", "does not know CAP_PERFMON"} {
		if !strings.Contains(notes, word) {
			t.Errorf("no note says %q: %q", word, notes)
		}
	}
}

func TestWithPrivilege(t *testing.T) {
	privileged := &runtimeapi.PodSandboxConfig{Hostname: "other", Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{Privileged: true}}}
	pod := aPod().Config
	for _, p := range []*runtimeapi.PodSandboxConfig{pod, {}, {Linux: &runtimeapi.LinuxPodSandboxConfig{}}} {
		got := WithPrivilege(p, privileged)
		if !got.GetLinux().GetSecurityContext().GetPrivileged() || got.GetHostname() != p.GetHostname() || p.GetLinux().GetSecurityContext().GetPrivileged() {
			t.Errorf("%v became %v", p, got)
		}
		if back := WithPrivilege(got, pod); back.GetLinux().GetSecurityContext().GetPrivileged() {
			t.Error("a privilege that the request does not give stays")
		}
	}
}

// dockerProfile is in the form of Docker's own default profile.
const dockerProfile = `{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
 "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}, {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
 "syscalls": [
  {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "comment": "always"},
  {"name": "open", "action": "SCMP_ACT_ALLOW", "args": null},
  {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
  {"names": ["chown"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN", "CAP_FOWNER"]}},
  {"names": ["both"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}},
  {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]}},
  {"names": ["fchown"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_CHOWN"]}},
  {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
  {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.10"}},
  {"names": ["past"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.0"}},
  {"names": ["mine"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["` + runtime.GOARCH + `"]}},
  {"names": ["theirs"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["ppc64le"]}},
  {"names": ["notmine"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["` + runtime.GOARCH + `"]}}
 ]}`

// TestSEC75DockerForm: a profile in Docker's form is what Docker makes of it.
func TestSEC75DockerForm(t *testing.T) {
	h, c := aHost(), aContainer()
	h.Kernel = [2]int{6, 1}
	c.security().Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	c.SeccompProfile = []byte(dockerProfile)
	rules := func() (names []string) {
		s, notes := notesOf(t, h, aPod(), c)
		if notes != "" {
			t.Errorf("notes: %s", notes)
		}
		for _, r := range s.Linux.Seccomp.Syscalls {
			names = append(names, strings.Join(r.Names, "+"))
		}
		if runtime.GOARCH == "amd64" && !slices.Equal(s.Linux.Seccomp.Architectures, []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}) {
			t.Errorf("architectures %v", s.Linux.Seccomp.Architectures)
		}
		return names
	}
	if got, want := strings.Join(rules(), " "), "read+write open chown clone ptrace mine"; got != want {
		t.Errorf("of the rules there are %q, want %q", got, want)
	}
	c.security().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	if got, want := strings.Join(rules(), " "), "read+write open bpf chown both ptrace mine"; got != want {
		t.Errorf("with SYS_ADMIN there are %q, want %q", got, want)
	}
	h.Kernel = [2]int{4, 4}
	if got := rules(); slices.Contains(got, "ptrace") || !slices.Contains(got, "past") {
		t.Errorf("on an old kernel there are %q", got)
	}
}

// TestSEC75NothingWithoutEffect: rules that would not be read are refused, a field that means
// nothing is noted.
func TestSEC75NothingWithoutEffect(t *testing.T) {
	c := aContainer()
	c.security().Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	for _, bad := range []string{
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"nams": ["mount"], "action": "SCMP_ACT_ERRNO"}]}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_ERRNO"}]}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["b"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "new"}}]}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["b"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS"}]}`,
		`{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS"}`,
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["b"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": "CAP_KILL"}}]}`,
	} {
		c.SeccompProfile = []byte(bad)
		_, _, err := ForContainer(aHost(), aPod(), c)
		wantInvalid(t, err, "seccomp.localhost_ref: /p.json")
		if err == nil {
			t.Log(bad)
		}
	}
	c.SeccompProfile = []byte(`{"_comment": "x", "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["b"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS", "errnoRet": 38}]}`)
	s, notes := notesOf(t, aHost(), aPod(), c)
	if !strings.Contains(notes, `ignored the unknown field "_comment"`) || *s.Linux.Seccomp.Syscalls[0].ErrnoRet != 38 {
		t.Errorf("%q, %v", notes, s.Linux.Seccomp)
	}
	// What is in the form of the runtime spec is handed on as it is.
	whole := `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/run/l","listenerMetadata":"m",` +
		`"syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_EQ"}]}]}`
	c.SeccompProfile = []byte(whole)
	s, notes = notesOf(t, aHost(), aPod(), c)
	if got, _ := json.Marshal(s.Linux.Seccomp); string(got) != whole || notes != "" {
		t.Errorf("%s, %s", got, notes)
	}
}

func TestOddPodsRun(t *testing.T) {
	h, p := aHost(), aPod()
	h.UnprivilegedPorts, h.UnprivilegedPing = true, true
	p.Config.Linux.Sysctls = map[string]string{"net/core/somaxconn": "1024\n", "net.ipv4.ip_unprivileged_port_start": "81 \n"}
	p.Config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.1", "dns.example"}, Searches: []string{"corp.example", "#", "dhcp", "", ";x"}, Options: []string{"ndots:5 edns0"}}
	p.Config.PortMappings = slices.Repeat([]*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 1}}, 2)
	s, notes, err := ForPod(h, p)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"net.core.somaxconn": "1024", "net.ipv4.ip_unprivileged_port_start": "81", "net.ipv4.ping_group_range": "0 2147483647"}
	if !reflect.DeepEqual(s.Linux.Sysctl, want) {
		t.Errorf("the sysctls are %v", s.Linux.Sysctl)
	}
	if len(notes) != 2 || !strings.Contains(fmt.Sprint(notes), "dns.example") {
		t.Errorf("the notes are %v", notes)
	}
	if got := DNSWords(p.Config.DnsConfig.Searches); !slices.Equal(got, []string{"corp.example", "dhcp"}) {
		t.Errorf("%q", got)
	}
	inUserNamespace(&p, nil)
	p.Config.DnsConfig, p.Config.Linux.Sysctls = nil, nil
	if got := mustPod(t, h, p).Linux.Sysctl; !reflect.DeepEqual(got, map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}) {
		t.Errorf("with a user namespace the sysctls are %v", got)
	}
	p = aPod()
	p.NetNS, p.Config.Linux.SecurityContext.NamespaceOptions.Network = "", runtimeapi.NamespaceMode_NODE
	if got := mustPod(t, h, p).Linux.Sysctl; len(got) > 0 {
		t.Errorf("on the host's network the sysctls are %v", got)
	}
}

func TestOddContainersRun(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	c.Config.Mounts, c.Mounts = []*runtimeapi.Mount{{ContainerPath: "data", HostPath: "/d"}, {ContainerPath: "/dev", HostPath: "/dev"}}, []Mount{{Source: "/d"}, {Source: "/dev"}}
	c.Config.LogPath = "/web/0.log"
	c.Config.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/a", HostPath: "/dev/a"}, {ContainerPath: "/dev/b", HostPath: "/dev/b", Permissions: "rrw"}}
	c.security().Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL", "NET_RAWW", "CAP_ALL"}}
	s, notes := notesOf(t, h, p, c)
	places := map[string]string{}
	for _, m := range s.Mounts {
		places[m.Destination] = m.Source
	}
	if places["/data"] != "/d" || places["/dev"] != "/dev" || places["/dev/shm"] != p.ShmPath {
		t.Errorf("the mounts are %v", places)
	}
	for _, hidden := range []string{"/dev/pts", "/dev/mqueue"} {
		if source, ok := places[hidden]; ok {
			t.Errorf("%s is mounted over the host's %s", source, hidden)
		}
	}
	for _, word := range []string{`"data" is not an absolute path`, "does not know CAP_NET_RAWW", "does not know CAP_ALL"} {
		if !strings.Contains(notes, word) {
			t.Errorf("no note says %q: %q", word, notes)
		}
	}
	if got := Permissions("") + " " + Permissions("rrw") + " " + Permissions("mwr"); got != "rwm rw mwr" {
		t.Errorf("permissions %q", got)
	}
}

// TestCgroupOptionsStay: without a cgroup namespace a mount of cgroup v2 is the node's own, and
// sets its options anew.
func TestCgroupOptionsStay(t *testing.T) {
	h, p, c := aHost(), aPod(), aContainer()
	h.CgroupOptions = []string{"nsdelegate", "memory_recursiveprot"}
	p.Config.Linux.SecurityContext.Privileged = true
	for _, privileged := range []bool{false, true} {
		c.security().Privileged = privileged
		s := mustContainer(t, h, p, c)
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/sys/fs/cgroup" })
		if got := slices.Contains(s.Mounts[i].Options, "nsdelegate") && slices.Contains(s.Mounts[i].Options, "memory_recursiveprot"); got != privileged {
			t.Errorf("privileged %t: the options are %v", privileged, s.Mounts[i].Options)
		}
	}
}
