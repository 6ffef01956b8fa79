package badinput

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

type createRequest = *cri.CreateContainerRequest

func mounting(m ...*cri.Mount) func(createRequest) {
	return func(r createRequest) { r.Config.Mounts = m }
}

func devices(host, inside, permissions string) func(createRequest) {
	return func(r createRequest) {
		r.Config.Devices = []*cri.Device{{HostPath: host, ContainerPath: inside, Permissions: permissions}}
	}
}

func security(change func(*cri.LinuxContainerSecurityContext)) func(createRequest) {
	return func(r createRequest) { change(r.Config.Linux.SecurityContext) }
}

func capabilities(c *cri.Capability) func(createRequest) {
	return security(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities = c })
}

func resources(change func(*cri.LinuxContainerResources)) func(createRequest) {
	return func(r createRequest) { change(r.Config.Linux.Resources) }
}

func envs(e ...*cri.KeyValue) func(createRequest) {
	return func(r createRequest) { r.Config.Envs = e }
}

// badProcesses is CreateContainer: who, of what and which program.
func badProcesses(d *harness.Daemon) []harness.BadRequest[createRequest] {
	image := func(name string) func(createRequest) { return func(r createRequest) { r.Config.Image.Image = name } }
	many := make([]*cri.KeyValue, 150_000)
	for i := range many {
		many[i] = &cri.KeyValue{Key: fmt.Sprint("K", i)}
	}
	return []harness.BadRequest[createRequest]{
		{Name: "no config", Change: func(r createRequest) { r.Config = nil }, Field: "config"},
		{Name: "no sandbox config", Change: func(r createRequest) { r.SandboxConfig = nil }, Field: "sandbox_config"},
		{Name: "no metadata", Change: func(r createRequest) { r.Config.Metadata = nil }, Field: "metadata"},
		{Name: "no name", Change: func(r createRequest) { r.Config.Metadata.Name = "" }, Field: "metadata.name"},
		{Name: "name is a path", Change: func(r createRequest) { r.Config.Metadata.Name = "../x" }, Field: "metadata.name"},
		{Name: "no image", Change: func(r createRequest) { r.Config.Image = nil }, Field: "image"},
		{Name: "empty image", Change: image(""), Field: "image.image"},
		{Name: "image is no reference", Change: image("BAD REF"), Field: "BAD REF"},
		{Name: "image is not here", Change: image(d.Ref("web:1")), Field: d.Ref("web:1"), Code: codes.NotFound},

		{Name: "no command anywhere", Change: func(r createRequest) {
			r.Config.Image.Image, r.Config.Command, r.Config.Args = d.Pulled("config:none"), nil, nil
		}, Field: "command"},
		{Name: "empty command", Change: func(r createRequest) { r.Config.Command = []string{""} }, Field: "command"},
		{Name: "NUL in command", Change: func(r createRequest) { r.Config.Command = []string{"a\x00b"} }, Field: "command"},
		{Name: "NUL in args", Change: func(r createRequest) { r.Config.Args = []string{"a\x00b"} }, Field: "args"},
		{Name: "3 MiB of args", Change: func(r createRequest) { r.Config.Args = slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 30) }, Field: "args"},
		{Name: "an arg of 1 MiB", Change: func(r createRequest) { r.Config.Args = []string{strings.Repeat("x", 1<<20)} }, Field: "args"},
		{Name: "2 MiB of envs", Change: envs(many...), Field: "envs"},
		{Name: "env without a key", Change: envs(&cri.KeyValue{Value: []byte("x")}), Field: "envs.key"},
		{Name: "equals sign in a key", Change: envs(&cri.KeyValue{Key: "a=b", Value: []byte("x")}), Field: "envs.key"},
		{Name: "NUL in a key", Change: envs(&cri.KeyValue{Key: "a\x00", Value: []byte("x")}), Field: "envs.key"},
		{Name: "NUL in a value", Change: envs(&cri.KeyValue{Key: "a", Value: []byte("x\x00y")}), Field: "envs.value"},
		{Name: "relative working dir", Change: func(r createRequest) { r.Config.WorkingDir = "tmp" }, Field: "working_dir"},
		{Name: "working dir of a descriptor", Change: func(r createRequest) { r.Config.WorkingDir = "/proc/self/fd/7" }, Field: "working_dir"},
		{Name: "stop signal is none", Change: func(r createRequest) { r.Config.StopSignal = 99 }, Field: "stop_signal"},
		{Name: "negative stop signal", Change: func(r createRequest) { r.Config.StopSignal = -1 }, Field: "stop_signal"},
		{Name: "log up", Change: func(r createRequest) { r.Config.LogPath = "../../x.log" }, Field: "log_path"},
		{Name: "log is a folder", Change: func(r createRequest) { r.Config.LogPath = "x/" }, Field: "log_path"},
		{Name: "windows", Change: func(r createRequest) { r.Config.Windows = &cri.WindowsContainerConfig{} }, Field: "windows"},
	}
}

