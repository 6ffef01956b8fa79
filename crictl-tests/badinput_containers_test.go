package crictltests

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
func badProcesses(d *daemon) []bad[createRequest] {
	image := func(name string) func(createRequest) { return func(r createRequest) { r.Config.Image.Image = name } }
	many := make([]*cri.KeyValue, 150_000)
	for i := range many {
		many[i] = &cri.KeyValue{Key: fmt.Sprint("K", i)}
	}
	return []bad[createRequest]{
		{name: "no config", change: func(r createRequest) { r.Config = nil }, field: "config"},
		{name: "no sandbox config", change: func(r createRequest) { r.SandboxConfig = nil }, field: "sandbox_config"},
		{name: "no metadata", change: func(r createRequest) { r.Config.Metadata = nil }, field: "metadata"},
		{name: "no name", change: func(r createRequest) { r.Config.Metadata.Name = "" }, field: "metadata.name"},
		{name: "name is a path", change: func(r createRequest) { r.Config.Metadata.Name = "../x" }, field: "metadata.name"},
		{name: "no image", change: func(r createRequest) { r.Config.Image = nil }, field: "image"},
		{name: "empty image", change: image(""), field: "image.image"},
		{name: "image is no reference", change: image("BAD REF"), field: "BAD REF"},
		{name: "image is not here", change: image(d.ref("web:1")), field: d.ref("web:1"), code: codes.NotFound},

		{name: "no command anywhere", change: func(r createRequest) {
			r.Config.Image.Image, r.Config.Command, r.Config.Args = d.pulled("config:none"), nil, nil
		}, field: "command"},
		{name: "empty command", change: func(r createRequest) { r.Config.Command = []string{""} }, field: "command"},
		{name: "NUL in command", change: func(r createRequest) { r.Config.Command = []string{"a\x00b"} }, field: "command"},
		{name: "NUL in args", change: func(r createRequest) { r.Config.Args = []string{"a\x00b"} }, field: "args"},
		{name: "3 MiB of args", change: func(r createRequest) { r.Config.Args = slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 30) }, field: "args"},
		{name: "an arg of 1 MiB", change: func(r createRequest) { r.Config.Args = []string{strings.Repeat("x", 1<<20)} }, field: "args"},
		{name: "2 MiB of envs", change: envs(many...), field: "envs"},
		{name: "env without a key", change: envs(&cri.KeyValue{Value: []byte("x")}), field: "envs.key"},
		{name: "equals sign in a key", change: envs(&cri.KeyValue{Key: "a=b", Value: []byte("x")}), field: "envs.key"},
		{name: "NUL in a key", change: envs(&cri.KeyValue{Key: "a\x00", Value: []byte("x")}), field: "envs.key"},
		{name: "NUL in a value", change: envs(&cri.KeyValue{Key: "a", Value: []byte("x\x00y")}), field: "envs.value"},
		{name: "relative working dir", change: func(r createRequest) { r.Config.WorkingDir = "tmp" }, field: "working_dir"},
		{name: "working dir of a descriptor", change: func(r createRequest) { r.Config.WorkingDir = "/proc/self/fd/7" }, field: "working_dir"},
		{name: "stop signal is none", change: func(r createRequest) { r.Config.StopSignal = 99 }, field: "stop_signal"},
		{name: "negative stop signal", change: func(r createRequest) { r.Config.StopSignal = -1 }, field: "stop_signal"},
		{name: "log up", change: func(r createRequest) { r.Config.LogPath = "../../x.log" }, field: "log_path"},
		{name: "log is a folder", change: func(r createRequest) { r.Config.LogPath = "x/" }, field: "log_path"},
		{name: "windows", change: func(r createRequest) { r.Config.Windows = &cri.WindowsContainerConfig{} }, field: "windows"},
	}
}

