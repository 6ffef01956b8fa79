package crictltests

import (
	"context"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// badIDs are no id of anything. None may become a path.
var badIDs = map[string]string{
	"unknown": "feedfeedfeed", "upper case": "FEEDFEEDFEED", "path": "../../etc/passwd", "slash": "/", "NUL": "a\x00b",
	"10 KiB": strings.Repeat("a", 10<<10), "dot": ".",
}

// byID is every request that names a pod, a container or nothing else, and what an unknown id gets.
func (d *daemon) byID() map[string]struct {
	ask  func(id string) error
	want codes.Code
} {
	ctx := context.Background()
	type row = struct {
		ask  func(id string) error
		want codes.Code
	}
	return map[string]row{
		"StopPodSandbox": {func(id string) error {
			_, err := d.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		}, codes.OK},
		"RemovePodSandbox": {func(id string) error {
			_, err := d.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		}, codes.OK},
		"PodSandboxStatus": {func(id string) error {
			_, err := d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		}, codes.NotFound},
		"StartContainer": {func(id string) error {
			_, err := d.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		}, codes.NotFound},
		"StopContainer": {func(id string) error {
			_, err := d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		}, codes.OK},
		"RemoveContainer": {func(id string) error {
			_, err := d.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		}, codes.OK},
		"ContainerStatus": {func(id string) error {
			_, err := d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
			return err
		}, codes.NotFound},
		"ContainerStats": {func(id string) error {
			_, err := d.runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
			return err
		}, codes.NotFound},
		"ReopenContainerLog": {func(id string) error {
			_, err := d.runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
			return err
		}, codes.NotFound},
		"ExecSync": {func(id string) error {
			_, err := d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		}, codes.NotFound},
		"CreateContainer": {func(id string) error {
			c := &pod{daemon: d, config: d.podConfig()}
			_, err := d.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: c.containerConfig(idle()), SandboxConfig: c.config})
			return err
		}, codes.NotFound},
	}
}

func TestUnknownIDs(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.pulled(busybox)
	before := d.ledger()
	for request, row := range d.byID() {
		for kind, id := range badIDs {
			if err := row.ask(id); kind == "unknown" {
				if err != nil || row.want != codes.OK {
					wantCode(t, err, row.want, id)
				}
			} else if !hasCode(err, row.want, codes.InvalidArgument, codes.OK) || err != nil && len(err.Error()) > 1000 {
				t.Errorf("%s with an id of kind %q: %.300v", request, kind, err)
			}
		}
		wantCode(t, row.ask(""), codes.InvalidArgument)
	}
	d.wantFlat(before)
}

func hasCode(err error, any ...codes.Code) bool {
	for _, c := range any {
		if statusCode(err) == c {
			return true
		}
	}
	return false
}

func TestAmbiguousID(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
	var ids []string
	for range 17 { // of seventeen hexadecimal ids two begin alike
		ids = append(ids, p.create(idle()).id)
	}
	for i, a := range ids {
		for _, b := range ids[i+1:] {
			if a[0] == b[0] {
				_, err := d.runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: a[:1]})
				wantCode(t, err, codes.InvalidArgument)
				r, err := d.runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: a[:20]})
				d.must(err)
				if r.Status.Id != a {
					t.Errorf("%s stands for %s", a[:20], r.Status.Id)
				}
				return
			}
		}
	}
}

