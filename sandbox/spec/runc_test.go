package spec

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox/spec/capability"
	"github.com/cribox/cribox/sandbox/spec/users"
)

// lab runs specs with a real OCI runtime and looks at them from inside.
type lab struct {
	t     *testing.T
	runc  string
	state string
	dir   string
	host  Host
	pod   Pod
	keep  *os.File
	n     int
}

// newLab starts a pod and returns when its pause process is there.
func newLab(t *testing.T, change func(*Host, *Pod)) *lab {
	t.Helper()
	l := &lab{t: t, runc: findRunc(t), dir: t.TempDir(), host: thisHost(t)}
	for dir := l.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		l.must(os.Chmod(dir, 0o755)) // other users walk through it
	}
	l.state = filepath.Join(l.dir, "runc")
	parent := fmt.Sprintf("/cribox-spec-test-%d", os.Getpid())

	netns := exec.Command("/bin/busybox", "sleep", "600")
	netns.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	l.must(netns.Start())
	t.Cleanup(func() { _ = netns.Process.Kill(); _ = netns.Wait() })

	shm := l.mkdir("shm")
	l.must(unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(shm, unix.MNT_DETACH) })

	l.pod = aPod()
	l.pod.ID = fmt.Sprintf("spectest-pod-%d", os.Getpid())
	l.pod.NetNS = fmt.Sprintf("/proc/%d/ns/net", netns.Process.Pid)
	l.pod.Config.Linux.CgroupParent = parent
	l.pod.Rootfs, l.pod.ShmPath = l.pauseRootfs(), shm
	l.pod.HostsPath = l.write("hosts", "127.0.0.1 pods-own-hosts\n")
	l.pod.HostnamePath = l.write("hostname", "web-0\n")
	l.pod.ResolvConfPath = l.write("resolv.conf", "nameserver 10.0.0.10\n")
	if change != nil {
		change(&l.host, &l.pod)
	}
	t.Cleanup(func() { removeCgroups(parent) })
	l.startPause()
	return l
}

func findRunc(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs /bin/busybox")
	}
	for _, dir := range []string{os.Getenv("CRIBOX_BIN"), "../../bin"} {
		if path, err := filepath.Abs(filepath.Join(dir, "runc")); err == nil && dir != "" {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
	}
	t.Skip("no runc in $CRIBOX_BIN or ../../bin")
	return ""
}

