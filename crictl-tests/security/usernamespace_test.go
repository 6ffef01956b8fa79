package security

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// mapped is a mount as a kubelet sends it for such a pod.
func mapped(host, inside string) *cri.Mount {
	return &cri.Mount{HostPath: host, ContainerPath: inside, UidMappings: harness.UserMapping(), GidMappings: harness.GroupMapping()}
}

// owner is user and group of a file on the host.
func owner(t testing.TB, path string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func wantOwner(d *harness.Daemon, path string, user, group int) {
	d.Helper()
	if got, want := owner(d, path), fmt.Sprintf("%d:%d", user, group); got != want {
		d.Errorf("on the host %s belongs to %s, want %s", path, got, want)
	}
}

// statusOf returns a line of /proc/PID/status on the host.
func statusOf(t testing.TB, pid int, key string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	t.Fatalf("no %s in the status of %d", key, pid)
	return ""
}

func TestUserNamespaceIsReported(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{})
	d.Must(err)
	for _, h := range r.RuntimeHandlers {
		if !h.GetFeatures().GetUserNamespaces() {
			t.Errorf("handler %q has no user namespaces", h.Name)
		}
	}
	if !r.GetFeatures().GetUserNamespacesHostNetwork() {
		t.Error("not with the host's network")
	}
	p := d.RunPod(harness.InUserNamespace)
	if got, want := p.Status().GetLinux().GetNamespaces().GetOptions(), p.Config.Linux.SecurityContext.NamespaceOptions; !proto.Equal(got, want) {
		t.Errorf("namespaces %v, want the options as asked: %v", got, want)
	}
}

func TestUserNamespace(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	data := filepath.Join(d.Dir, "data")
	d.Must(os.Mkdir(data, 0o755))
	d.Must(os.WriteFile(filepath.Join(data, "of-root"), []byte("x"), 0o600))
	p := d.RunPod(harness.InUserNamespace)
	c := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{mapped(data, "/data")} }))

	// Ids.
	if got := strings.Fields(c.Exec("cat", "/proc/self/uid_map", "/proc/self/gid_map")); strings.Join(got, " ") != fmt.Sprintf("0 %d %d 0 %d %d", harness.UserBase, harness.IdsEach, harness.GroupBase, harness.IdsEach) {
		t.Errorf("mappings %q", got)
	}
	if got := c.Exec("id", "-u"); got != "0\n" {
		t.Errorf("the process is user %q", got)
	}
	if got := statusOf(t, c.PID(), "Uid"); got != strings.TrimSpace(strings.Repeat(fmt.Sprint(harness.UserBase, " "), 4)) {
		t.Errorf("on the host it is %q", got)
	}
	if got := statusOf(t, c.PID(), "Gid"); got != strings.TrimSpace(strings.Repeat(fmt.Sprint(harness.GroupBase, " "), 4)) {
		t.Errorf("on the host its groups are %q", got)
	}
	for _, pause := range d.ProcessesOf(p.ID) {
		if got := statusOf(t, pause.Pid, "Uid"); !strings.HasPrefix(got, fmt.Sprint(harness.UserBase+harness.IdsEach-1)) {
			t.Errorf("pause is user %q of the host", got)
		}
	}

	// The image's files, and those that are made.
	for _, path := range []string{"/", "/bin/busybox", "/etc/passwd", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/data", "/data/of-root"} {
		if got := c.Exec("stat", "-c", "%u:%g", path); got != "0:0\n" {
			t.Errorf("inside %s belongs to %q", path, got)
		}
	}
	upper := func(name string) string { return filepath.Join(d.Root, "containers", c.ID, "upper", name) }
	c.Exec("sh", "-c", "echo new > /new; echo more >> /etc/passwd; touch /theirs; chown 7:8 /theirs; chmod 4755 /new; mkdir /dev/shm/dir")
	wantOwner(d, upper("new"), harness.UserBase, harness.GroupBase)
	wantOwner(d, upper("etc/passwd"), harness.UserBase, harness.GroupBase)
	wantOwner(d, upper("theirs"), harness.UserBase+7, harness.GroupBase+8)
	c.Exec("sh", "-c", "echo x >> /data/of-root; touch /data/new; touch /data/theirs; chown 7:8 /data/theirs")
	wantOwner(d, filepath.Join(data, "of-root"), 0, 0)
	wantOwner(d, filepath.Join(data, "new"), 0, 0)
	wantOwner(d, filepath.Join(data, "theirs"), 7, 8)

	// Network.
	if got := c.Exec("ip", "-4", "addr", "show", "eth0"); !strings.Contains(got, p.IP()+"/") || !strings.Contains(got, "UP") {
		t.Errorf("eth0 is not up with %s:\n%s", p.IP(), got)
	}
	if got := c.Exec("cat", "/sys/class/net/eth0/operstate"); got != "up\n" {
		t.Errorf("/sys tells of eth0: %q", got)
	}
	if got := c.Exec("cat", "/sys/class/net/lo/flags"); got != "0x9\n" {
		t.Errorf("/sys tells of lo: %q", got)
	}

	// Devices, whose nodes nobody can make here.
	c.Exec("sh", "-c", "echo gone > /dev/null; head -c 10 /dev/urandom > /tmp/random; test $(wc -c < /tmp/random) = 10; head -c 4 /dev/zero > /tmp/zero")
	if r, err := c.TryExec(60, "mknod", "/tmp/null", "c", "1", "3"); err != nil || r.Code == 0 {
		t.Errorf("mknod: %v %v", r, err)
	}
	// An exec's own streams can be opened again, by any user's shell.
	if got := c.Exec("sh", "-c", "echo out > /dev/stdout"); got != "out\n" {
		t.Errorf("/dev/stdout of an exec: %q", got)
	}
	if r, err := c.Runtime.ContainerStats(context.Background(), &cri.ContainerStatsRequest{ContainerId: c.ID}); err != nil || r.GetStats().GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats: %v %v", r, err)
	}
}