func TestBadPods(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	before := d.ledger()
	long := strings.Repeat("n", 300)
	for name, row := range map[string]struct {
		change func(*cri.RunPodSandboxRequest)
		word   string
	}{
		"no config":         {func(r *cri.RunPodSandboxRequest) { r.Config = nil }, "config"},
		"no metadata":       {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata = nil }, "metadata"},
		"no name":           {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Name = "" }, "name"},
		"no namespace":      {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Namespace = "" }, "namespace"},
		"no uid":            {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Uid = "" }, "uid"},
		"long name":         {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Name = long }, "name"},
		"name is a path":    {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Name = "../x" }, "name"},
		"uid is a path":     {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Uid = "a/b" }, "uid"},
		"NUL in name":       {func(r *cri.RunPodSandboxRequest) { r.Config.Metadata.Name = "a\x00b" }, "name"},
		"unknown handler":   {func(r *cri.RunPodSandboxRequest) { r.RuntimeHandler = "no-such-handler" }, "no-such-handler"},
		"port too large":    {ports(&cri.PortMapping{HostPort: 65536, ContainerPort: 80}), "port"},
		"negative port":     {ports(&cri.PortMapping{HostPort: -1, ContainerPort: 80}), "port"},
		"no container port": {ports(&cri.PortMapping{HostPort: 80}), "port"},
		"host port twice":   {ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80}, &cri.PortMapping{HostPort: 80, ContainerPort: 81}), "port"},
		"bad host ip":       {ports(&cri.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "not-an-ip"}), "not-an-ip"},
		"cgroup parent up":  {func(r *cri.RunPodSandboxRequest) { r.Config.Linux.CgroupParent = "/a/../../b" }, "cgroup"},
		"sysctl":            {sysctl("nonsense.key", "1"), "nonsense.key"},
		"sysctl is a path":  {sysctl("net/../../kernel.panic", "1"), "sysctl"},
		"host sysctl":       {sysctl("vm.swappiness", "1"), "vm.swappiness"},
		"dns newline":       {dns(&cri.DNSConfig{Servers: []string{"192.0.2.1\nnameserver 192.0.2.2"}}), "dns"},
		"thousand servers":  {dns(&cri.DNSConfig{Servers: slicesRepeat("192.0.2.1", 1000)}), "dns"},
		"hostname":          {func(r *cri.RunPodSandboxRequest) { r.Config.Hostname = "a\nb" }, "hostname"},
		"relative logs":     {func(r *cri.RunPodSandboxRequest) { r.Config.LogDirectory = "logs" }, "log"},
		"no seccomp file": {func(r *cri.RunPodSandboxRequest) {
			r.Config.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json"}
		}, "seccomp"},
	} {
		r := &cri.RunPodSandboxRequest{Config: d.podConfig()}
		row.change(r)
		_, err := d.runtime.RunPodSandbox(context.Background(), r)
		if statusCode(err) != codes.InvalidArgument || !strings.Contains(strings.ToLower(err.Error()), row.word) {
			t.Errorf("%s: want InvalidArgument that names %q, got: %v", name, row.word, err)
		}
	}
	if left := d.listed(); len(left) > 0 {
		t.Errorf("refused pods are listed: %v", left)
	}
	d.wantFlat(before)
}

func ports(p ...*cri.PortMapping) func(*cri.RunPodSandboxRequest) {
	return func(r *cri.RunPodSandboxRequest) { r.Config.PortMappings = p }
}

func sysctl(key, value string) func(*cri.RunPodSandboxRequest) {
	return func(r *cri.RunPodSandboxRequest) { r.Config.Linux.Sysctls = map[string]string{key: value} }
}

func dns(c *cri.DNSConfig) func(*cri.RunPodSandboxRequest) {
	return func(r *cri.RunPodSandboxRequest) { r.Config.DnsConfig = c }
}

func slicesRepeat(s string, n int) []string {
	var out []string
	for range n {
		out = append(out, s)
	}
	return out
}