// badPaths is CreateContainer: what of the host a container gets.
func badPaths(d *harness.Daemon) []harness.BadRequest[createRequest] {
	return []harness.BadRequest[createRequest]{
		{Name: "no container path", Change: mounting(&cri.Mount{HostPath: "/tmp"}), Field: "mounts.container_path"},
		{Name: "NUL in container path", Change: mounting(&cri.Mount{ContainerPath: "/a\x00", HostPath: "/tmp"}), Field: "mounts.container_path"},
		{Name: "mount over root", Change: mounting(&cri.Mount{ContainerPath: "/", HostPath: "/tmp"}), Field: "mounts.container_path"},
		{Name: "mount over root in disguise", Change: mounting(&cri.Mount{ContainerPath: "/a/..", HostPath: "/tmp"}), Field: "mounts.container_path"},
		{Name: "mount over proc", Change: mounting(&cri.Mount{ContainerPath: "/proc", HostPath: "/tmp"}), Field: "mounts.container_path"},
		{Name: "mount below proc", Change: mounting(&cri.Mount{ContainerPath: "/proc/self/fd", HostPath: "/tmp"}), Field: "mounts.container_path"},
		{Name: "relative host path", Change: mounting(&cri.Mount{ContainerPath: "/data", HostPath: "tmp"}), Field: "mounts.host_path"},
		{Name: "no host path", Change: mounting(&cri.Mount{ContainerPath: "/data"}), Field: "mounts.host_path"},
		{Name: "host path in a file", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/etc/passwd/folder"}), Field: "mounts.host_path"},
		{Name: "host path where none can be made", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/proc/no-such"}), Field: "mounts.host_path",
			Code: codes.FailedPrecondition},
		{Name: "host path up", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp/../etc"}), Field: "mounts.host_path"},
		{Name: "host path of a descriptor", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/proc/self/root"}), Field: "mounts.host_path"},
		{Name: "host path and image", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", Image: &cri.ImageSpec{Image: d.Pulled(harness.Busybox)}}),
			Field: "mounts.host_path"},
		{Name: "sub path up", Change: mounting(&cri.Mount{ContainerPath: "/d", Image: &cri.ImageSpec{Image: d.Pulled(harness.Busybox)}, ImageSubPath: "a/../.."}),
			Field: "mounts.image_sub_path"},
		{Name: "image to be written", Change: mounting(&cri.Mount{ContainerPath: "/d", Image: &cri.ImageSpec{Image: d.Pulled(harness.Busybox)}}), Field: "mounts.readonly"},
		{Name: "image that is not here", Change: mounting(harness.Volume(d.Ref("web:1"), "", "/d")), Field: "ImageVolumeMountFailed: ", Code: codes.NotFound},
		{Name: "sub path that the image lacks", Change: mounting(harness.Volume(d.Pulled(harness.Busybox), "no/such", "/d")), Field: "ImageVolumeMountFailed: "},
		{Name: "ids of an image", Change: mounting(&cri.Mount{ContainerPath: "/d", Image: &cri.ImageSpec{Image: d.Pulled(harness.Busybox)}, Readonly: true,
			UidMappings: harness.UserMapping(), GidMappings: harness.GroupMapping()}), Field: "mounts.uidMappings"},
		{Name: "propagation is none", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", Propagation: 42}), Field: "mounts.propagation"},
		{Name: "recursive without read-only", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", RecursiveReadOnly: true}),
			Field: "mounts.recursive_read_only"},
		{Name: "empty id range", Change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", UidMappings: []*cri.IDMapping{{}}}), Field: "mounts.uidMappings"},

		{Name: "device is not there", Change: devices("/dev/no-such", "/dev/x", "rw"), Field: "devices.host_path: /dev/no-such"},
		{Name: "device is a file", Change: devices("/etc/passwd", "/dev/x", "rw"), Field: "devices.host_path"},
		{Name: "relative device", Change: devices("null", "/dev/x", "rw"), Field: "devices.host_path"},
		{Name: "relative place of a device", Change: devices("/dev/null", "x", "rw"), Field: "devices.container_path"},
		{Name: "device permissions", Change: devices("/dev/null", "/dev/x", "xyz"), Field: `devices.permissions: "xyz"`},
		{Name: "unknown CDI device", Change: func(r createRequest) { r.Config.CDIDevices = []*cri.CDIDevice{{Name: "vendor.test/kind=none"}} },
			Field: "vendor.test/kind=none are not described by any file in " + d.CDIDirs()[0], Code: codes.FailedPrecondition},
		{Name: "CDI device without a name", Change: func(r createRequest) { r.Config.CDIDevices = []*cri.CDIDevice{{}} }, Field: "CDI_devices.name"},
	}
}

// badSecurity is CreateContainer: who the container is and what it may.
func badSecurity(d *harness.Daemon) []harness.BadRequest[createRequest] {
	return []harness.BadRequest[createRequest]{
		{Name: "user and name", Change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &cri.Int64Value{Value: 1}, "app"
		}), Field: "run_as_username"},
		{Name: "group without user", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 1} }), Field: "run_as_group"},
		{Name: "user name that the image lacks", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-here" }),
			Field: `run_as_username: the image has no user "nobody-here"`},
		{Name: "user of the image that it lacks", Change: func(r createRequest) { r.Config.Image.Image = d.Pulled("config:unknown-user") }, Field: "image user"},
		{Name: "negative user", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -1} }), Field: "run_as_user"},
		{Name: "user beyond 32 bits", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1 << 32} }), Field: "run_as_user"},
		{Name: "negative supplemental group", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{-1} }),
			Field: "supplemental_groups"},
		{Name: "supplemental groups policy is none", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 42 }),
			Field: "supplemental_groups_policy"},
		{Name: "privileged in a pod that is not", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }), Field: "privileged"},
		{Name: "network of the host in a pod without", Change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
		}), Field: "namespace_options.network"},
		{Name: "target without an id", Change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET}
		}), Field: "namespace_options.target_id"},
		{Name: "unknown target", Change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "feedfeedfeed"}
		}), Field: "namespace_options.target_id", Code: codes.NotFound},
		{Name: "relative masked path", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc/kcore"} }), Field: "masked_paths"},
		{Name: "readonly path up", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/proc/../etc"} }), Field: "readonly_paths"},
		{Name: "no seccomp file", Change: security(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = harness.Localhost("/no/such/profile.json") }),
			Field: "seccomp.localhost_ref"},
	}
}