// TestUserNamespaceNetworkIsItsOwn: root of the pod may change the pod's network, which the host's kernel would not let it otherwise.
func TestUserNamespaceNetworkIsItsOwn(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.InUserNamespace, func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}
	})
	c := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	}))
	c.Exec("ip", "addr", "add", "192.0.2.7/32", "dev", "lo")
	if got := c.Exec("ip", "addr", "show", "lo"); !strings.Contains(got, "192.0.2.7") {
		t.Errorf("lo:\n%s", got)
	}
	if got := c.Exec("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shm_rmid_forced"); got != "81\n1\n" {
		t.Errorf("sysctls %q", got)
	}
}

// TestUserNamespaceStreams: what a container of any user prints through /dev/stdout, and reads from stdin, arrives.
func TestUserNamespaceStreams(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.InUserNamespace)
	for _, user := range []int64{0, 1000} {
		c := p.Run(harness.Shell("echo out > /dev/stdout; echo err > /dev/stderr; id -u; id -G"), harness.With(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: user}
			c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: user}
			c.Linux.SecurityContext.SupplementalGroups = []int64{4242}
			c.Linux.SecurityContext.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
		}))
		if s := c.WaitExit(); s.ExitCode != 0 {
			t.Errorf("user %d: exit code %d, %s", user, s.ExitCode, s.Message)
		}
		if got := harness.TextOf(c.FinalLog(), "stdout"); got != fmt.Sprintf("out\n%d\n%d 4242\n", user, user) {
			t.Errorf("user %d, stdout %q", user, got)
		}
		if got := harness.TextOf(c.FinalLog(), "stderr"); got != "err\n" {
			t.Errorf("user %d, stderr %q", user, got)
		}
	}
	tty := p.Run(harness.Shell("tty; echo out > /dev/stdout"), harness.With(func(c *cri.ContainerConfig) { c.Tty = true }))
	if s := tty.WaitExit(); s.ExitCode != 0 {
		t.Errorf("with a terminal: exit code %d, %s", s.ExitCode, s.Message)
	}
	waits := p.Run(harness.Shell("head -c 0 /dev/stdin && echo opened"), harness.With(func(c *cri.ContainerConfig) { c.Stdin = true }))
	if s := waits.WaitExit(); s.ExitCode != 0 {
		t.Errorf("it cannot open its stdin: exit code %d, log %v", s.ExitCode, waits.FinalLog())
	}
}