func TestBadContainers(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	d.pulled(busybox)
	before := d.ledger()
	type request = cri.CreateContainerRequest
	mount := func(m ...*cri.Mount) func(*request) { return func(r *request) { r.Config.Mounts = m } }
	security := func(change func(*cri.LinuxContainerSecurityContext)) func(*request) {
		return func(r *request) { change(r.Config.Linux.SecurityContext) }
	}
	resources := func(change func(*cri.LinuxContainerResources)) func(*request) {
		return func(r *request) { change(r.Config.Linux.Resources) }
	}
	for name, row := range map[string]struct {
		change func(*request)
		word   string
	}{
		"no config":          {func(r *request) { r.Config = nil }, "config"},
		"no sandbox config":  {func(r *request) { r.SandboxConfig = nil }, "sandbox_config"},
		"no metadata":        {func(r *request) { r.Config.Metadata = nil }, "metadata"},
		"no name":            {func(r *request) { r.Config.Metadata.Name = "" }, "name"},
		"no image":           {func(r *request) { r.Config.Image = nil }, "image"},
		"empty image":        {func(r *request) { r.Config.Image.Image = "" }, "image"},
		"env without a key":  {func(r *request) { r.Config.Envs = []*cri.KeyValue{{Key: "", Value: []byte("x")}} }, "env"},
		"equals in a key":    {func(r *request) { r.Config.Envs = []*cri.KeyValue{{Key: "a=b", Value: []byte("x")}} }, "env"},
		"NUL in env":         {func(r *request) { r.Config.Envs = []*cri.KeyValue{{Key: "a", Value: []byte("x\x00y")}} }, "env"},
		"NUL in args":        {func(r *request) { r.Config.Args = []string{"a\x00b"} }, "arg"},
		"too much to exec":   {func(r *request) { r.Config.Args = slicesRepeat(strings.Repeat("x", 100<<10), 30) }, "arg"},
		"relative mount":     {mount(&cri.Mount{ContainerPath: "data", HostPath: "/tmp"}), "mount"},
		"relative host path": {mount(&cri.Mount{ContainerPath: "/data", HostPath: "tmp"}), "mount"},
		"no host path":       {mount(&cri.Mount{ContainerPath: "/d", HostPath: "/no/such/folder"}), "host_path"},
		"no container path":  {mount(&cri.Mount{HostPath: "/tmp"}), "mount"},
		"mount twice":        {mount(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp"}, &cri.Mount{ContainerPath: "/d", HostPath: "/usr"}), "mount"},
		"mount over root":    {mount(&cri.Mount{ContainerPath: "/", HostPath: "/tmp"}), "mount"},
		"mount over proc":    {mount(&cri.Mount{ContainerPath: "/proc", HostPath: "/tmp"}), "mount"},
		"path and image":     {mount(&cri.Mount{ContainerPath: "/d", HostPath: "/tmp", Image: &cri.ImageSpec{Image: d.pulled(busybox)}}), "mount"},
		"user and name": {security(func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &cri.Int64Value{Value: 1}, "app"
		}), "run_as"},
		"group without user": {security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsGroup = &cri.Int64Value{Value: 1} }), "run_as_group"},
		"unknown user name":  {security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-here" }), "nobody-here"},
		"negative user":      {security(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: -1} }), "run_as_user"},
		"unknown capability": {security(func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{AddCapabilities: []string{"FLY"}}
		}), "fly"},
		"no device": {func(r *request) {
			r.Config.Devices = []*cri.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "rw"}}
		}, "/dev/no-such"},
		"device permissions": {func(r *request) {
			r.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "xyz"}}
		}, "xyz"},
		"absolute log":         {func(r *request) { r.Config.LogPath = "/etc/cribox.log" }, "log_path"},
		"log path up":          {func(r *request) { r.Config.LogPath = "../../x.log" }, "log_path"},
		"negative memory":      {resources(func(l *cri.LinuxContainerResources) { l.MemoryLimitInBytes = -2 }), "memory"},
		"negative shares":      {resources(func(l *cri.LinuxContainerResources) { l.CpuShares = -5 }), "shares"},
		"no such cpu":          {resources(func(l *cri.LinuxContainerResources) { l.CpusetCpus = "9999" }), "cpuset"},
		"cpuset nonsense":      {resources(func(l *cri.LinuxContainerResources) { l.CpusetCpus = "1-" }), "cpuset"},
		"unified path":         {resources(func(l *cri.LinuxContainerResources) { l.Unified = map[string]string{"../memory.max": "1"} }), "unified"},
		"oom score":            {resources(func(l *cri.LinuxContainerResources) { l.OomScoreAdj = 5000 }), "oom_score_adj"},
		"stop signal":          {func(r *request) { r.Config.StopSignal = 99 }, "stop_signal"},
		"relative working dir": {func(r *request) { r.Config.WorkingDir = "tmp" }, "working_dir"},
	} {
		r := &cri.CreateContainerRequest{PodSandboxId: p.id, Config: p.containerConfig(idle()), SandboxConfig: proto.CloneOf(p.config)}
		row.change(r)
		reply, err := d.runtime.CreateContainer(context.Background(), r)
		if statusCode(err) != codes.InvalidArgument || !strings.Contains(strings.ToLower(err.Error()), row.word) {
			t.Errorf("%s: want InvalidArgument that names %q, got: %.300v", name, row.word, err)
		}
		if err == nil {
			(&container{pod: p, id: reply.ContainerId}).remove()
		}
	}

	missing := p.containerConfig(idle())
	missing.Image.Image = d.ref("web:1")
	_, err := p.tryCreate(missing)
	wantCode(t, err, codes.NotFound, d.ref("web:1"))

	r, err := d.runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.must(err)
	if len(r.Containers) > 0 {
		t.Errorf("refused containers are listed: %v", r.Containers)
	}
	d.wantFlat(before)
}

