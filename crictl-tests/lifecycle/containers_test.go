package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

func TestContainerLifecycle(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Create(harness.Shell("echo started; exec sleep 1d"), harness.With(func(c *cri.ContainerConfig) { c.Labels, c.Annotations = harness.Awkward, harness.Awkward }))

	s := c.Status()
	if s.State != cri.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 || s.FinishedAt != 0 {
		t.Errorf("created: %v", s)
	}
	c.Start()
	if _, err := os.Stat(c.LogPath()); err != nil {
		t.Errorf("StartContainer returned before there was a log: %v", err)
	}
	s = c.Status()
	if s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.FinishedAt != 0 {
		t.Errorf("running: %v", s)
	}
	if s.Id != c.ID || !proto.Equal(s.Metadata, c.Config.Metadata) || s.LogPath != c.LogPath() {
		t.Errorf("status: id %s, metadata %v, log path %s", s.Id, s.Metadata, s.LogPath)
	}
	if s.Image.GetImage() == "" || s.ImageRef == "" || s.ImageId != d.Pulled(harness.Busybox) {
		t.Errorf("image %v, image_ref %q, image_id %q", s.Image, s.ImageRef, s.ImageId)
	}
	wantSame(t, "labels", s.Labels, harness.Awkward)
	wantSame(t, "annotations", s.Annotations, harness.Awkward)

	c.Stop(0)
	s = c.Status()
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("stopped: %v", s)
	}
	c.Stop(0)
	c.Remove()
	_, err := d.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	harness.WantCode(t, err, codes.NotFound, c.ID)
	c.Remove()
	c.Stop(0)
	if _, err := os.Stat(c.LogPath()); err != nil {
		t.Errorf("RemoveContainer removed the log, which is the kubelet's: %v", err)
	}
}

// TestEnds lists how a container may end, and what is told of it.
func TestEnds(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, row := range []struct {
		script string
		code   int32
		reason string
	}{
		{"exit 0", 0, "Completed"},
		{"exit 1", 1, "Error"},
		{"exit 200", 200, "Error"},
		{"exit 255", 255, "Error"},
		{"kill -TERM $$", 0, ""}, // the first process of a pid namespace ignores what it does not handle
		{"trap 'exit 9' TERM; kill -TERM $$", 9, "Error"},
	} {
		if row.reason == "" {
			continue
		}
		s := p.Run(harness.Shell(row.script)).WaitExit()
		if s.ExitCode != row.code || s.Reason != row.reason || s.FinishedAt < s.StartedAt || s.StartedAt == 0 {
			t.Errorf("%s: exit code %d, reason %q, started %d, finished %d", row.script, s.ExitCode, s.Reason, s.StartedAt, s.FinishedAt)
		}
	}
	killed := p.Run(harness.Idle())
	d.Must(syscall.Kill(killed.PID(), syscall.SIGKILL))
	if s := killed.WaitExit(); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("killed from the host: exit code %d, reason %q", s.ExitCode, s.Reason)
	}
}

// TestStartError: what could not start stays to be looked at.
func TestStartError(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Create(harness.Running("/no/such/program"))
	if err := c.TryStart(); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start of a program that does not exist: %v", err)
	}
	s := c.Status()
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || s.Reason != "StartError" || s.FinishedAt == 0 {
		t.Errorf("status: %v", s)
	}
	if !strings.Contains(s.Message, "/no/such/program") {
		t.Errorf("the status should tell why: message %q", s.Message)
	}
	harness.WantCode(t, c.TryStart(), codes.FailedPrecondition, c.ID)
}

// TestStartUnanswered: what passes, here a disk that keeps the logger waiting, does not make an exited container of one that never ran.
func TestStartUnanswered(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Create(harness.Shell("echo ran; exit 4"))
	logger := d.WaitRole("logger", 0)
	harness.Freeze(t, logger)
	err := c.TryStart()
	d.Must(syscall.Kill(logger, syscall.SIGCONT))
	harness.WantCode(t, err, codes.Unavailable)
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("status: %v", s)
	}
	c.Start()
	if s := c.WaitExit(); s.ExitCode != 4 {
		t.Errorf("status: %v", s)
	}
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "ran\n" {
		t.Errorf("log %q", got)
	}
}

func TestStopGivesGrace(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	polite := p.Run(harness.Shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do usleep 10000; done"))
	polite.WaitLog("ready")
	polite.Stop(60)
	if s := polite.Status(); s.ExitCode != 3 || s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("it handles TERM: %s, exit code %d", s.State, s.ExitCode)
	}
	if got := harness.TextOf(polite.FinalLog(), "stdout"); got != "ready\nbye\n" {
		t.Errorf("log %q", got)
	}

	deaf := p.Run(d.Tool("ignore-term"))
	deaf.WaitLog("ready")
	deaf.Stop(1)
	if s := deaf.Status(); s.ExitCode != 137 {
		t.Errorf("it ignores TERM: exit code %d", s.ExitCode)
	}
}