// TestUserNamespaceOutlivesTheDaemon: kill -9 and a restart change nothing, and a container can be made after it.
func TestUserNamespaceOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	flat := d.Ledger()
	p := d.RunPod(harness.InUserNamespace)
	c := p.Run(harness.Idle())
	made := p.Create(harness.Shell("cat /proc/self/uid_map"))
	before := c.Exec("readlink", "/proc/self/ns/user")
	d.Restart()
	if got := c.Exec("readlink", "/proc/self/ns/user"); got != before {
		t.Errorf("the namespace is %q, was %q", got, before)
	}
	made.Start()
	made.WaitExit()
	if got := strings.Fields(harness.TextOf(made.FinalLog(), "stdout")); len(got) != 3 || got[1] != fmt.Sprint(harness.UserBase) {
		t.Errorf("one that was created before: %q", got)
	}
	if got := p.Run(harness.Idle()).Exec("readlink", "/proc/self/ns/user"); got != before {
		t.Errorf("a new container is in %q, not in its pod's %q", got, before)
	}
	p.Stop()
	p.Remove()
	d.WantFlat(flat)
}

// TestUserNamespaceOnTheHostsNetwork: with the host's network, /sys is the host's and cannot be written.
func TestUserNamespaceOnTheHostsNetwork(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.InUserNamespace, harness.OnHostNetwork)
	c := p.Run(harness.Idle())
	host, err := os.Readlink("/proc/self/ns/net")
	d.Must(err)
	if got := strings.TrimSpace(c.Exec("readlink", "/proc/self/ns/net")); got != host {
		t.Errorf("network %q, the host's is %q", got, host)
	}
	if got := statusOf(t, c.PID(), "Uid"); !strings.HasPrefix(got, fmt.Sprint(harness.UserBase, " ")) {
		t.Errorf("on the host it is %q", got)
	}
	c.Exec("test", "-e", "/sys/class/net/lo/mtu")
	for line := range strings.Lines(c.Exec("cat", "/proc/self/mountinfo")) {
		if f := strings.Fields(line); (f[4] == "/sys" || strings.HasPrefix(f[4], "/sys/")) && f[4] != "/sys/fs/cgroup" && !strings.HasPrefix(f[5], "ro") {
			t.Errorf("can be written: %s", line)
		}
	}
}

// TestUserNamespaceManyLayers: an image of fifty layers, and its volumes, belong to the namespace's root.
func TestUserNamespaceManyLayers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.InUserNamespace)
	image := d.Pulled("layers:50")
	c := p.Run(harness.Shell("cat /top; ls /layers | wc -l; stat -c %u:%g /top /layers"), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = image }))
	c.WaitExit()
	if got := strings.Join(strings.Fields(harness.TextOf(c.FinalLog(), "stdout")), " "); got != "50 49 0:0 0:0" {
		t.Errorf("of fifty layers it sees %q", got)
	}
}

// TestUserNamespaceVolumesAndDevices: a volume of the image can be written by its owner, a device keeps working under another name.
func TestUserNamespaceVolumesAndDevices(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.InUserNamespace)
	c := p.Run(harness.Running("/toolbox", "wait"), harness.With(func(c *cri.ContainerConfig) {
		c.Image.Image = d.Pulled("app:1")
		c.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/hole", Permissions: "rw"}}
	}))
	inImage := c.Exec("stat", "-c", "%u:%g", "/home/app")
	if got := c.Exec("stat", "-c", "%u:%g", "/data"); got != inImage && got != "0:0\n" {
		t.Errorf("the volume belongs to %q inside", got)
	}
	volume := filepath.Join(d.Root, "containers", c.ID, "volumes", "0")
	var st syscall.Stat_t
	d.Must(syscall.Lstat(volume, &st))
	if st.Uid < harness.UserBase || st.Gid < harness.GroupBase {
		t.Errorf("on the host the volume belongs to %d:%d", st.Uid, st.Gid)
	}
	c.Exec("sh", "-c", "test -c /dev/hole && echo gone > /dev/hole")
}