func TestNoCommandAnywhere(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
	_, err := p.tryCreate(p.containerConfig(with(func(c *cri.ContainerConfig) { c.Image.Image = d.pulled("config:none") })))
	wantCode(t, err, codes.InvalidArgument, "command")
}

// TestWrongMoments: a right request in the wrong state.
func TestWrongMoments(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	made, up, done := p.create(idle()), p.run(idle()), p.run(shell("exit 0"))
	done.waitExit()
	wantCode(t, up.tryStart(), codes.FailedPrecondition, up.id)
	wantCode(t, done.tryStart(), codes.FailedPrecondition, done.id)
	for _, c := range []*container{made, done} {
		_, err := c.tryExec(10, "true")
		wantCode(t, err, codes.FailedPrecondition, c.id)
		wantCode(t, c.reopen(), codes.FailedPrecondition, c.id)
	}
	made.stop(10) // nothing to stop is no error
	done.stop(10)
	_, err := d.runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: up.id, Timeout: -1})
	wantCode(t, err, codes.InvalidArgument, "timeout")
	_, err = up.tryExec(10)
	wantCode(t, err, codes.InvalidArgument, "cmd")
	_, err = up.tryExec(-1, "true")
	wantCode(t, err, codes.InvalidArgument, "timeout")
	up.must(up.kill())
	_, err = d.runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: up.id, Timeout: math.MaxInt64 / 2})
	d.must(err)

	p.stop()
	_, err = p.tryCreate(p.containerConfig(idle()))
	wantCode(t, err, codes.FailedPrecondition, p.id)
}

func TestBadImageRequests(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	_, err := d.images.PullImage(ctx, &cri.PullImageRequest{})
	wantCode(t, err, codes.InvalidArgument, "image")
	_, err = d.images.ImageStatus(ctx, &cri.ImageStatusRequest{})
	wantCode(t, err, codes.InvalidArgument, "image")
	_, err = d.images.RemoveImage(ctx, &cri.RemoveImageRequest{})
	wantCode(t, err, codes.InvalidArgument, "image")
	_, err = d.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "BAD REF"}})
	wantCode(t, err, codes.InvalidArgument, "BAD REF")
	_, err = d.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "docker.io/library/never-pulled:1"}})
	d.must(err)
	_, err = d.tryPull(d.ref(busybox), &cri.AuthConfig{Username: "a\nb", Password: "c"})
	wantCode(t, err, codes.InvalidArgument, "username")
}

// TestNothingButNil: every request with nothing in it gets an answer, and the daemon lives.
func TestNothingButNil(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, service := range []struct {
		name    string
		methods []string
	}{
		{"runtime.v1.RuntimeService", methodsOf(cri.RuntimeService_ServiceDesc.Methods)},
		{"runtime.v1.ImageService", methodsOf(cri.ImageService_ServiceDesc.Methods)},
	} {
		for _, m := range service.methods {
			err := d.conn.Invoke(context.Background(), "/"+service.name+"/"+m, &emptypb.Empty{}, &emptypb.Empty{})
			if hasCode(err, codes.Unknown, codes.Internal, codes.Unavailable, codes.DeadlineExceeded) {
				t.Errorf("%s with an empty request: %v", m, err)
			}
		}
	}
	if d.process.ended() != nil {
		t.Fatal("the daemon died")
	}
}