// badPaths is CreateContainer: what of the host a container gets.
func badPaths(d *daemon) []bad[createRequest] {
	return []bad[createRequest]{
		{name: "no container path", change: mounting(&cri.Mount{HostPath: "/tmp"}), field: "mounts.container_path"},
		{name: "NUL in container path", change: mounting(&cri.Mount{ContainerPath: "/a\x00", HostPath: "/tmp"}), field: "mounts.container_path"},
		{name: "mount over root", change: mounting(&cri.Mount{ContainerPath: "/", HostPath: "/tmp"}), field: "mounts.container_path"},
		{name: "mount over root in disguise", change: mounting(&cri.Mount{ContainerPath: "/a/..", HostPath: "/tmp"}), field: "mounts.container_path"},
		{name: "mount over proc", change: mounting(&cri.Mount{ContainerPath: "/proc", HostPath: "/tmp"}), field: "mounts.container_path"},
		{name: "mount below proc", change: mounting(&cri.Mount{ContainerPath: "/proc/self/fd", HostPath: "/tmp"}), field: "mounts.container_path"},
		{name: "relative host path", change: mounting(&cri.Mount{ContainerPath: "/data", HostPath: "tmp"}), field: "mounts.host_path"},
		{name: "no host path", change: mounting(&cri.Mount{ContainerPath: "/data"}), field: "mounts.host_path"},
		{name: "host path in a file", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/etc/passwd/folder"}), field: "mounts.host_path"},
		{name: "host path where none can be made", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/proc/no-such"}), field: "mounts.host_path",
			code: codes.FailedPrecondition},
		{name: "host path up", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp/../etc"}), field: "mounts.host_path"},
		{name: "host path of a descriptor", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/proc/self/root"}), field: "mounts.host_path"},
		{name: "host path and image", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", Image: &cri.ImageSpec{Image: d.pulled(busybox)}}),
			field: "mounts.host_path"},
		{name: "sub path up", change: mounting(&cri.Mount{ContainerPath: "/d", Image: &cri.ImageSpec{Image: d.pulled(busybox)}, ImageSubPath: "a/../.."}),
			field: "mounts.image_sub_path"},
		{name: "image to be written", change: mounting(&cri.Mount{ContainerPath: "/d", Image: &cri.ImageSpec{Image: d.pulled(busybox)}}), field: "mounts.readonly"},
		{name: "image that is not here", change: mounting(volume(d.ref("web:1"), "", "/d")), field: "ImageVolumeMountFailed: ", code: codes.NotFound},
		{name: "sub path that the image lacks", change: mounting(volume(d.pulled(busybox), "no/such", "/d")), field: "ImageVolumeMountFailed: "},
		{name: "ids of an image", change: mounting(&cri.Mount{ContainerPath: "/d", Image: &cri.ImageSpec{Image: d.pulled(busybox)}, Readonly: true,
			UidMappings: userMapping(), GidMappings: groupMapping()}), field: "mounts.uidMappings"},
		{name: "propagation is none", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", Propagation: 42}), field: "mounts.propagation"},
		{name: "recursive without read-only", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", RecursiveReadOnly: true}),
			field: "mounts.recursive_read_only"},
		{name: "empty id range", change: mounting(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", UidMappings: []*cri.IDMapping{{}}}), field: "mounts.uidMappings"},

		{name: "device is not there", change: devices("/dev/no-such", "/dev/x", "rw"), field: "devices.host_path: /dev/no-such"},
		{name: "device is a file", change: devices("/etc/passwd", "/dev/x", "rw"), field: "devices.host_path"},
		{name: "relative device", change: devices("null", "/dev/x", "rw"), field: "devices.host_path"},
		{name: "relative place of a device", change: devices("/dev/null", "x", "rw"), field: "devices.container_path"},
		{name: "device permissions", change: devices("/dev/null", "/dev/x", "xyz"), field: `devices.permissions: "xyz"`},
		{name: "unknown CDI device", change: func(r createRequest) { r.Config.CDIDevices = []*cri.CDIDevice{{Name: "vendor.test/kind=none"}} },
			field: "vendor.test/kind=none are described by no file in " + d.cdiDirs()[0], code: codes.FailedPrecondition},
		{name: "CDI device without a name", change: func(r createRequest) { r.Config.CDIDevices = []*cri.CDIDevice{{}} }, field: "CDI_devices.name"},
	}
}

// badSecurity is CreateContainer: who the container is and what it may.
func badSecurity(d *daemon) []bad[createRequest] {
	return []bad[createRequest]{
		{name: "user and name", change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &cri.Int64Value{Value: 1}, "app"
		}), field: "run_as_username"},
		{name: "group without user", change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 1} }), field: "run_as_group"},
		{name: "user name that the image lacks", change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-here" }),
			field: `run_as_username: the image has no user "nobody-here"`},
		{name: "user of the image that it lacks", change: func(r createRequest) { r.Config.Image.Image = d.pulled("config:unknown-user") }, field: "image user"},
		{name: "negative user", change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -1} }), field: "run_as_user"},
		{name: "user beyond 32 bits", change: security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1 << 32} }), field: "run_as_user"},
		{name: "negative supplemental group", change: security(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{-1} }),
			field: "supplemental_groups"},
		{name: "supplemental groups policy is none", change: security(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 42 }),
			field: "supplemental_groups_policy"},
		{name: "privileged in a pod that is not", change: security(func(s *cri.LinuxContainerSecurityContext) { s.Privileged = true }), field: "privileged"},
		{name: "network of the host in a pod without", change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
		}), field: "namespace_options.network"},
		{name: "target without an id", change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET}
		}), field: "namespace_options.target_id"},
		{name: "unknown target", change: security(func(s *cri.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "feedfeedfeed"}
		}), field: "namespace_options.target_id", code: codes.NotFound},
		{name: "relative masked path", change: security(func(s *cri.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc/kcore"} }), field: "masked_paths"},
		{name: "readonly path up", change: security(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/proc/../etc"} }), field: "readonly_paths"},
		{name: "no seccomp file", change: security(func(s *cri.LinuxContainerSecurityContext) { s.Seccomp = localhost("/no/such/profile.json") }),
			field: "seccomp.localhost_ref"},
	}
}

// badResources is CreateContainer: how much of the machine.
func badResources(*daemon) []bad[createRequest] {
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
	return []bad[createRequest]{
		{name: "negative memory", change: resources(func(l limits) { l.MemoryLimitInBytes = -2 }), field: "resources.memory_limit_in_bytes"},
		{name: "memory of one byte", change: resources(func(l limits) { l.MemoryLimitInBytes = 1 }), field: "resources.memory_limit_in_bytes: 1 is too small"},
		{name: "negative swap", change: resources(func(l limits) { l.MemorySwapLimitInBytes = -2 }), field: "resources.memory_swap_limit_in_bytes"},
		{name: "swap below memory", change: resources(func(l limits) { l.MemoryLimitInBytes, l.MemorySwapLimitInBytes = 64<<20, 32<<20 }),
			field: "resources.memory_swap_limit_in_bytes"},
		{name: "negative shares", change: resources(func(l limits) { l.CpuShares = -5 }), field: "resources.cpu_shares"},
		{name: "negative period", change: resources(func(l limits) { l.CpuPeriod = -1 }), field: "resources.cpu_period"},
		{name: "negative quota", change: resources(func(l limits) { l.CpuQuota = -2 }), field: "resources.cpu_quota"},
		{name: "processor that is not there", change: resources(func(l limits) { l.CpusetCpus = "9999" }), field: "resources.cpuset_cpus"},
		{name: "processors half said", change: resources(func(l limits) { l.CpusetCpus = "1-" }), field: "resources.cpuset_cpus"},
		{name: "memory node that is not there", change: resources(func(l limits) { l.CpusetMems = "9999" }), field: "resources.cpuset_mems"},
		{name: "pages of no size", change: pages("3MB"), field: "resources.hugepage_limits"},
		{name: "page size is a path", change: pages("../2MB"), field: "resources.hugepage_limits"},
		{name: "page size twice", change: pages("2MB", "2MB"), field: "resources.hugepage_limits"},
		{name: "unified key is a path", change: unified("../memory.max", "1"), field: "resources.unified"},
		{name: "unified key with a slash", change: unified("memory/max", "1"), field: "resources.unified"},
		{name: "unified key of two lines", change: unified("memory.max\nx", "1"), field: "resources.unified"},
		{name: "unified value of two lines", change: unified("memory.max", "1\n2"), field: "resources.unified"},
		{name: "unified key of the hierarchy", change: unified("cgroup.procs", "1"), field: "resources.unified"},
		{name: "oom score", change: resources(func(l limits) { l.OomScoreAdj = 5000 }), field: "resources.oom_score_adj"},
	}
}

func TestBadContainers(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	for _, image := range []string{busybox, "config:none", "config:unknown-user"} {
		d.pulled(image)
	}
	tables := []func(*daemon) []bad[createRequest]{badProcesses, badPaths, badSecurity, badResources}
	var rows []bad[createRequest]
	for _, table := range tables {
		rows = append(rows, table(d)...)
	}
	before := d.ledger()
	wantRefused(t, rows, func() createRequest {
		return &cri.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(idle()), SandboxConfig: proto.CloneOf(p.config)}
	}, func(r createRequest) (string, error) {
		reply, err := d.runtime.CreateContainer(context.Background(), r)
		return reply.GetContainerId(), err
	}, func(id string) { (&container{pod: p, id: id}).remove() })
	d.wantNoContainers()
	d.wantFlat(before)
}

func (d *daemon) wantNoContainers() {
	d.Helper()
	r, err := d.runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.must(err)
	if len(r.Containers) > 0 {
		d.Errorf("refused containers are listed: %v", r.Containers)
	}
}

// TestOddContainers: what looks wrong and is not.
func TestOddContainers(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
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
		r := &cri.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(idle()), SandboxConfig: proto.CloneOf(p.config)}
		change(r)
		reply, err := d.runtime.CreateContainer(context.Background(), r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c := &container{pod: p, id: reply.ContainerId, config: r.Config}
		if err := c.tryStart(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.remove()
	}
}

// TestWrongMoments: a right request in the wrong state.
func TestWrongMoments(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	p := d.runPod()
	made, up, done := p.create(idle()), p.run(idle()), p.run(shell("exit 0"))
	done.waitExit()
	wantCode(t, up.tryStart(), codes.FailedPrecondition, up.id)
	wantCode(t, done.tryStart(), codes.FailedPrecondition, done.id)
	for _, c := range []*container{made, done} {
		_, err := c.tryExec(10, "true")
		wantCode(t, err, codes.FailedPrecondition, c.id)
		wantCode(t, c.reopen(), codes.FailedPrecondition, c.id)
		c.stop(10) // nothing to stop is no error
		stats, err := d.runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.id})
		if err != nil || stats.Stats.GetAttributes().GetId() != c.id { // what is still known of it: the disk
			t.Errorf("the figures of a container that does not run: %v, %v", stats, err)
		}
	}
	p.stop()
	_, err := p.tryCreate(p.containerConfig(idle()))
	wantCode(t, err, codes.FailedPrecondition, p.id)
	wantCode(t, made.tryStart(), codes.FailedPrecondition, p.id)
}

