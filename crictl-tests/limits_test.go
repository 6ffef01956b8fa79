package crictltests

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
)

// withHandler adds a runtime handler that is runc with settings of its own.
func withHandler(name, text string) option {
	return withConfig(fmt.Sprintf("[runtimes.%s]\npath = %q\n%s\n", name, binary("runc"), text))
}

// runPodBy runs a pod of a runtime handler, as a pod with a RuntimeClass asks for.
func (d *daemon) runPodBy(handler string, options ...podOption) *pod {
	d.Helper()
	config := d.podConfig(options...)
	r, err := d.runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	d.must(err)
	return &pod{daemon: d, id: r.PodSandboxId, config: config}
}

// wantLimit looks at a line of /proc/PID/limits.
func (d *daemon) wantLimit(who, limits, name, soft, hard string) {
	d.Helper()
	if want := regexp.MustCompile(`(?m)^` + name + ` +` + soft + ` +` + hard + ` `); !want.MatchString(limits) {
		d.Errorf("%s: no limit %q of %s and %s in\n%s", who, name, soft, hard, limits)
	}
}

// notes is what the daemon says it could not give whole, and how often.
func (d *daemon) notes() map[string]int {
	d.Helper()
	r, err := d.runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.must(err)
	notes := map[string]int{}
	d.must(json.Unmarshal([]byte(r.Info["notes"]), &notes))
	return notes
}

// TestUlimits: the configuration's limits hold for the container and for what runs in it later; a handler has its own.
func TestUlimits(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withConfig("[containers]\nulimits = ['nofile=300:400', 'core=0:4096', 'stack=unlimited']\n"),
		withHandler("small", "ulimits = ['nofile=50:60']"))
	c := d.runPod().run(idle())
	for who, pid := range map[string]string{"the container": "1", "exec": "self"} {
		limits := c.exec("cat", "/proc/"+pid+"/limits")
		d.wantLimit(who, limits, "Max open files", "300", "400")
		d.wantLimit(who, limits, "Max core file size", "0", "4096")
	}
	limits := d.runPodBy("small").run(idle()).exec("cat", "/proc/1/limits")
	d.wantLimit("the handler's container", limits, "Max open files", "50", "60")
	d.wantLimit("the handler's container", limits, "Max core file size", "0", "4096")
}

// TestUlimitsClamped: what the machine cannot give is told once, not for every container.
func TestUlimitsClamped(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withConfig("[containers]\nulimits = ['nofile=1024:unlimited']\n"))
	p := d.runPod()
	for range 2 {
		limits := p.run(idle()).exec("cat", "/proc/self/limits")
		d.wantLimit("container", limits, "Max open files", "1024", `\d+`)
	}
	told := 0
	for text, times := range d.notes() {
		if strings.Contains(text, "RLIMIT_NOFILE unlimited clamped to") {
			told += times
		}
	}
	if told != 1 {
		t.Errorf("the clamped limit was told %d times: %v", told, d.notes())
	}
	if said := hostFile(t, d.logFile()); strings.Count(said, "RLIMIT_NOFILE unlimited clamped to") != 1 {
		t.Errorf("the log should tell once of the clamped limit:\n%s", said)
	}
}

// TestShmSize: what the pod's shared memory holds, and no byte more.
func TestShmSize(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withConfig("[containers]\nshm_size = '1Mi'\n"), withHandler("large", "shm_size = '2Mi'"))
	fill := []string{"sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1k count=4000; wc -c </dev/shm/x"}
	for _, row := range []struct{ handler, want string }{{"", "1048576\n"}, {"large", "2097152\n"}} {
		c := d.runPodBy(row.handler).run(idle())
		r, err := c.tryExec(30, fill...)
		if err != nil || r.stdout != row.want || !strings.Contains(r.stderr, "No space left") {
			t.Errorf("handler %q: %v, %v; want %s", row.handler, r, err, row.want)
		}
	}
}

func TestPidsLimit(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withConfig("[containers]\npids_limit = 77\n"))
	if got := d.runPod().run(idle()).cgroupFile("pids", "pids.max"); got != "77" {
		t.Errorf("pids.max is %s, want 77", got)
	}
	other := newDaemon(t)
	if got := other.runPod().run(idle()).cgroupFile("pids", "pids.max"); got != "max" {
		t.Errorf("without a limit pids.max is %s, want max", got)
	}
}

// TestHugepageLimits: a limit holds where the machine has a controller for it, and is told where not. A kubelet names all sizes, most with 0.
func TestHugepageLimits(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle(), with(func(c *cri.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}}
	}))
	file := "hugetlb.%s.limit_in_bytes"
	switch _, err := os.Stat("/sys/fs/cgroup/hugetlb"); {
	case onUnified():
		file = "hugetlb.%s.max"
	case err != nil: // none, or on the other hierarchy of a hybrid host, which runc does not use
		for text := range d.notes() {
			if strings.Contains(text, "1GB") {
				t.Errorf("a limit of 0 is no lack: %s", text)
			}
		}
		if d.notes()["resources.hugepage_limits 2MB: 4194304 is not enforced: this machine has no controller for it"] != 1 {
			t.Errorf("the limit that does not hold should be told: %v", d.notes())
		}
		return
	}
	for size, want := range map[string]string{"2MB": "4194304", "1GB": "0"} {
		if got := c.cgroupFile("hugetlb", fmt.Sprintf(file, size)); got != want {
			t.Errorf("the limit of %s is %s, want %s", size, got, want)
		}
	}
}