// TestUserNamespacePauseImage: the configured pause image runs with the namespace's ids too, and its mount goes with the pod.
func TestUserNamespacePauseImage(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t, harness.KeepsBlobs)
	d.Start()
	d.Pulled(harness.Toolbox)
	d.Stop()
	image := d.Ref(harness.Toolbox)
	config, err := os.ReadFile(d.ConfigFile())
	d.Must(err)
	d.Must(os.WriteFile(d.ConfigFile(), fmt.Appendf(nil, "pause_image = %q\n%s", image, config), 0o600))
	d.Start()
	d.Empty = d.Ledger()
	d.Pulled(harness.Busybox)
	flat := d.Ledger()
	p := d.RunPod(harness.InUserNamespace)
	c := p.Run(harness.Idle())
	c.Exec("true")
	for _, pause := range d.ProcessesOf(p.ID) {
		if got := statusOf(t, pause.Pid, "Uid"); !strings.HasPrefix(got, fmt.Sprint(harness.UserBase+harness.IdsEach-1)) {
			t.Errorf("pause is user %q of the host", got)
		}
	}
	d.Restart()
	c.Exec("true")
	p.Stop()
	p.Remove()
	d.WantFlat(flat)
}

// TestUserNamespaceRootIsClosed: nobody else on the host, and no other pod, reaches the files of a pod's images.
func TestUserNamespaceRootIsClosed(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.InUserNamespace)
	c := p.Run(harness.Idle())
	root := filepath.Join(d.State, "userns", c.ID, "root")
	for user, want := range map[uint32]bool{harness.GroupBase: true, harness.GroupBase + 1: false, 65534: false} {
		cmd := exec.Command("cat", filepath.Join(root, "etc/passwd"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: user}}
		if out, err := cmd.CombinedOutput(); (err == nil) != want {
			t.Errorf("group %d: %v: %s", user, err, out)
		}
	}
	entries, err := os.ReadDir(d.State)
	d.Must(err)
	for _, e := range entries {
		info, err := e.Info()
		d.Must(err)
		closed := map[string]os.FileMode{"userns": 0o711, "pause": 0o755}[e.Name()]
		if got := info.Mode().Perm(); e.Type() != os.ModeSocket && got&0o077 != closed&0o077 {
			t.Errorf("%s in the state folder has mode %o", e.Name(), got)
		}
	}
}