// badResources is CreateContainer: how much of the machine.
func badResources(*harness.Daemon) []harness.BadRequest[createRequest] {
	type limits = *cri.LinuxContainerResources
	unified := func(key, value string) func(createRequest) {
		return resources(func(l limits) { l.Unified = map[string]string{key: value} })
	}
	pages := func(size ...string) func(createRequest) {
		return resources(func(l limits) {
			for _, s := range size {
				l.HugepageLimits = append(l.HugepageLimits, &cri.HugepageLimit{PageSize: s, Limit: 1 << 30})
			}
		})
	}
	return []harness.BadRequest[createRequest]{
		{Name: "negative memory", Change: resources(func(l limits) { l.MemoryLimitInBytes = -2 }), Field: "resources.memory_limit_in_bytes"},
		{Name: "memory of one byte", Change: resources(func(l limits) { l.MemoryLimitInBytes = 1 }), Field: "resources.memory_limit_in_bytes: 1 is too small"},
		{Name: "negative swap", Change: resources(func(l limits) { l.MemorySwapLimitInBytes = -2 }), Field: "resources.memory_swap_limit_in_bytes"},
		{Name: "swap below memory", Change: resources(func(l limits) { l.MemoryLimitInBytes, l.MemorySwapLimitInBytes = 64<<20, 32<<20 }),
			Field: "resources.memory_swap_limit_in_bytes"},
		{Name: "negative shares", Change: resources(func(l limits) { l.CpuShares = -5 }), Field: "resources.cpu_shares"},
		{Name: "negative period", Change: resources(func(l limits) { l.CpuPeriod = -1 }), Field: "resources.cpu_period"},
		{Name: "negative quota", Change: resources(func(l limits) { l.CpuQuota = -2 }), Field: "resources.cpu_quota"},
		{Name: "processor that is not there", Change: resources(func(l limits) { l.CpusetCpus = "9999" }), Field: "resources.cpuset_cpus"},
		{Name: "processors half said", Change: resources(func(l limits) { l.CpusetCpus = "1-" }), Field: "resources.cpuset_cpus"},
		{Name: "memory node that is not there", Change: resources(func(l limits) { l.CpusetMems = "9999" }), Field: "resources.cpuset_mems"},
		{Name: "pages of no size", Change: pages("3MB"), Field: "resources.hugepage_limits"},
		{Name: "page size is a path", Change: pages("../2MB"), Field: "resources.hugepage_limits"},
		{Name: "page size twice", Change: pages("2MB", "2MB"), Field: "resources.hugepage_limits"},
		{Name: "unified key is a path", Change: unified("../memory.max", "1"), Field: "resources.unified"},
		{Name: "unified key with a slash", Change: unified("memory/max", "1"), Field: "resources.unified"},
		{Name: "unified key of two lines", Change: unified("memory.max\nx", "1"), Field: "resources.unified"},
		{Name: "unified value of two lines", Change: unified("memory.max", "1\n2"), Field: "resources.unified"},
		{Name: "unified key of the hierarchy", Change: unified("cgroup.procs", "1"), Field: "resources.unified"},
		{Name: "oom score", Change: resources(func(l limits) { l.OomScoreAdj = 5000 }), Field: "resources.oom_score_adj"},
	}
}

