package resources

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// wantLimit looks at a line of /proc/PID/limits.
func wantLimit(d *harness.Daemon, who, limits, name, soft, hard string) {
	d.Helper()
	if want := regexp.MustCompile(`(?m)^` + name + ` +` + soft + ` +` + hard + ` `); !want.MatchString(limits) {
		d.Errorf("%s: no limit %q of %s and %s in\n%s", who, name, soft, hard, limits)
	}
}

// notes is what the daemon says it could not give whole, and how often.
func notes(d *harness.Daemon) map[string]int {
	d.Helper()
	r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.Must(err)
	notes := map[string]int{}
	d.Must(json.Unmarshal([]byte(r.Info["notes"]), &notes))
	return notes
}

// TestUlimits: the configuration's limits hold for the container and for what runs in it later; a handler has its own.
func TestUlimits(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithConfig("[containers]\nulimits = ['nofile=300:400', 'core=0:4096', 'stack=unlimited']\n"),
		harness.WithHandler("small", "ulimits = ['nofile=50:60']"))
	c := d.RunPod().Run(harness.Idle())
	for who, pid := range map[string]string{"the container": "1", "exec": "self"} {
		limits := c.Exec("cat", "/proc/"+pid+"/limits")
		wantLimit(d, who, limits, "Max open files", "300", "400")
		wantLimit(d, who, limits, "Max core file size", "0", "4096")
	}
	limits := d.RunPodBy("small").Run(harness.Idle()).Exec("cat", "/proc/1/limits")
	wantLimit(d, "the handler's container", limits, "Max open files", "50", "60")
	wantLimit(d, "the handler's container", limits, "Max core file size", "0", "4096")
}

// TestUlimitsClamped: what the machine cannot give is told once, not for every container.
func TestUlimitsClamped(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithConfig("[containers]\nulimits = ['nofile=1024:unlimited']\n"))
	p := d.RunPod()
	for range 2 {
		limits := p.Run(harness.Idle()).Exec("cat", "/proc/self/limits")
		wantLimit(d, "container", limits, "Max open files", "1024", `\d+`)
	}
	told := 0
	for text, times := range notes(d) {
		if strings.Contains(text, "RLIMIT_NOFILE unlimited was lowered to") {
			told += times
		}
	}
	if told != 1 {
		t.Errorf("the clamped limit was told %d times: %v", told, notes(d))
	}
	if said := harness.HostFile(t, d.LogFile()); strings.Count(said, "RLIMIT_NOFILE unlimited was lowered to") != 1 {
		t.Errorf("the log should tell once of the clamped limit:\n%s", said)
	}
}

// TestShmSize: what the pod's shared memory holds, and no byte more.
func TestShmSize(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithConfig("[containers]\nshm_size = '1Mi'\n"), harness.WithHandler("large", "shm_size = '2Mi'"))
	fill := []string{"sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1k count=4000; wc -c </dev/shm/x"}
	for _, row := range []struct{ handler, want string }{{"", "1048576\n"}, {"large", "2097152\n"}} {
		c := d.RunPodBy(row.handler).Run(harness.Idle())
		r, err := c.TryExec(30, fill...)
		if err != nil || r.Stdout != row.want || !strings.Contains(r.Stderr, "No space left") {
			t.Errorf("handler %q: %v, %v; want %s", row.handler, r, err, row.want)
		}
	}
}

func TestPidsLimit(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithConfig("[containers]\npids_limit = 77\n"))
	if got := d.RunPod().Run(harness.Idle()).CgroupFile("pids", "pids.max"); got != "77" {
		t.Errorf("pids.max is %s, want 77", got)
	}
	other := harness.NewDaemon(t)
	if got := other.RunPod().Run(harness.Idle()).CgroupFile("pids", "pids.max"); got != "max" {
		t.Errorf("without a limit pids.max is %s, want max", got)
	}
}

// TestHugepageLimits: a limit holds where the machine has a controller for it, and is told where not. A kubelet names all sizes, most with 0.
func TestHugepageLimits(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}}
	}))
	file := "hugetlb.%s.limit_in_bytes"
	switch _, err := os.Stat("/sys/fs/cgroup/hugetlb"); {
	case harness.OnUnified():
		file = "hugetlb.%s.max"
	case err != nil: // none, or on the other hierarchy of a hybrid host, which runc does not use
		for text := range notes(d) {
			if strings.Contains(text, "1GB") {
				t.Errorf("a limit of 0 is no lack: %s", text)
			}
		}
		if notes(d)["resources.hugepage_limits 2MB: 4194304 is not enforced: this machine has no hugetlb controller for it"] != 1 {
			t.Errorf("the limit that does not hold should be told: %v", notes(d))
		}
		return
	}
	for size, want := range map[string]string{"2MB": "4194304", "1GB": "0"} {
		if got := c.CgroupFile("hugetlb", fmt.Sprintf(file, size)); got != want {
			t.Errorf("the limit of %s is %s, want %s", size, got, want)
		}
	}
}