// TestStopJoins: a second, impatient stop ends the wait of the first.
func TestStopJoins(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("ignore-term"))
	c.WaitLog("ready")
	slow := make(chan error, 1)
	go func() {
		_, err := c.Runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 3600})
		slow <- err
	}()
	c.Stop(1)
	select {
	case err := <-slow:
		d.Must(err)
	case <-time.After(harness.Patience):
		t.Fatal("the patient stop still waits although the container is stopped")
	}
}

func TestStopSignalOfTheImageAndOfTheRequest(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(d.Tool("wait"), harness.With(func(c *cri.ContainerConfig) { c.StopSignal = cri.Signal_SIGNAL_SIGUSR1 }))
	c.WaitLog("ready")
	if got := c.Status().StopSignal; got != cri.Signal_SIGNAL_SIGUSR1 {
		t.Errorf("the status says %s", got)
	}
	c.Stop(60)
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "ready\ngot 10\n" {
		t.Errorf("asked for USR1 (10): log %q", got)
	}
}

// report is what the toolbox's process says it was given.
type report struct {
	Uid, Gid int
	Groups   []int
	Args     []string
	Env      []string
	Cwd      string
	Status   map[string]string
	Adj      string `json:"oom_score_adj"`
	Mounts   string `json:"mountinfo"`
}

// reported runs the toolbox's report in a pod and returns what it says.
func reported(p *harness.Pod, options ...harness.ContainerOption) report {
	p.Helper()
	c := p.Run(append([]harness.ContainerOption{p.Tool("report")}, options...)...)
	if s := c.WaitExit(); s.ExitCode != 0 {
		p.Fatalf("report: exit code %d: %s", s.ExitCode, harness.TextOf(c.FinalLog(), "stderr"))
	}
	var r report
	p.Must(json.Unmarshal([]byte(harness.TextOf(c.FinalLog(), "stdout")), &r))
	return r
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	r := reported(d.RunPod(), harness.With(func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "EMPTY"}, {Key: "SPACED", Value: []byte(" a=b  c\n")}, {Key: "A", Value: []byte("2")}}
		c.WorkingDir = "/new/folder"
	}))
	for _, want := range []string{"EMPTY=", "SPACED= a=b  c\n", "A=2"} {
		if !slices.Contains(r.Env, want) {
			t.Errorf("the environment lacks %q: %q", want, r.Env)
		}
	}
	if !slices.ContainsFunc(r.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		t.Errorf("no PATH in %q", r.Env)
	}
	for _, e := range r.Env {
		if strings.HasPrefix(e, "CRIBOX") || strings.HasPrefix(e, "_LIBCONTAINER") || strings.HasPrefix(e, "NOTIFY_SOCKET") {
			t.Errorf("the environment of the runtime leaked: %s", e)
		}
	}
	if r.Cwd != "/new/folder" {
		t.Errorf("working directory %s", r.Cwd)
	}
}

// TestNothingInherited: a container's first process has its three streams and no descriptor of the runtime.
func TestNothingInherited(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(harness.Shell("ls /proc/self/fd"))
	c.WaitExit()
	// The fourth is the one that ls reads the folder with.
	if got := strings.Fields(harness.TextOf(c.FinalLog(), "stdout")); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Errorf("the container's descriptors are %v", got)
	}
	idle := p.Run(harness.Idle())
	if got := strings.Fields(idle.Exec("ls", "/proc/self/fd")); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Errorf("an exec'ed process's descriptors are %v", got)
	}
}

