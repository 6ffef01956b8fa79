package badinput

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// Requests that are odd by the letter, which people send and every other runtime serves.

// TestHostPathIsMade: flannel's /run/flannel, kube-proxy's /lib/modules: a hostPath volume without a type, on a fresh node.
func TestHostPathIsMade(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	there := filepath.Join(d.Dir, "there")
	d.Must(os.Mkdir(there, 0o700))
	d.Must(os.Symlink(there, filepath.Join(d.Dir, "link")))
	missing := []string{
		filepath.Join(d.Dir, "node/flannel/deep"), filepath.Join(d.Dir, "link/of/a/link"), filepath.Join(d.Dir, "slash") + "/",
	}
	var mounts []*cri.Mount
	for i, path := range missing {
		mounts = append(mounts, &cri.Mount{HostPath: path, ContainerPath: "/v" + string(rune('0'+i))})
	}
	c := d.RunPod().Run(harness.Idle(), harness.Mounted(mounts...))
	c.Exec("sh", "-c", "for v in /v0 /v1 /v2; do echo x >$v/file || exit 1; done")
	for _, path := range append(missing, filepath.Join(d.Dir, "node"), filepath.Join(there, "of/a/link")) {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != os.ModeDir|0o755 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if _, err := os.Stat(filepath.Join(there, "of/a/link/file")); err != nil {
		t.Error(err)
	}
	if log := harness.LastLines(d.LogFile(), 10000); !strings.Contains(log, missing[0]) {
		t.Errorf("the log does not tell that %s was made", missing[0])
	}
	c.Remove()
	if _, err := os.Stat(filepath.Join(missing[0], "file")); err != nil {
		t.Errorf("it went with the container: %v", err)
	}
}

// TestHostPathStaysMissing: what is never made, and where nothing can be made.
func TestHostPathStaysMissing(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t)
	disk := filepath.Join(d.Dir, "disk")
	d.Must(os.MkdirAll(d.ConfigFile()+".d", 0o755))
	extra := filepath.Join(d.ConfigFile()+".d", "10.toml")
	d.Must(os.WriteFile(extra, []byte("[containers]\nhost_path_never_created = [\""+disk+"/\"]\n"), 0o600))
	d.Start()
	d.Empty = d.Ledger()
	d.Pulled(harness.Busybox)
	p := d.RunPod()
	file := filepath.Join(d.Dir, "file")
	d.Must(os.WriteFile(file, nil, 0o600))
	d.Must(os.Symlink(filepath.Join(d.Dir, "nowhere"), filepath.Join(d.Dir, "dangling")))
	refused := func(path string, code codes.Code, words ...string) {
		t.Helper()
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Mounted(&cri.Mount{HostPath: path, ContainerPath: "/v"})))
		harness.WantCode(t, err, code, append(words, "mounts.host_path", path)...)
		if _, err := os.Lstat(path); err == nil && !strings.HasSuffix(path, "dangling") {
			t.Errorf("%s was made", path)
		}
	}
	p.Create(harness.Idle()).Remove() // the first one has the pod's namespaces pinned
	before := d.Ledger()
	refused(disk, codes.InvalidArgument, "host_path_never_created")
	refused(disk+"/data", codes.InvalidArgument, "host_path_never_created")
	refused(filepath.Join(d.Dir, "dangling"), codes.FailedPrecondition, "a link to")
	refused(filepath.Join(d.Dir, "dangling/x"), codes.FailedPrecondition, "a link to")
	refused(file+"/x", codes.InvalidArgument, "not a directory")
	refused("/proc/sys/nothing", codes.FailedPrecondition)
	refused("/sys/nothing/here", codes.FailedPrecondition)
	if _, err := os.Lstat(filepath.Join(d.Dir, "nowhere")); err == nil {
		t.Error("a folder was made through a dangling link")
	}
	c := p.Create(harness.Idle(), harness.Mounted(&cri.Mount{HostPath: disk + "s", ContainerPath: "/v"})) // another name
	c.Remove()
	d.Must(os.WriteFile(extra, []byte("[containers]\nhost_path_missing = \"refuse\"\n"), 0o600))
	d.Hangup("configuration reloaded")
	refused(filepath.Join(d.Dir, "any"), codes.InvalidArgument, "host_path_missing")
	d.WantFlat(before)
}

// TestLogPathInAMissingFolder: made below the log directory, at the start too.
func TestLogPathInAMissingFolder(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, lost := range []bool{false, true} {
		path := filepath.Join("app", "deep", map[bool]string{false: "0.log", true: "1.log"}[lost])
		c := p.Create(harness.Shell("echo hello"), harness.With(func(c *cri.ContainerConfig) { c.LogPath = path }))
		if lost {
			d.Must(os.RemoveAll(filepath.Join(p.Config.LogDirectory, "app")))
		}
		c.Start()
		if s := c.WaitExit(); s.ExitCode != 0 || s.LogPath != filepath.Join(p.Config.LogDirectory, path) {
			t.Errorf("%v", s)
		}
		harness.Eventually(t, "the line in the log", func() error {
			b, err := os.ReadFile(c.LogPath())
			return harness.Unless(err == nil && strings.Contains(string(b), "hello"), "%q, %v", b, err)
		})
	}
}