func TestBadStops(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	c := d.runPod(onHostNetwork).run(idle())
	for _, grace := range []int64{-1, math.MinInt64} {
		_, err := d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id, Timeout: grace})
		wantCode(t, err, codes.InvalidArgument, "timeout")
	}
	if state := c.status().State; state != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a stop that was refused leaves a container that is %s", state)
	}
	c.must(c.kill())
	for _, grace := range []int64{1 << 62, math.MaxInt64} { // for ever
		_, err := d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id, Timeout: grace})
		d.must(err)
	}
	running := c.pod.run(idle())
	for range 2 { // a running one too, and one that is gone
		running.remove()
	}
}

func TestBadExecs(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod(onHostNetwork).run(idle())
	before := d.ledger()
	type request = *cri.ExecSyncRequest
	wantRefused(t, []bad[request]{
		{name: "no command", change: func(r request) { r.Cmd = nil }, field: "cmd"},
		{name: "empty command", change: func(r request) { r.Cmd = []string{""} }, field: "cmd"},
		{name: "NUL in the command", change: func(r request) { r.Cmd = []string{"echo", "a\x00b"} }, field: "cmd"},
		{name: "3 MiB of command", change: func(r request) { r.Cmd = slices.Repeat([]string{strings.Repeat("x", 100<<10)}, 30) }, field: "cmd"},
		{name: "negative timeout", change: func(r request) { r.Timeout = -1 }, field: "timeout"},
		{name: "most negative timeout", change: func(r request) { r.Timeout = math.MinInt64 }, field: "timeout"},
		// By this code a kubelet knows a probe that timed out.
		{name: "timeout is reached", change: func(r request) { r.Cmd, r.Timeout = []string{"sleep", "1d"}, 1 }, field: "timed out", code: codes.DeadlineExceeded},
	}, func() request { return &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}} },
		func(r request) (*cri.ExecSyncResponse, error) { return d.runtime.ExecSync(context.Background(), r) }, func(*cri.ExecSyncResponse) {})
	for _, row := range []struct {
		cmd  string
		code int32
	}{{"/no/such/program", 127}, {"no-such-program", 127}, {"/etc/passwd", 126}} {
		r, err := c.tryExec(10, row.cmd)
		if err != nil || r.code != row.code || !strings.Contains(r.stderr, row.cmd) {
			t.Errorf("%s: want exit code %d that is explained, got: %+v, %v", row.cmd, row.code, r, err)
		}
	}
	if r, err := c.tryExec(math.MaxInt64, "true"); err != nil || r.code != 0 {
		t.Errorf("a timeout beyond all bounds is none: %+v, %v", r, err)
	}
	d.wantFlat(before)
}

// TestReopenWithoutAFolder: whoever rotates logs took the folder away. Neither it nor a file is made.
func TestReopenWithoutAFolder(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
	c := p.run(idle())
	folder := p.config.LogDirectory
	d.must(os.Rename(folder, folder+".away"))
	wantCode(t, c.reopen(), codes.Internal, folder)
	if found, err := filepath.Glob(folder + "*"); err != nil || len(found) != 1 {
		t.Errorf("after a reopen that failed there are %v (%v)", found, err)
	}
	d.must(os.Rename(folder+".away", folder))
	d.must(c.reopen())
}