// thisHost gathers what a daemon would.
func thisHost(t *testing.T) Host {
	t.Helper()
	h := aHost()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	bnd, err := strconv.ParseUint(statusField(string(status), "CapBnd"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	h.Grantable = capability.Of(bnd)
	if bnd&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		h.OOMScoreAdjMin = 0
		var l unix.Rlimit
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
		h.RlimitHard = map[string]uint64{"RLIMIT_NOFILE": l.Max}
	}
	_, err = os.Stat("/sys/fs/cgroup/cgroup.controllers")
	h.CgroupV2 = err == nil
	h.CPUs, h.Mems, h.HugePageSizes, h.MemorySwapAccounting = "", "", nil, false
	return h
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) mkdir(elem ...string) string {
	l.t.Helper()
	path := filepath.Join(append([]string{l.dir}, elem...)...)
	l.must(os.MkdirAll(path, 0o755))
	return path
}

func (l *lab) write(name, text string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	l.must(os.WriteFile(path, []byte(text), 0o644))
	return path
}

func (l *lab) pauseRootfs() string {
	l.t.Helper()
	root := l.mkdir("pause")
	for _, d := range PodRootfsDirs {
		l.mkdir("pause", d)
	}
	program, err := os.ReadFile(filepath.Join("..", "pause", "pause_"+runtime.GOARCH))
	l.must(err)
	l.must(os.WriteFile(filepath.Join(root, "pause"), program, 0o555))
	l.must(os.Chmod(root, 0o555))
	l.t.Cleanup(func() { _ = os.Chmod(root, 0o755) })
	return root
}

func (l *lab) bundle(id string, s *specs.Spec) string {
	l.t.Helper()
	data, err := json.Marshal(s)
	l.must(err)
	dir := l.mkdir("bundles", id)
	l.must(os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	return dir
}

// command is fixed as the shim's is: nothing of the test's environment comes in.
func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command(l.runc, append([]string{"--root", l.state}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

func (l *lab) startPause() {
	l.t.Helper()
	s, _, err := ForPod(l.host, l.pod)
	l.must(err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	l.must(err)
	l.keep = os.NewFile(uintptr(pair[0]), "keeper")
	l.t.Cleanup(func() { l.keep.Close() })
	theirs := os.NewFile(uintptr(pair[1]), "pause")
	defer theirs.Close()

	pidFile := filepath.Join(l.dir, "pause.pid")
	cmd := l.command("run", "--detach", "--preserve-fds", "1", "--pid-file", pidFile, "--bundle", l.bundle(l.pod.ID, s), l.pod.ID)
	cmd.ExtraFiles = []*os.File{theirs}
	l.t.Cleanup(func() { l.delete(l.pod.ID) })
	stderr := l.runQuietly(cmd)
	if stderr != "" {
		l.t.Fatalf("start the pod: %s", stderr)
	}
	data, err := os.ReadFile(pidFile)
	l.must(err)
	l.pod.PauseNS = fmt.Sprintf("/proc/%s/ns", data)
}

// runQuietly runs a command whose children outlive it, and returns what it complains of.
func (l *lab) runQuietly(cmd *exec.Cmd) string {
	l.t.Helper()
	log, err := os.CreateTemp(l.dir, "log")
	l.must(err)
	defer log.Close()
	cmd.Stderr = log
	err = cmd.Run()
	text, _ := os.ReadFile(log.Name())
	if err != nil {
		return fmt.Sprintf("%v: %s", err, text)
	}
	return ""
}

func (l *lab) delete(id string) {
	_ = l.command("delete", "--force", id).Run()
}

// container is a request for busybox in the pod.
func (l *lab) container() Container {
	l.t.Helper()
	l.n++
	c := aContainer()
	c.ID = fmt.Sprintf("%s-c%d", l.pod.ID, l.n)
	c.Rootfs = l.mkdir(c.ID)
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		l.mkdir(c.ID, d)
	}
	data, err := os.ReadFile("/bin/busybox")
	l.must(err)
	l.must(os.WriteFile(filepath.Join(c.Rootfs, "bin", "busybox"), data, 0o755))
	return c
}

// sh runs a script in a container and returns what it prints.
func (l *lab) sh(c Container, script string) string {
	l.t.Helper()
	c.Config.Command = []string{"/bin/busybox", "sh", "-c", "exec 2>&1; export PATH=/bin; busybox --install -s /bin 2>/dev/null; " + script}
	c.Config.Args = nil
	s, _, err := ForContainer(l.host, l.pod, c)
	l.must(err)
	return l.run(c.ID, s)
}

func (l *lab) run(id string, s *specs.Spec) string {
	l.t.Helper()
	defer l.delete(id)
	out, err := l.command("run", "--bundle", l.bundle(id, s), id).CombinedOutput()
	if err != nil {
		l.t.Logf("%s: %v", id, err)
	}
	return string(out)
}

func statusField(status, name string) string {
	for _, line := range strings.Split(status, "\n") {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Join(strings.Fields(rest), " ")
		}
	}
	return ""
}

func removeCgroups(parent string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
	for _, d := range append(dirs, "/sys/fs/cgroup"+parent) {
		_ = os.Remove(d)
	}
}

func wantField(t *testing.T, status, name, want string) {
	t.Helper()
	if got := statusField(status, name); got != want {
		t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// TestPauseFromOutside (SEC-05, 08): confined, and in the namespaces that the pod's containers
// join.
func TestPauseFromOutside(t *testing.T) {
	l := newLab(t, func(_ *Host, p *Pod) {
		p.Config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "54321"}
	})
	dir := strings.TrimSuffix(l.pod.PauseNS, "ns")
	waitFor(t, "pause to have settled", func() bool {
		call, _ := os.ReadFile(dir + "syscall")
		return strings.HasPrefix(string(call), strconv.Itoa(unix.SYS_RT_SIGTIMEDWAIT)+" ")
	})
	data, err := os.ReadFile(dir + "status")
	l.must(err)
	status := string(data)
	const none = "0000000000000000"
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		wantField(t, status, set, none)
	}
	wantField(t, status, "NoNewPrivs", "1")
	wantField(t, status, "Seccomp", "2")
	wantField(t, status, "Uid", "65535 65535 65535 65535")
	wantField(t, status, "Gid", "65535 65535 65535 65535")
	wantField(t, status, "Groups", "65535")
	wantField(t, status, "Name", "pause")
	wantField(t, status, "Threads", "1")
	if fd, err := os.Readlink(dir + "fd/3"); err != nil || !strings.HasPrefix(fd, "socket:") {
		t.Errorf("descriptor 3 is %q, %v", fd, err)
	}
	if fd, err := os.Readlink(dir + "fd/4"); err == nil {
		t.Errorf("descriptor 4 is open: %s", fd)
	}
	c := l.container()
	c.security().Seccomp = nil
	out := l.sh(c, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax; hostname")
	if out != "0\n54321\nweb-0\n" {
		t.Errorf("sysctls and hostname in a container of the pod: %q", out)
	}
	smaps, _ := os.ReadFile(dir + "smaps_rollup")
	t.Logf("pause Pss: %s", statusField(string(smaps), "Pss"))
}

// TestFromInside: what a restricted container sees of itself.
func TestFromInside(t *testing.T) {
	l := newLab(t, nil)
	c := l.container()
	c.User = users.User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 2000}, Home: "/home/app"}
	sc := c.security()
	sc.NoNewPrivs, sc.ReadonlyRootfs = true, true
	sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"chown"}}
	sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/timer_list", "/proc/keys"}, []string{"/proc/sys"}
	c.Config.Envs = []*runtimeapi.KeyValue{{Key: "UEBER", Value: []byte("ü=b\nc")}}
	c.Config.WorkingDir = "/tmp"
	c.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 500, MemoryLimitInBytes: 64 << 20, CpuShares: 200}
	out := l.sh(c, `cat /proc/self/status; echo oom=$(cat /proc/self/oom_score_adj); echo cwd=$(pwd); echo home=$HOME host=$HOSTNAME;
echo "env=$(env | grep -A1 BER)"; echo nofile=$(ulimit -n)/$(ulimit -Hn); echo pid=$$; touch /x; echo hi > /dev/shm/f && cat /dev/shm/f;
cat /etc/hosts /etc/resolv.conf /etc/hostname; wc -c < /proc/keys; echo 1 > /proc/sys/kernel/shmmax; mount | grep ' /sys'; ls -l /proc/self/fd | wc -l;
for n in mnt net uts ipc pid; do echo $n=$(readlink /proc/self/ns/$n); done`)
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		wantField(t, out, set, "0000000000000000")
	}
	wantField(t, out, "CapBnd", "0000000000000001")
	wantField(t, out, "NoNewPrivs", "1")
	wantField(t, out, "Seccomp", "2")
	wantField(t, out, "Uid", "1000 1000 1000 1000")
	wantField(t, out, "Groups", "1000 2000")
	for _, want := range []string{
		"oom=500\n", "cwd=/tmp\n", "home=/home/app host=web-0\n", "env=UEBER=ü=b\nc\n", "pid=1\n",
		"/x: Read-only file system", "\nhi\n", "127.0.0.1 pods-own-hosts\n", "nameserver 10.0.0.10\n", "\nweb-0\n",
		"can't create /proc/sys/kernel/shmmax: Read-only file system", "sysfs on /sys type sysfs (ro,",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, shared := range []string{"net", "uts", "ipc"} {
		link, err := os.Readlink(l.pod.PauseNS + "/" + shared)
		l.must(err)
		if !strings.Contains(out, shared+"="+link+"\n") {
			t.Errorf("the container is not in the pod's %s namespace", shared)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(l.pod.ShmPath, "f")); string(data) != "hi\n" {
		t.Errorf("/dev/shm is not the pod's: %q", data)
	}
}

// TestPrivilegedFromInside: everything there is to give, and nothing hidden.
func TestPrivilegedFromInside(t *testing.T) {
	l := newLab(t, func(_ *Host, p *Pod) { p.Config.Linux.SecurityContext.Privileged = true })
	c := l.container()
	sc := c.security()
	sc.Privileged = true
	sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	sc.MaskedPaths, sc.ReadonlyPaths = []string{"/proc/keys"}, []string{"/proc/sys"}
	c.Devices = []Device{{ContainerPath: "/dev/kmsg", Type: "c", Major: 1, Minor: 11, Mode: 0o600, Permissions: "rwm"}}
	out := l.sh(c, `cat /proc/self/status; mount; ls -l /dev/kmsg; mknod /tmp/n c 1 3 && echo x > /tmp/n && echo mknod-works; cat /dev/kmsg </dev/null | head -c 1 | wc -c`)
	self, err := os.ReadFile("/proc/self/status")
	l.must(err)
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		wantField(t, out, set, statusField(string(self), "CapBnd"))
	}
	wantField(t, out, "CapInh", "0000000000000000")
	wantField(t, out, "CapAmb", "0000000000000000")
	wantField(t, out, "Seccomp", "0")
	for _, want := range []string{"sysfs on /sys type sysfs (rw,", "mknod-works", "/dev/kmsg"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

// TestDevicesFromInside (SEC-22): what is not listed cannot be opened, and
// what is listed only as it is listed.
func TestDevicesFromInside(t *testing.T) {
	const listed, unlisted = "/dev/fuse", "/dev/loop-control"
	for _, dev := range []string{listed, unlisted} {
		f, err := os.Open(dev)
		if err != nil {
			t.Skipf("a host without it tells nothing: %v", err)
		}
		f.Close()
	}
	l := newLab(t, nil)
	c := l.container()
	c.Devices = []Device{{ContainerPath: "/dev/listed", Type: "c", Major: 10, Minor: 229, Mode: 0o600, Permissions: "r"}}
	out := l.sh(c, `for d in "b 8 0" "c 1 1" "c 10 237" "c 10 229"; do mknod /tmp/d $d; (: < /tmp/d) && echo "open $d" || echo "denied $d"; rm /tmp/d; done
ls -l /dev/listed; (: < /dev/listed) && echo read; (: >> /dev/listed) && echo written || echo "write denied"`)
	for _, want := range []string{"denied b 8 0", "denied c 1 1", "denied c 10 237", "open c 10 229", "read\n", "write denied", "crw-------"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

// TestAmbientFromInside: an ambient capability reaches a user who is not root.
func TestAmbientFromInside(t *testing.T) {
	l := newLab(t, nil)
	c := l.container()
	c.User = users.User{UID: 1000, GID: 1000}
	c.security().Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	out := l.sh(c, "cat /proc/self/status")
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		wantField(t, out, set, "0000000000000400")
	}
	wantField(t, out, "Groups", "1000")
}

// TestModesFromInside: pid namespaces of the pod and of a target, mounts over our own, recursive
// read-only.
func TestModesFromInside(t *testing.T) {
	l := newLab(t, nil)
	c := l.container()
	c.security().NamespaceOptions = nil
	if out := l.sh(c, "cat /proc/1/comm; readlink /proc/1/fd/3"); !strings.HasPrefix(out, "pause\n") || strings.Contains(out, "socket") {
		t.Errorf("in the pod's pid namespace process 1 is %q", out)
	}

	c = l.container()
	c.security().NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "other"}
	c.TargetNS = l.pod.PauseNS + "/pid"
	if out := l.sh(c, "cat /proc/1/comm"); out != "pause\n" {
		t.Errorf("in the target's pid namespace process 1 is %q", out)
	}

	c = l.container()
	c.Config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/etc/hosts", HostPath: "/h"},
		{ContainerPath: "/dev/shm", HostPath: "/s"},
		{ContainerPath: "/deep/er", HostPath: "/d"},
		{ContainerPath: "/deep", HostPath: "/d", Readonly: true, RecursiveReadOnly: true},
	}
	c.Mounts = []Mount{{Source: l.write("h", "asked-hosts\n")}, {Source: l.mkdir("s")}, {Source: l.mkdir("d")}, {Source: l.mkdir("deep")}}
	l.mkdir("deep", "er")
	out := l.sh(c, "cat /etc/hosts; touch /dev/shm/mine /deep/er/mine; touch /deep/no")
	if !strings.Contains(out, "asked-hosts\n") || !strings.Contains(out, "/deep/no: Read-only file system") {
		t.Errorf("mounts: %s", out)
	}
	for _, f := range []string{"s/mine", "d/mine"} {
		if _, err := os.Stat(filepath.Join(l.dir, f)); err != nil {
			t.Error(err)
		}
	}
}

// TestHostPodFromInside: a pod of the host's namespaces.
func TestHostPodFromInside(t *testing.T) {
	l := newLab(t, func(_ *Host, p *Pod) {
		p.NetNS, p.ShmPath, p.Hostname = "", "", "ignored"
		p.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
			Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE,
		}
	})
	c := l.container()
	c.security().NamespaceOptions = nil
	out := l.sh(c, `for n in net uts ipc pid; do echo $n=$(readlink /proc/self/ns/$n); done; mount | grep shm; hostname`)
	for _, ns := range []string{"net", "uts", "ipc", "pid"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		l.must(err)
		if !strings.Contains(out, ns+"="+link+"\n") {
			t.Errorf("not in the host's %s namespace:\n%s", ns, out)
		}
	}
	name, err := os.Hostname()
	l.must(err)
	if !strings.HasSuffix(out, name+"\n") {
		t.Errorf("the host is called %s:\n%s", name, out)
	}
}