// TestSEC17LogFolderIsNoLink: nothing is made, and no log is written, through a link below the log directory.
func TestSEC17LogFolderIsNoLink(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	d.Pulled(harness.Busybox)
	away := filepath.Join(d.Dir, "away")
	d.Must(os.Mkdir(away, 0o755))
	d.Must(os.Symlink(away, filepath.Join(p.Config.LogDirectory, "app")))
	d.Must(os.WriteFile(filepath.Join(p.Config.LogDirectory, "file"), nil, 0o644))
	p.Create(harness.Idle()).Remove() // the first one has the pod's namespaces pinned
	before := d.Ledger()
	for _, path := range []string{"app/0.log", "app/new/0.log", "file/0.log"} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.LogPath = path })))
		harness.WantCode(t, err, codes.FailedPrecondition, "log_path")
	}
	c := p.Create(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.LogPath = "later/0.log" }))
	d.Must(os.Remove(filepath.Join(p.Config.LogDirectory, "later")))
	d.Must(os.Symlink(away, filepath.Join(p.Config.LogDirectory, "later")))
	harness.WantCode(t, c.TryStart(), codes.FailedPrecondition, "log_path")
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a start that could not begin it is %s", s.State)
	}
	c.Remove()
	if left, err := os.ReadDir(away); err != nil || len(left) > 0 {
		t.Errorf("behind the link: %v, %v", left, err)
	}
	d.WantFlat(before)
}

// TestPrivilegedEphemeral: kubectl debug --profile=sysadmin in an ordinary pod. The kubelet sends a sandbox_config with privileged at that
// moment, and it alone says whether the container may be.
func TestPrivilegedEphemeral(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	first := p.Run(harness.Idle())
	config := p.ContainerConfig(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths = true, nil, nil
		s.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: first.ID}
	}))
	asked := d.PodConfig(func(c *cri.PodSandboxConfig) {
		*c = cri.PodSandboxConfig{Metadata: p.Config.Metadata, Hostname: "other", LogDirectory: "/nowhere", Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/other", SecurityContext: &cri.LinuxSandboxSecurityContext{Privileged: true}}}
	})
	create := func(sandbox *cri.PodSandboxConfig) (*cri.CreateContainerResponse, error) {
		return d.Runtime.CreateContainer(context.Background(), &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: sandbox})
	}
	_, err := create(p.Config)
	harness.WantCode(t, err, codes.InvalidArgument, "privileged")
	r, err := create(asked)
	d.Must(err)
	c := &harness.Container{Pod: p, ID: r.ContainerId, Config: config}
	c.Start()
	if got := c.Exec("grep", "CapEff", "/proc/1/status", "/proc/self/status"); !strings.Contains(got, "self/status:CapEff:\t000001ff") {
		t.Errorf("its capabilities are %q", got)
	}
	if got := c.Exec("hostname"); strings.TrimSpace(got) != p.Config.Hostname {
		t.Errorf("its host name is %q: the pod is what it was made as", got)
	}
	if got := c.Status().LogPath; !strings.HasPrefix(got, p.Config.LogDirectory) {
		t.Errorf("its log is %q", got)
	}
}