// TestPrivilegedWithoutHostDevices: a handler may keep the host's devices from a privileged container, which then has what it asks for.
func TestPrivilegedWithoutHostDevices(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withHandler("bare", "privileged_without_host_devices = true"))
	privileged := func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
	alike := with(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
	open := []string{"sh", "-c", "exec 3</dev/kmsg"}
	usual, bare := d.runPod(privileged), d.runPodBy("bare", privileged)
	if r, err := usual.run(idle(), alike).tryExec(30, "test", "-c", "/dev/kmsg"); err != nil || r.code != 0 {
		t.Errorf("a privileged container lacks /dev/kmsg: %v, %v", r, err)
	}
	c := bare.run(idle(), alike)
	if r, err := c.tryExec(30, "test", "-e", "/dev/kmsg"); err != nil || r.code == 0 {
		t.Errorf("a privileged container of this handler has /dev/kmsg: %v, %v", r, err)
	}
	c.exec("mknod", "/dev/kmsg", "c", "1", "11")
	if r, err := c.tryExec(30, open...); err != nil || r.code == 0 || !strings.Contains(r.stderr, "not permitted") {
		t.Errorf("the node that it made itself opens: %v, %v", r, err)
	}
	asked := bare.run(idle(), alike, with(func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/kmsg", ContainerPath: "/dev/kmsg", Permissions: "r"}}
	}))
	if r, err := asked.tryExec(30, open...); err != nil || r.code != 0 {
		t.Errorf("the device that was asked for does not open: %v, %v", r, err)
	}
}

// hangup asks the daemon to read its configuration again, and waits until the log says how that went.
func (d *daemon) hangup(word string) {
	d.Helper()
	before := strings.Count(hostFile(d, d.logFile()), word)
	d.process.signal(syscall.SIGHUP)
	eventually(d, word, func() error {
		if err := d.process.ended(); err != nil {
			return err
		}
		return unless(strings.Count(hostFile(d, d.logFile()), word) > before, "the log does not say so")
	})
}

// TestHangup: what may change while the daemon runs does, the rest is named, and a broken file changes nothing.
func TestHangup(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withConfig("[containers]\npids_limit = 10\n"))
	p := d.runPod()
	before, shim, logger := p.run(idle()), d.waitRole("shim", 0), d.waitRole("logger", 0)
	dropIn := d.configFile() + ".d"
	d.must(os.Mkdir(dropIn, 0o755))
	vendor := fmt.Sprintf("[containers]\npids_limit = 20\n[network]\ndefault = false\n[runtimes.vendor]\npath = %q\n[images]\npinned = [\"*/busybox:1\"]\n", binary("runc"))
	d.must(os.WriteFile(dropIn+"/vendor.toml", []byte(vendor), 0o600))
	d.hangup("what changed in network.default needs a restart")
	if got := p.run(idle()).cgroupFile("pids", "pids.max"); got != "20" {
		t.Errorf("pids.max of a new container is %s, want 20", got)
	}
	if got := before.cgroupFile("pids", "pids.max"); got != "10" {
		t.Errorf("pids.max of a container from before is %s, want 10", got)
	}
	if i := d.imageStatus(d.pulled(busybox)); !i.Pinned {
		t.Errorf("an image that is pinned from now on: %v", i)
	}
	added := d.runPodBy("vendor")
	added.run(idle())

	d.must(os.WriteFile(dropIn+"/zz.toml", []byte("\n[containers]\npids_limit = -5\n"), 0o600))
	d.hangup("the configuration stays as it is")
	if said := hostFile(t, d.logFile()); !strings.Contains(said, `zz.toml, line 3: key \"containers.pids_limit\"`) {
		t.Errorf("the log should name file, line and key:\n%s", said)
	}
	if got := added.run(idle()).cgroupFile("pids", "pids.max"); got != "20" {
		t.Errorf("after a broken file pids.max of a new container is %s, want 20", got)
	}

	d.must(os.RemoveAll(dropIn))
	d.hangup("the configuration was read again")
	if i := d.imageStatus(d.pulled(busybox)); i.Pinned {
		t.Errorf("an image that is pinned no more: %v", i)
	}
	_, err := d.runtime.RunPodSandbox(context.Background(), &cri.RunPodSandboxRequest{Config: d.podConfig(), RuntimeHandler: "vendor"})
	wantCode(t, err, codes.InvalidArgument, "vendor")
	_, err = added.tryCreate(added.containerConfig(idle()))
	wantCode(t, err, codes.InvalidArgument, "vendor")
	added.stop()
	added.remove()

	for _, pid := range []int{shim, logger} { // as `pkill -HUP cribox` does
		d.must(syscall.Kill(pid, syscall.SIGHUP))
	}
	c := p.run(shell("echo heard"))
	c.waitExit()
	c.waitLog("heard")
	if d.role("shim") != shim || d.role("logger") != logger {
		t.Error("a hangup ended the shim or the logger")
	}
}