func TestBadContainers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, image := range []string{harness.Busybox, "config:none", "config:unknown-user"} {
		d.Pulled(image)
	}
	tables := []func(*harness.Daemon) []harness.BadRequest[createRequest]{badProcesses, badPaths, badSecurity, badResources}
	var rows []harness.BadRequest[createRequest]
	for _, table := range tables {
		rows = append(rows, table(d)...)
	}
	before := d.Ledger()
	harness.WantRefused(t, rows, func() createRequest {
		return &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: p.ContainerConfig(harness.Idle()), SandboxConfig: proto.CloneOf(p.Config)}
	}, func(r createRequest) (string, error) {
		reply, err := d.Runtime.CreateContainer(context.Background(), r)
		return reply.GetContainerId(), err
	}, func(id string) { (&harness.Container{Pod: p, ID: id}).Remove() })
	d.WantNoContainers()
	d.WantFlat(before)
}

// TestOddContainers: what looks wrong and is not.
func TestOddContainers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	for name, change := range map[string]func(createRequest){
		"nothing about linux":            func(r createRequest) { r.Config.Linux = nil },
		"capabilities in lower case":     capabilities(&cri.Capability{AddCapabilities: []string{"net_bind_service", "cap_chown"}}),
		"all capabilities and no one":    capabilities(&cri.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"ALL"}}),
		"all but one":                    capabilities(&cri.Capability{DropCapabilities: []string{"all"}, AddCapabilities: []string{"CHOWN"}}),
		"a folder of the host's at /sys": mounting(&cri.Mount{ContainerPath: "/sys", HostPath: "/sys", Readonly: true}), // agents for storage and monitoring do
		"an empty value":                 envs(&cri.KeyValue{Key: "EMPTY"}),
		"the same key twice":             envs(&cri.KeyValue{Key: "A", Value: []byte("1")}, &cri.KeyValue{Key: "A", Value: []byte("2")}),
		"pod config of another pod":      func(r createRequest) { r.SandboxConfig = &cri.PodSandboxConfig{} }, // what the pod was made with counts
	} {
		r := &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: p.ContainerConfig(harness.Idle()), SandboxConfig: proto.CloneOf(p.Config)}
		change(r)
		reply, err := d.Runtime.CreateContainer(context.Background(), r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c := &harness.Container{Pod: p, ID: reply.ContainerId, Config: r.Config}
		if err := c.TryStart(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.Remove()
	}
}