// TestSameMountTwice: the later one is made, at a volumeMount that is the terminationMessagePath too.
func TestSameMountTwice(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	var mounts []*cri.Mount
	for _, m := range [][2]string{{"a", "/data"}, {"b", "/data/"}, {"c", "/data/../data/sub"}, {"volume", "/dev/termination-log"}, {"kubelet", "/dev/termination-log"}} {
		dir := filepath.Join(d.Dir, m[0])
		d.Must(os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
		d.Must(os.WriteFile(filepath.Join(dir, "name"), []byte(m[0]+"\n"), 0o644))
		mounts = append(mounts, &cri.Mount{HostPath: dir, ContainerPath: m[1]})
	}
	c := d.RunPod().Run(harness.Idle(), harness.Mounted(mounts...))
	if got := c.Exec("cat", "/data/name", "/data/sub/name", "/dev/termination-log/name"); got != "b\nc\nkubelet\n" {
		t.Errorf("%q", got)
	}
	if len(c.Status().Mounts) != len(mounts) {
		t.Errorf("the status tells %v", c.Status().Mounts)
	}
	if log := harness.LastLines(d.LogFile(), 10000); strings.Count(log, "occurs more than once") != 2 {
		t.Error("the log does not tell which mounts are hidden")
	}
}

// TestMountsOnProc: what the OCI runtime lets through, and a real proc over /proc.
func TestMountsOnProc(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	one := filepath.Join(d.Dir, "one")
	d.Must(os.WriteFile(one, []byte("1\n"), 0o644))
	p := d.RunPod()
	mounts := []*cri.Mount{{HostPath: one, ContainerPath: "/proc/meminfo"}}
	for _, path := range []string{"/proc/sys/crypto/fips_enabled", "/proc/sys/kernel/ns_last_pid"} {
		if _, err := os.Stat(path); err == nil {
			mounts = append(mounts, &cri.Mount{HostPath: one, ContainerPath: path, Readonly: true})
		}
	}
	c := p.Run(harness.Idle(), harness.Mounted(mounts...))
	for _, m := range mounts {
		if got := c.Exec("cat", m.ContainerPath); got != "1\n" {
			t.Errorf("%s holds %q", m.ContainerPath, got)
		}
	}
	c = p.Run(harness.Idle(), harness.Mounted(&cri.Mount{HostPath: "/proc", ContainerPath: "/proc/"}))
	if got := c.Exec("cat", "/proc/1/comm"); got == "sleep\n" {
		t.Errorf("/proc is not the host's: %q", got)
	}
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Mounted(&cri.Mount{HostPath: "/tmp", ContainerPath: "/proc"})))
	harness.WantCode(t, err, codes.InvalidArgument, "mounts.container_path")
}

// TestManyVariables: a namespace with 5,200 services has 36,400 variables of 1.2 MB.
func TestManyVariables(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		for i := range 36_400 {
			c.Envs = append(c.Envs, &cri.KeyValue{Key: fmt.Sprintf("SERVICE_%d_PORT", i), Value: []byte("tcp://10.1.2.3:80")})
		}
		c.Envs = append(c.Envs, &cri.KeyValue{Key: "KEYSTORE", Value: []byte{0xff, 'k'}})
	}))
	if got := c.Exec("sh", "-c", "env | grep -c ^SERVICE_; tr '\\0' '\\n' </proc/1/environ | grep -c ^SERVICE_; echo $KEYSTORE"); got != "36400\n36400\n\ufffdk\n" {
		t.Errorf("%q", got)
	}
}

// TestHostPortOfBothFamilies: 0.0.0.0 is all of IPv4, :: all of IPv6, and addresses may lie in each other.
func TestHostPortOfBothFamilies(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.Metadata.Namespace, c.Metadata.Uid = "", "" // as a person writes it for crictl
		c.PortMappings = []*cri.PortMapping{
			{HostPort: 18089, ContainerPort: 80, HostIp: "0.0.0.0"}, {HostPort: 18089, ContainerPort: 80, HostIp: "::"}, {HostPort: 18089, ContainerPort: 80},
		}
	})
	c := p.Run(harness.Shell("while echo hello | nc -l -p 80; do :; done"))
	harness.Eventually(t, "an answer", func() error {
		conn, err := net.DialTimeout("tcp4", "127.0.0.1:18089", time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		b, err := io.ReadAll(conn)
		return harness.Unless(string(b) == "hello\n", "%q, %v", b, err)
	})
	c.Remove()
}

// TestUnknownCapabilities: CAP_BPF on an old kernel, a word that is none. The container has what there is.
func TestUnknownCapabilities(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
		s.Capabilities = &cri.Capability{AddCapabilities: []string{"FLY", "CAP_CAP_KILL", "NET_ADMIN"}, AddAmbientCapabilities: []string{"FLY"}, DropCapabilities: []string{"ALL"}}
	}))
	if got := c.Exec("grep", "Cap", "/proc/1/status"); !strings.Contains(got, "CapBnd:\t0000000000001000") || !strings.Contains(got, "CapAmb:\t0000000000000000") {
		t.Errorf("%s", got)
	}
	if log := harness.LastLines(d.LogFile(), 10000); !strings.Contains(log, "the kernel does not know CAP_FLY") {
		t.Error("the log does not tell what was left out")
	}
}