// TestPrivilegedWithoutHostDevices: a handler may keep the host's devices from a privileged container, which then has what it asks for.
func TestPrivilegedWithoutHostDevices(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithHandler("bare", "privileged_without_host_devices = true"))
	privileged := func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
	alike := harness.With(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
	open := []string{"sh", "-c", "exec 3</dev/kmsg"}
	usual, bare := d.RunPod(privileged), d.RunPodBy("bare", privileged)
	if r, err := usual.Run(harness.Idle(), alike).TryExec(30, "test", "-c", "/dev/kmsg"); err != nil || r.Code != 0 {
		t.Errorf("a privileged container lacks /dev/kmsg: %v, %v", r, err)
	}
	c := bare.Run(harness.Idle(), alike)
	if r, err := c.TryExec(30, "test", "-e", "/dev/kmsg"); err != nil || r.Code == 0 {
		t.Errorf("a privileged container of this handler has /dev/kmsg: %v, %v", r, err)
	}
	c.Exec("mknod", "/dev/kmsg", "c", "1", "11")
	if r, err := c.TryExec(30, open...); err != nil || r.Code == 0 || !strings.Contains(r.Stderr, "not permitted") {
		t.Errorf("the node that it made itself opens: %v, %v", r, err)
	}
	asked := bare.Run(harness.Idle(), alike, harness.With(func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/kmsg", Permissions: "r"}}
	}))
	if r, err := asked.TryExec(30, open...); err != nil || r.Code != 0 {
		t.Errorf("the device that was asked for does not open: %v, %v", r, err)
	}
}

// TestHangup: what may change while the daemon runs does, the rest is named, and a broken file changes nothing.
func TestHangup(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithConfig("[containers]\npids_limit = 10\n"))
	p := d.RunPod()
	before, shim, logger := p.Run(harness.Idle()), d.WaitRole("shim", 0), d.WaitRole("logger", 0)
	dropIn := d.ConfigFile() + ".d"
	d.Must(os.Mkdir(dropIn, 0o755))
	vendor := fmt.Sprintf("[containers]\npids_limit = 20\n[network]\ndefault = false\n[runtimes.vendor]\npath = %q\n[images]\npinned = [\"*/busybox:1\"]\n", harness.Binary("runc"))
	d.Must(os.WriteFile(dropIn+"/vendor.toml", []byte(vendor), 0o600))
	d.Hangup("changes of network.default take effect after a restart")
	if got := p.Run(harness.Idle()).CgroupFile("pids", "pids.max"); got != "20" {
		t.Errorf("pids.max of a new container is %s, want 20", got)
	}
	if got := before.CgroupFile("pids", "pids.max"); got != "10" {
		t.Errorf("pids.max of a container from before is %s, want 10", got)
	}
	if i := d.ImageStatus(d.Pulled(harness.Busybox)); !i.Pinned {
		t.Errorf("an image that is pinned from now on: %v", i)
	}
	added := d.RunPodBy("vendor")
	added.Run(harness.Idle())

	d.Must(os.WriteFile(dropIn+"/zz.toml", []byte("\n[containers]\npids_limit = -5\n"), 0o600))
	d.Hangup("cannot reload the configuration")
	if said := harness.HostFile(t, d.LogFile()); !strings.Contains(said, `zz.toml, line 3: key \"containers.pids_limit\"`) {
		t.Errorf("the log should name file, line and key:\n%s", said)
	}
	if got := added.Run(harness.Idle()).CgroupFile("pids", "pids.max"); got != "20" {
		t.Errorf("after a broken file pids.max of a new container is %s, want 20", got)
	}

	d.Must(os.RemoveAll(dropIn))
	d.Hangup("configuration reloaded")
	if i := d.ImageStatus(d.Pulled(harness.Busybox)); i.Pinned {
		t.Errorf("an image that is pinned no more: %v", i)
	}
	_, err := d.Runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: d.PodConfig(), RuntimeHandler: "vendor"})
	harness.WantCode(t, err, codes.InvalidArgument, "vendor")
	_, err = added.TryCreate(added.ContainerConfig(harness.Idle()))
	harness.WantCode(t, err, codes.InvalidArgument, "vendor")
	added.Stop()
	added.Remove()

	for _, pid := range []int{shim, logger} { // as `pkill -HUP cribox` does
		d.Must(syscall.Kill(pid, syscall.SIGHUP))
	}
	c := p.Run(harness.Shell("echo heard"))
	c.WaitExit()
	c.WaitLog("heard")
	if d.Role("shim") != shim || d.Role("logger") != logger {
		t.Error("a hangup ended the shim or the logger")
	}
}