// TestExecEqualsContainer (SEC-05): an exec has what its container has.
func TestExecEqualsContainer(t *testing.T) {
	l := newLab(t, nil)
	c := l.container()
	c.User = users.User{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{2000}}
	c.security().NoNewPrivs = true
	c.security().Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	c.Config.Command = []string{"/bin/busybox", "sh", "-c", "busybox cat /proc/self/status; exec busybox sleep 600"}
	s, _, err := ForContainer(l.host, l.pod, c)
	l.must(err)
	defer l.delete(c.ID)
	r, w, err := os.Pipe()
	l.must(err)
	defer r.Close()
	start := l.command("run", "--detach", "--bundle", l.bundle(c.ID, s), c.ID)
	start.Stdout = w
	if complaint := l.runQuietly(start); complaint != "" {
		t.Fatal(complaint)
	}
	w.Close()
	own := readUntil(t, r, "nonvoluntary_ctxt_switches")

	p, err := execProcess(s, []string{"/bin/busybox", "cat", "/proc/self/status"}, false)
	l.must(err)
	data, err := json.Marshal(p)
	l.must(err)
	out, err := l.command("exec", "--process", l.write("process.json", string(data)), c.ID).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups"} {
		wantField(t, string(out), f, statusField(own, f))
	}
	if statusField(own, "Seccomp") != "2" {
		t.Errorf("the container has no filter:\n%s", own)
	}
}

func readUntil(t *testing.T, r *os.File, end string) string {
	t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	var text strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(text.String(), end) {
		n, err := r.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, text.String())
		}
	}
	return text.String()
}

func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