// TestWrongStates: a right request in the wrong state.
func TestWrongStates(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	p := d.RunPod()
	made, up, done := p.Create(harness.Idle()), p.Run(harness.Idle()), p.Run(harness.Shell("exit 0"))
	done.WaitExit()
	harness.WantCode(t, up.TryStart(), codes.FailedPrecondition, up.ID)
	harness.WantCode(t, done.TryStart(), codes.FailedPrecondition, done.ID)
	for _, c := range []*harness.Container{made, done} {
		_, err := c.TryExec(10, "true")
		harness.WantCode(t, err, codes.FailedPrecondition, c.ID)
		harness.WantCode(t, c.Reopen(), codes.FailedPrecondition, c.ID)
		c.Stop(10) // nothing to stop is no error
		stats, err := d.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil || stats.Stats.GetAttributes().GetId() != c.ID { // what is still known of it: the disk
			t.Errorf("the figures of a container that does not run: %v, %v", stats, err)
		}
	}
	p.Stop()
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle()))
	harness.WantCode(t, err, codes.FailedPrecondition, p.ID)
	harness.WantCode(t, made.TryStart(), codes.FailedPrecondition, p.ID)
}

func TestBadStops(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle())
	for _, grace := range []int64{-1, math.MinInt64} {
		_, err := d.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: grace})
		harness.WantCode(t, err, codes.InvalidArgument, "timeout")
	}
	if state := c.Status().State; state != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a stop that was refused leaves a container that is %s", state)
	}
	c.Must(c.Kill())
	for _, grace := range []int64{1 << 62, math.MaxInt64} { // for ever
		_, err := d.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: grace})
		d.Must(err)
	}
	running := c.Pod.Run(harness.Idle())
	for range 2 { // a running one too, and one that is gone
		running.Remove()
	}
}

func TestBadExecs(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle())
	before := d.Ledger()
	type request = *cri.ExecSyncRequest
	harness.WantRefused(t, []harness.BadRequest[request]{
		{Name: "no command", Change: func(r request) { r.Cmd = nil }, Field: "cmd"},
		{Name: "empty command", Change: func(r request) { r.Cmd = []string{""} }, Field: "cmd"},
		{Name: "NUL in the command", Change: func(r request) { r.Cmd = []string{"echo", "a\x00b"} }, Field: "cmd"},
		{Name: "3 MiB of command", Change: func(r request) { r.Cmd = slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 30) }, Field: "cmd"},
		{Name: "negative timeout", Change: func(r request) { r.Timeout = -1 }, Field: "timeout"},
		{Name: "most negative timeout", Change: func(r request) { r.Timeout = math.MinInt64 }, Field: "timeout"},
		// By this code a kubelet knows a probe that timed out.
		{Name: "timeout is reached", Change: func(r request) { r.Cmd, r.Timeout = []string{"sleep", "1d"}, 1 }, Field: "timed out", Code: codes.DeadlineExceeded},
	}, func() request { return &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}} },
		func(r request) (*cri.ExecSyncResponse, error) { return d.Runtime.ExecSync(context.Background(), r) }, func(*cri.ExecSyncResponse) {})
	for _, row := range []struct {
		cmd  string
		code int32
	}{{"/no/such/program", 127}, {"no-such-program", 127}, {"/etc/passwd", 126}} {
		r, err := c.TryExec(10, row.cmd)
		if err != nil || r.Code != row.code || !strings.Contains(r.Stderr, row.cmd) {
			t.Errorf("%s: want exit code %d that is explained, got: %+v, %v", row.cmd, row.code, r, err)
		}
	}
	if r, err := c.TryExec(math.MaxInt64, "true"); err != nil || r.Code != 0 {
		t.Errorf("a timeout beyond all bounds is none: %+v, %v", r, err)
	}
	d.WantFlat(before)
}

// TestReopenWithoutAFolder: whoever rotates logs took the folder away. Neither it nor a file is made.
func TestReopenWithoutAFolder(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	c := p.Run(harness.Idle())
	folder := p.Config.LogDirectory
	d.Must(os.Rename(folder, folder+".away"))
	harness.WantCode(t, c.Reopen(), codes.Internal, folder)
	if found, err := filepath.Glob(folder + "*"); err != nil || len(found) != 1 {
		t.Errorf("after a reopen that failed there are %v (%v)", found, err)
	}
	d.Must(os.Rename(folder+".away", folder))
	d.Must(c.Reopen())
}