// TestCommandAndArgs: command replaces the image's entrypoint, args its command; command without args drops the image's command.
func TestCommandAndArgs(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, row := range []struct{ command, args, want []string }{
		{[]string{"echo", "a b"}, nil, []string{"a b"}},
		{[]string{"echo"}, []string{"c", "", "d"}, []string{"c  d"}},
		{nil, []string{"echo", "only args"}, []string{"only args"}},
	} {
		c := p.Run(harness.With(func(c *cri.ContainerConfig) { c.Command, c.Args = row.command, row.args }))
		c.WaitExit()
		if got, want := harness.TextOf(c.FinalLog(), "stdout"), strings.Join(row.want, "\n")+"\n"; got != want {
			t.Errorf("command %q args %q: printed %q, want %q", row.command, row.args, got, want)
		}
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	// The busybox image knows app (1000:1000, extra group 900).
	for _, row := range []struct {
		name   string
		change func(*cri.LinuxContainerSecurityContext)
		want   string // id -u, -g, -G
	}{
		{"nobody asked", func(*cri.LinuxContainerSecurityContext) {}, "0 0 0"},
		{"run_as_user", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 4321} }, "4321 0 0"},
		{"run_as_user known to the image", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1000} }, "1000 1000 1000 900"},
		{"run_as_username", func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "app" }, "1000 1000 1000 900"},
		{"run_as_group", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 77}
		}, "1000 77 77 900"},
		{"supplemental groups", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &cri.Int64Value{Value: 4321}, []int64{11, 12}
		}, "4321 0 0 11 12"},
		{"strict supplemental groups", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = &cri.Int64Value{Value: 1000}, []int64{11}
			s.SupplementalGroupsPolicy = cri.SupplementalGroupsPolicy_Strict
		}, "1000 1000 1000 11"},
	} {
		c := p.Run(harness.Shell("echo $(id -u) $(id -g) $(id -G)"), harness.With(func(c *cri.ContainerConfig) { row.change(c.Linux.SecurityContext) }))
		c.WaitExit()
		if got := strings.TrimSpace(harness.TextOf(c.FinalLog(), "stdout")); !sameIDs(got, row.want) {
			t.Errorf("%s: uid, gid and groups %q, want %q", row.name, got, row.want)
		}
	}
}

// sameIDs compares "uid gid groups…" where the groups have no order.
func sameIDs(got, want string) bool {
	g, w := strings.Fields(got), strings.Fields(want)
	if len(g) < 3 || len(w) < 3 || g[0] != w[0] || g[1] != w[1] {
		return false
	}
	return slices.Equal(sortedSet(g[2:]), sortedSet(w[2:]))
}

func sortedSet(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

func TestMounts(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	host := t.TempDir()
	d.Must(os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644))
	mounts := []*cri.Mount{
		{ContainerPath: "/data", HostPath: host},
		{ContainerPath: "/fixed", HostPath: host, Readonly: true},
		{ContainerPath: "/one/file", HostPath: filepath.Join(host, "file")},
	}
	c := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Mounts = mounts }))
	for _, path := range []string{"/data/file", "/fixed/file", "/one/file"} {
		if got := c.Exec("cat", path); got != "from the host\n" {
			t.Errorf("%s: %q", path, got)
		}
	}
	c.Exec("sh", "-c", "echo from inside > /data/back")
	if got, err := os.ReadFile(filepath.Join(host, "back")); err != nil || string(got) != "from inside\n" {
		t.Errorf("on the host: %q, %v", got, err)
	}
	if r, err := c.TryExec(10, "touch", "/fixed/x"); err != nil || r.Code == 0 {
		t.Errorf("wrote to a read-only mount: %v, %v", r, err)
	}
	got := c.Status().Mounts
	if len(got) != len(mounts) {
		t.Fatalf("status has %d mounts, want the %d asked for: %v", len(got), len(mounts), got)
	}
	for i, m := range mounts {
		if got[i].ContainerPath != m.ContainerPath || got[i].HostPath != m.HostPath || got[i].Readonly != m.Readonly {
			t.Errorf("mount %d of the status: %v, want %v", i, got[i], m)
		}
	}
}

func TestReadOnlyRootfs(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }))
	for _, path := range []string{"/x", "/etc/x"} {
		if r, err := c.TryExec(10, "touch", path); err != nil || r.Code == 0 || !strings.Contains(r.Stderr, "Read-only") {
			t.Errorf("touch %s: %v, %v", path, r, err)
		}
	}
	c.Exec("touch", "/dev/shm/x")
}

// TestResources looks at the kernel's own files, not at what the runtime says.
func TestResources(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{
			CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 512, MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20,
			CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 500,
			HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}, // as a kubelet sends them, wherever they exist
		}
	}))
	rows := []struct{ controller, file, want string }{
		{"memory", "memory.limit_in_bytes", "100663296"}, {"cpu", "cpu.shares", "512"}, {"cpu", "cpu.cfs_period_us", "50000"},
		{"cpu", "cpu.cfs_quota_us", "25000"}, {"cpuset", "cpuset.cpus", "0"}, {"cpuset", "cpuset.mems", "0"},
	}
	if harness.OnUnified() {
		rows = rows[:0]
		rows = append(rows, []struct{ controller, file, want string }{
			{"", "memory.max", "100663296"}, {"", "cpu.max", "25000 50000"}, {"", "cpuset.cpus", "0"}, {"", "cpuset.mems", "0"},
		}...)
	}
	for _, row := range rows {
		if got := c.CgroupFile(row.controller, row.file); got != row.want {
			t.Errorf("%s is %s, want %s", row.file, got, row.want)
		}
	}
	if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.PID())); err != nil || strings.TrimSpace(string(got)) != "500" {
		t.Errorf("oom_score_adj is %s (%v), want 500", got, err)
	}
	if got := c.Status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 96<<20 || got.GetCpuQuota() != 25000 {
		t.Errorf("the status says %v", got)
	}
}