// TestUserNamespaceLacking: what a machine lacks is told by name, the feature is not claimed, and other pods are not touched by it.
func TestUserNamespaceLacking(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		change func(*harness.Daemon)
		word   string
	}{
		"runtime without id-mapped mounts": {func(d *harness.Daemon) {
			old := filepath.Join(d.Dir, "old-runc")
			d.Must(harness.WriteProgram(old, fmt.Sprintf("#!/bin/sh\n[ \"$1\" != features ] || { echo '{\"linux\": {\"namespaces\": [\"user\"]}}'; exit; }\nexec %s \"$@\"\n", harness.Binary("runc"))))
			config := strings.Replace(d.Configuration(), fmt.Sprintf("%q", harness.Binary("runc")), fmt.Sprintf("%q", old), 1)
			d.Must(os.WriteFile(d.ConfigFile(), []byte(config), 0o600))
		}, "old-runc"},
		"runtime that does not say": {func(d *harness.Daemon) {
			old := filepath.Join(d.Dir, "mute-runc")
			d.Must(harness.WriteProgram(old, fmt.Sprintf("#!/bin/sh\n[ \"$1\" != features ] || exit 1\nexec %s \"$@\"\n", harness.Binary("runc"))))
			config := strings.Replace(d.Configuration(), fmt.Sprintf("%q", harness.Binary("runc")), fmt.Sprintf("%q", old), 1)
			d.Must(os.WriteFile(d.ConfigFile(), []byte(config), 0o600))
		}, "mute-runc features"},
		"a closed folder on the way": {func(d *harness.Daemon) { d.Must(os.Chmod(d.Dir, 0o700)) }, "/tmp/cbx-"},
	} {
		t.Run(name, func(t *testing.T) {
			d := harness.PrepareDaemon(t)
			row.change(d)
			d.Start()
			d.Empty = d.Ledger()
			r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{})
			d.Must(err)
			for _, h := range r.RuntimeHandlers {
				if h.GetFeatures().GetUserNamespaces() {
					t.Errorf("handler %q says that it has user namespaces", h.Name)
				}
			}
			_, err = d.TryPod(d.PodConfig(harness.InUserNamespace))
			harness.WantCode(t, err, codes.FailedPrecondition, "user namespaces", row.word)
			d.RunPod().Run(harness.Idle()).Exec("true")
		})
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	flat := d.Ledger()
	options := func(c *cri.PodSandboxConfig) *cri.NamespaceOption { return c.Linux.SecurityContext.NamespaceOptions }
	for name, change := range map[string]harness.PodOption{
		"two mappings": func(c *cri.PodSandboxConfig) {
			options(c).UsernsOptions.Uids = append(harness.UserMapping(), &cri.IDMapping{ContainerId: harness.IdsEach, HostId: 5, Length: 1})
		},
		"no mapping":     func(c *cri.PodSandboxConfig) { options(c).UsernsOptions.Gids = nil },
		"root unmapped":  func(c *cri.PodSandboxConfig) { options(c).UsernsOptions.Uids[0].ContainerId = 1 },
		"empty":          func(c *cri.PodSandboxConfig) { options(c).UsernsOptions.Uids[0].Length = 0 },
		"mode CONTAINER": func(c *cri.PodSandboxConfig) { options(c).UsernsOptions.Mode = cri.NamespaceMode_CONTAINER },
		"mode TARGET":    func(c *cri.PodSandboxConfig) { options(c).UsernsOptions.Mode = cri.NamespaceMode_TARGET },
		"host pid":       func(c *cri.PodSandboxConfig) { options(c).Pid = cri.NamespaceMode_NODE },
		"host ipc":       func(c *cri.PodSandboxConfig) { options(c).Ipc = cri.NamespaceMode_NODE },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.TryPod(d.PodConfig(harness.InUserNamespace, change))
			harness.WantCode(t, err, codes.InvalidArgument)
		})
	}
	d.WantFlat(flat)

	p := d.RunPod(harness.InUserNamespace)
	other := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{Uids: harness.GroupMapping(), Gids: harness.GroupMapping()}}
	for name, change := range map[string]func(*cri.ContainerConfig){
		"another mapping": func(c *cri.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions = other },
		"the host's": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}}
		},
		"a user that is not mapped": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: harness.IdsEach}
		},
	} {
		_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(change)))
		t.Run(name, func(t *testing.T) { harness.WantCode(t, err, codes.InvalidArgument) })
	}
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{mapped("/proc/sys", "/data")} })))
	harness.WantCode(t, err, codes.FailedPrecondition, "/proc/sys", "id-mapped")
	p.Stop()
	p.Remove()
	plain := d.RunPod()
	_, err = plain.TryCreate(plain.ContainerConfig(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{mapped(d.Dir, "/data")} })))
	harness.WantCode(t, err, codes.InvalidArgument, "uidMappings")
	plain.Stop()
	plain.Remove()
	d.WantFlat(flat)
}

// TestStateWithoutPrograms: distributions mount /run noexec.
func TestStateWithoutPrograms(t *testing.T) {
	t.Parallel()
	dir := harness.ShortFolder(t)
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		t.Fatal(err)
	}
	d := harness.PrepareDaemon(t)
	d.State = filepath.Join(dir, "run")
	d.Must(os.WriteFile(d.ConfigFile(), []byte(d.Configuration()), 0o600))
	d.Launch()
	d.WaitReady()
	d.Empty = d.Ledger()
	for _, of := range [][]harness.PodOption{nil, {harness.InUserNamespace}} {
		c := d.RunPod(of...).Run(harness.Idle())
		if got := c.Exec("id", "-u"); got != "0\n" {
			t.Errorf("the process is user %q", got)
		}
	}
}