// TestSEC75DockerProfile: a Localhost profile in Docker's form has the effect that it has there.
func TestSEC75DockerProfile(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	profile := filepath.Join(d.Dir, "docker.json")
	d.Must(os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
		{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}], "syscalls": [
		{"name": "mkdirat", "action": "SCMP_ACT_ERRNO", "args": []}, {"name": "mkdir", "action": "SCMP_ACT_ERRNO"},
		{"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
		{"names": ["link", "linkat"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}`), 0o600))
	for _, admin := range []bool{false, true} {
		c := p.Run(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = harness.Localhost(profile)
			if admin {
				s.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			}
		}))
		for command, want := range map[string]bool{"mkdir /tmp/x": false, "ln -s a /tmp/s": admin, "touch /tmp/f && ln /tmp/f /tmp/l": !admin} {
			if r := c.MayFail("sh", "-c", command); (r.Code == 0) != want {
				t.Errorf("with SYS_ADMIN %t, %s: %+v, want it to work: %t", admin, command, r, want)
			}
		}
	}
	d.Must(os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"nams": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600))
	before := d.Ledger()
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = harness.Localhost(profile) })))
	harness.WantCode(t, err, codes.InvalidArgument, "seccomp.localhost_ref", "rule 0")
	d.WantFlat(before)
}

// TestPrivilegedInUserNamespace: hostUsers: false beside privileged: true. It rules its own namespaces, and is nobody outside.
func TestPrivilegedInUserNamespace(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.InUserNamespace, func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.Run(harness.Idle(), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths, s.Seccomp = true, nil, nil, nil
	}))
	if got := c.Exec("sh", "-c", "mkdir -p /m && mount -t tmpfs none /m && echo mounted; ls /dev/null /dev/zero"); got != "mounted\n/dev/null\n/dev/zero\n" {
		t.Errorf("%q", got)
	}
	host := filepath.Join(d.Dir, "host")
	d.Must(os.WriteFile(host, []byte("secret"), 0o600))
	c = p.Run(harness.Idle(), harness.Mounted(&cri.Mount{HostPath: host, ContainerPath: "/host"}), harness.Secured(func(s *cri.LinuxContainerSecurityContext) {
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths, s.Seccomp = true, nil, nil, nil
	}))
	for _, command := range []string{"cat /host", "echo 1 >/proc/sys/vm/overcommit_memory", "mknod /tmp/sda b 8 0 && cat /tmp/sda"} {
		if r := c.MayFail("sh", "-c", command); r.Code == 0 {
			t.Errorf("%s works: %+v", command, r)
		}
	}
}

// TestUnprivilegedNetwork: any user of a pod listens on port 80 and pings, unless the node or the pod says otherwise.
func TestUnprivilegedNetwork(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	read := func(p *harness.Pod) string {
		c := p.Run(harness.Idle(), harness.AsUser(1000))
		return c.Exec("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ping_group_range")
	}
	if got := read(d.RunPod()); got != "0\n0\t2147483647\n" {
		t.Errorf("a pod has %q", got)
	}
	if got := read(d.RunPod(harness.InUserNamespace)); !strings.HasPrefix(got, "0\n") || strings.Contains(got, "2147483647") {
		t.Errorf("a pod with a user namespace has %q", got)
	}
	own := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net/ipv4/ip_unprivileged_port_start": "81\n", "net.ipv4.ping_group_range": "5 6"}
	})
	if got := read(own); got != "81\n5\t6\n" {
		t.Errorf("a pod that says so has %q", got)
	}
	d.Must(os.MkdirAll(d.ConfigFile()+".d", 0o755))
	d.Must(os.WriteFile(filepath.Join(d.ConfigFile()+".d", "10.toml"), []byte("[containers]\nunprivileged_ports = false\nunprivileged_ping = false\n"), 0o600))
	d.Hangup("configuration reloaded")
	if got := read(d.RunPod()); got == "0\n0\t2147483647\n" {
		t.Errorf("with both keys off a pod has %q", got)
	}
}

// TestOddPathsAndNames: a comment of the node's resolv.conf, a log path that begins with a slash, a relative place, the host's /dev.
func TestOddPathsAndNames(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.1"}, Searches: []string{"corp.example", "#", "dhcp", ""}, Options: []string{"ndots:5"}}
		c.PortMappings = []*cri.PortMapping{{HostPort: 18090, ContainerPort: 80}, {HostPort: 18090, ContainerPort: 80}}
	})
	data := filepath.Join(d.Dir, "data")
	c := p.Run(harness.Idle(), harness.Mounted(&cri.Mount{ContainerPath: "data", HostPath: data}, &cri.Mount{ContainerPath: "/dev", HostPath: "/dev"}),
		harness.With(func(c *cri.ContainerConfig) { c.LogPath = "/deep/0.log" }))
	if got := c.Exec("cat", "/etc/resolv.conf"); got != "search corp.example dhcp\nnameserver 192.0.2.1\noptions ndots:5\n" {
		t.Errorf("resolv.conf is %q", got)
	}
	c.Exec("sh", "-c", "echo x >/data/file && echo mine >/dev/shm/cribox-test-of-shm")
	if _, err := os.Stat(filepath.Join(data, "file")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/dev/shm/cribox-test-of-shm"); err == nil {
		t.Error("the container's /dev/shm is the host's")
		d.Must(os.Remove("/dev/shm/cribox-test-of-shm"))
	}
	if _, err := os.Stat(filepath.Join(p.Config.LogDirectory, "deep/0.log")); err != nil {
		t.Error(err)
	}
}