// TestLimitsOfTheHost: what this host does not allow is clamped, not refused.
func TestLimitsOfTheHost(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Linux.Resources.OomScoreAdj = -998 }))
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container with oom_score_adj -998 is %s: %s", s.State, s.Message)
	}
}

// TestConfinement looks from inside at what a container may do.
func TestConfinement(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	const usual = "00000000a80425fb" // what a container gets that asks for nothing
	for _, row := range []struct {
		name   string
		change func(*cri.LinuxContainerSecurityContext)
		caps   string
		filter string // 2 = a filter is on
		noNew  string
	}{
		{"usual", func(*cri.LinuxContainerSecurityContext) {}, usual, "2", "0"},
		{"all dropped", func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
		}, "0000000000000000", "2", "0"},
		{"one added to none", func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}, "0000000000000400", "2", "0"},
		{"no new privileges", func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true }, usual, "2", "1"},
		{"unconfined", func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		}, usual, "0", "0"},
	} {
		r := reported(p, harness.With(func(c *cri.ContainerConfig) { row.change(c.Linux.SecurityContext) }))
		for field, want := range map[string]string{"CapEff": row.caps, "CapPrm": row.caps, "CapBnd": row.caps, "CapInh": "0000000000000000",
			"CapAmb": "0000000000000000", "Seccomp": row.filter, "NoNewPrivs": row.noNew} {
			if r.Status[field] != want {
				t.Errorf("%s: %s is %s, want %s", row.name, field, r.Status[field], want)
			}
		}
	}
	c := p.Run(harness.Idle())
	if got := c.Exec("cat", "/proc/keys"); got != "" {
		t.Errorf("/proc/keys is masked but says %q", got)
	}
	if got := c.Exec("ls", "/sys/firmware"); got != "" {
		t.Errorf("/sys/firmware is masked but holds %q", got)
	}
	for _, path := range []string{"/proc/sys/kernel/domainname", "/proc/sysrq-trigger"} {
		if r, err := c.TryExec(10, "sh", "-c", "echo x > "+path); err != nil || r.Code == 0 {
			t.Errorf("wrote to %s: %v %v", path, r, err)
		}
	}
	if r, err := c.TryExec(10, "mount", "-t", "tmpfs", "none", "/tmp"); err != nil || r.Code == 0 {
		t.Errorf("mounted: %v %v", r, err)
	}
	if r, err := c.TryExec(10, "mknod", "/tmp/disk", "b", "254", "0"); err == nil && r.Code == 0 {
		if r, err := c.TryExec(10, "dd", "if=/tmp/disk", "of=/dev/null", "count=1"); err != nil || r.Code == 0 {
			t.Errorf("read a disk of the host: %v %v", r, err)
		}
	}
}

func TestPrivileged(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		s := c.Linux.SecurityContext
		s.Privileged, s.MaskedPaths, s.ReadonlyPaths = true, nil, nil
	}))
	c.Exec("sh", "-c", "mount -t tmpfs none /tmp && umount /tmp")
	if got, want := c.Exec("grep", "CapEff", "/proc/self/status"), capabilitiesOf(t, os.Getpid()); got != want {
		t.Errorf("capabilities %q, want all of the host's: %q", got, want)
	}
}

func capabilitiesOf(t testing.TB, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "CapBnd") {
			return strings.Replace(line, "CapBnd", "CapEff", 1)
		}
	}
	return ""
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Shell("tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; echo to stderr >&2; exit 4"), harness.With(func(c *cri.ContainerConfig) { c.Tty, c.Stdin = true, true }))
	if s := c.WaitExit(); s.ExitCode != 4 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	lines := c.FinalLog()
	got := strings.ReplaceAll(harness.TextOf(lines, "stdout"), "\r", "")
	if !strings.HasPrefix(got, "/dev/") || !strings.Contains(got, "\nall\n") || !strings.Contains(got, "to stderr\n") {
		t.Errorf("a terminal shows %q", got)
	}
	if got := harness.TextOf(lines, "stderr"); got != "" {
		t.Errorf("a terminal has one stream, but stderr has %q", got)
	}
}

// TestStdin: without stdin the end is there at once; with it a reader waits.
func TestStdin(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	if s := p.Run(harness.Shell("cat; exit 5")).WaitExit(); s.ExitCode != 5 {
		t.Errorf("without stdin: exit code %d", s.ExitCode)
	}
	open := p.Run(harness.Shell("echo ready; cat; exit 6"), harness.With(func(c *cri.ContainerConfig) { c.Stdin = true }))
	open.WaitLog("ready")
	if s := open.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("with stdin: %s, exit code %d", s.State, s.ExitCode)
	}
}

func TestListContainers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p, other := d.RunPod(), d.RunPod()
	up := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Labels = map[string]string{"kind": "up", "all": "yes"} }))
	made := p.Create(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Labels = map[string]string{"kind": "made", "all": "yes"} }))
	far := other.Run(harness.Shell("exit 0"), harness.With(func(c *cri.ContainerConfig) { c.Labels = map[string]string{"all": "yes"} }))
	far.WaitExit()
	in := func(s cri.ContainerState) *cri.ContainerStateValue { return &cri.ContainerStateValue{State: s} }
	for _, row := range []struct {
		name   string
		filter *cri.ContainerFilter
		want   []*harness.Container
	}{
		{"no filter", nil, []*harness.Container{up, made, far}},
		{"id", &cri.ContainerFilter{Id: up.ID}, []*harness.Container{up}},
		{"start of the id", &cri.ContainerFilter{Id: up.ID[:13]}, []*harness.Container{up}},
		{"unknown id", &cri.ContainerFilter{Id: "feedfeedfeed"}, nil},
		{"pod", &cri.ContainerFilter{PodSandboxId: p.ID}, []*harness.Container{up, made}},
		{"unknown pod", &cri.ContainerFilter{PodSandboxId: "feedfeedfeed"}, nil},
		{"running", &cri.ContainerFilter{State: in(cri.ContainerState_CONTAINER_RUNNING)}, []*harness.Container{up}},
		{"created", &cri.ContainerFilter{State: in(cri.ContainerState_CONTAINER_CREATED)}, []*harness.Container{made}},
		{"exited", &cri.ContainerFilter{State: in(cri.ContainerState_CONTAINER_EXITED)}, []*harness.Container{far}},
		{"labels", &cri.ContainerFilter{LabelSelector: map[string]string{"kind": "made", "all": "yes"}}, []*harness.Container{made}},
		{"pod and label that do not meet", &cri.ContainerFilter{PodSandboxId: other.ID, LabelSelector: map[string]string{"kind": "up"}}, nil},
	} {
		r, err := d.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{Filter: row.filter})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		harness.WantEqual(t, row.name+": the stream", containerStream(d, row.filter), r)
		got := map[string]*cri.Container{}
		for _, c := range r.Containers {
			got[c.Id] = c
		}
		if len(got) != len(row.want) {
			t.Errorf("%s: %d containers, want %d", row.name, len(got), len(row.want))
		}
		for _, c := range row.want {
			item := got[c.ID]
			if item == nil {
				t.Errorf("%s: container %s is missing", row.name, c.Config.Metadata.Name)
			} else if item.Image == nil || item.ImageRef == "" || item.PodSandboxId != c.Pod.ID || item.CreatedAt == 0 || item.ImageId != d.Pulled(harness.Busybox) {
				t.Errorf("%s: incomplete: %v", row.name, item)
			}
		}
	}
}

// TestSameContainerTwice: a request that comes again joins the one in flight, or gets its result.
func TestSameContainerTwice(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	config := p.ContainerConfig(harness.Idle())
	ids := make([]string, 4)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			c, err := p.TryCreate(config)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = c.ID
		})
	}
	all.Wait()
	if slices.ContainsFunc(ids, func(id string) bool { return id != ids[0] }) {
		t.Fatalf("the same request got different containers: %v", ids)
	}
	next := proto.CloneOf(config)
	next.Metadata.Attempt++
	c, err := p.TryCreate(next)
	d.Must(err)
	if c.ID == ids[0] {
		t.Error("the next attempt got the container of the first")
	}
}

// TestContainerOutlivesItsImage: an image that a container uses stays, and says who holds it.
func TestContainerHoldsItsImage(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Create(harness.Idle())
	_, err := d.Images.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: d.Pulled(harness.Busybox)}})
	harness.WantCode(t, err, codes.FailedPrecondition, c.ID)
	c.Start()
	c.Exec("true")
}

func TestCreatedContainerOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Create(harness.Idle())
	d.Restart()
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a restart it is %s", s.State)
	}
	c.Start()
	c.Exec("true")
}
