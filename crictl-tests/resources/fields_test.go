package resources

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// What docs/cri.md says of single fields, where no other test looks at them.

// TestPodStatusMatchesRequest: list and status say what was asked, and a container's status is the same in its pod's.
func TestPodStatusMatchesRequest(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	config := d.PodConfig(func(c *cri.PodSandboxConfig) {
		c.Metadata.Attempt, c.Labels, c.Annotations = 3, harness.Awkward, harness.Awkward
	})
	r, err := d.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "runc"})
	d.Must(err)
	p := &harness.Pod{Daemon: d, ID: r.PodSandboxId, Config: config}
	c := p.Run(harness.Idle())

	began := time.Now().UnixNano()
	quiet, err := d.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	d.Must(err)
	s := quiet.Status
	if !proto.Equal(s.Metadata, config.Metadata) || s.RuntimeHandler != "runc" {
		t.Errorf("status: metadata %v, handler %q", s.Metadata, s.RuntimeHandler)
	}
	if quiet.Timestamp < began || quiet.Timestamp > time.Now().UnixNano() || len(quiet.Info) > 0 {
		t.Errorf("status: timestamp %d, info %v", quiet.Timestamp, quiet.Info)
	}
	if n := len(quiet.ContainersStatuses); n != 1 || !proto.Equal(quiet.ContainersStatuses[0], c.Status()) {
		t.Errorf("the pod's status has %d containers: %v, want %v", n, quiet.ContainersStatuses, c.Status())
	}
	list, err := d.Runtime.ListPodSandbox(ctx, nil)
	d.Must(err)
	want := &cri.PodSandbox{Id: p.ID, Metadata: config.Metadata, State: s.State, CreatedAt: s.CreatedAt, Labels: harness.Awkward, Annotations: harness.Awkward, RuntimeHandler: "runc"}
	if len(list.Items) != 1 || !proto.Equal(list.Items[0], want) {
		t.Errorf("listed: %v, want %v", list.Items, want)
	}
	verbose, err := d.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	d.Must(err)
	var info struct {
		Pid         int
		Netns       string
		RuntimeSpec struct {
			Linux struct{ Namespaces []map[string]string }
		}
	}
	if d.Must(json.Unmarshal([]byte(verbose.Info["info"]), &info)); info.Pid != d.ProcessesOf(p.ID)[0].Pid {
		t.Errorf("info %s, want the pid of pause, %d", verbose.Info["info"], d.ProcessesOf(p.ID)[0].Pid)
	}
	// Multus' dynamic networks and every recipe for crictl inspectp look for the network namespace here.
	if !slices.ContainsFunc(info.RuntimeSpec.Linux.Namespaces, func(n map[string]string) bool {
		return n["type"] == "network" && n["path"] != "" && n["path"] == info.Netns
	}) {
		t.Errorf("runtimeSpec.linux.namespaces is %v, the network namespace %q", info.RuntimeSpec.Linux.Namespaces, info.Netns)
	}
}

// TestContainerStatusMatchesRequest: list and status say what was asked, and what came of it.
func TestContainerStatusMatchesRequest(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	p := d.RunPod()
	c := p.Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Metadata.Attempt, c.Labels, c.Annotations = 2, harness.Awkward, harness.Awkward
		c.Image = &cri.ImageSpec{Image: d.Pulled(harness.Busybox), UserSpecifiedImage: "box:newest", Annotations: harness.Awkward, RuntimeHandler: "runc", ImageRef: "as@asked"}
		c.Mounts = []*cri.Mount{{ContainerPath: "/logs", HostPath: d.Logs(), Readonly: true, MountOptions: []string{"noexec"}}}
		c.Linux.Resources.CpuShares, c.StopSignal = 99, cri.Signal_SIGNAL_SIGRTMINPLUS3
		c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.SupplementalGroups = &cri.Int64Value{Value: 1000}, []int64{77}
	}))
	quiet, err := d.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
	d.Must(err)
	s, asked := quiet.Status, c.Config
	image := proto.CloneOf(asked.Image)
	image.Image = d.Ref(harness.Busybox) // as people call it
	want := &cri.ContainerStatus{
		Id: c.ID, Metadata: asked.Metadata, State: cri.ContainerState_CONTAINER_RUNNING, CreatedAt: s.CreatedAt, StartedAt: s.StartedAt,
		Image: image, ImageRef: s.ImageRef, ImageId: d.Pulled(harness.Busybox), Labels: harness.Awkward, Annotations: harness.Awkward, Mounts: asked.Mounts, LogPath: c.LogPath(),
		Resources: &cri.ContainerResources{Linux: asked.Linux.Resources}, StopSignal: asked.StopSignal,
		User: &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: 1000, Gid: 1000, SupplementalGroups: []int64{1000, 900, 77}}},
	}
	if !proto.Equal(s, want) || len(quiet.Info) > 0 {
		t.Errorf("status\n%v\nwant\n%v\ninfo %v", s, want, quiet.Info)
	}
	list, err := d.Runtime.ListContainers(ctx, nil)
	d.Must(err)
	item := &cri.Container{Id: c.ID, PodSandboxId: p.ID, Metadata: asked.Metadata, Image: asked.Image, ImageRef: s.ImageRef, ImageId: s.ImageId,
		State: s.State, CreatedAt: s.CreatedAt, Labels: harness.Awkward, Annotations: harness.Awkward}
	if len(list.Containers) != 1 || !proto.Equal(list.Containers[0], item) {
		t.Errorf("listed\n%v\nwant\n%v", list.Containers, item)
	}
	verbose, err := d.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	d.Must(err)
	var info struct {
		Pid         int
		RuntimeSpec struct{ Process struct{ Args []string } }
	}
	if d.Must(json.Unmarshal([]byte(verbose.Info["info"]), &info)); info.Pid != c.PID() || !slices.Equal(info.RuntimeSpec.Process.Args, []string{"sleep", "1d"}) {
		t.Errorf("info %s, want pid %d", verbose.Info["info"], c.PID())
	}
}

// TestImageStatusMatchesRequest: list and status are the same, and the user is a number or a name as the image has it.
func TestImageStatusMatchesRequest(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	for name, user := range map[string]*cri.Image{
		"config:uid-gid": {Uid: &cri.Int64Value{Value: 1000}}, "config:name-group": {Username: "app"}, "config:cmd": {},
	} {
		id := d.Pulled(name)
		i := d.ImageStatus(id)
		if !proto.Equal(i.Uid, user.Uid) || i.Username != user.Username || i.Spec.GetImage() != id || i.Size == 0 || i.Pinned {
			t.Errorf("%s: %v, want user %v", name, i, user)
		}
		if !slices.ContainsFunc(d.ListImages(), func(one *cri.Image) bool { return proto.Equal(one, i) }) {
			t.Errorf("%s: not listed as its status has it: %v", name, i)
		}
	}
	r, err := d.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: d.Ref("config:cmd")}, Verbose: true})
	d.Must(err)
	var info struct {
		ImageSpec struct{ Config struct{ Cmd []string } }
	}
	if d.Must(json.Unmarshal([]byte(r.Info["info"]), &info)); !slices.Equal(info.ImageSpec.Config.Cmd, []string{"/toolbox", "wait"}) {
		t.Errorf("info %s", r.Info["info"])
	}
}

// TestPullIsForEveryHandler: an image that was pulled for one handler is everybody's, whatever else a request says.
func TestPullIsForEveryHandler(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	r, err := d.Images.PullImage(context.Background(), &cri.PullImageRequest{SandboxConfig: d.PodConfig(),
		Image: &cri.ImageSpec{Image: d.Ref(harness.Busybox), RuntimeHandler: "runc", Annotations: harness.Awkward, UserSpecifiedImage: "box"}})
	d.Must(err)
	if i := d.ImageStatus(d.Ref(harness.Busybox)); r.ImageRef != d.IDOf(harness.Busybox) || i.GetId() != r.ImageRef || len(i.Spec.Annotations) > 0 || i.Spec.RuntimeHandler != "" {
		t.Errorf("pulled %s: %v", r.ImageRef, i)
	}
}

// TestHostPorts: one port of the host leads where its address and protocol say.
func TestHostPorts(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	port := int32(harness.FreePort(t))
	gateway := netip.MustParsePrefix(d.Subnet).Addr().Next().String()
	p := d.RunPod(func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{
			{HostPort: port, ContainerPort: 8081, HostIp: harness.HostAddress(t)},
			{HostPort: port, ContainerPort: 8082, HostIp: gateway},
			{HostPort: port, ContainerPort: 8083, Protocol: cri.Protocol_UDP},
		}
	})
	for _, row := range []string{"8081 one", "8082 two"} {
		port, name, _ := strings.Cut(row, " ")
		p.Run(d.Tool("serve", "-addr", ":"+port, "-name", name))
	}
	p.Run(d.Tool("echo-udp", ":8083"))
	for address, want := range map[string]string{harness.HostAddress(t): "one", gateway: "two"} {
		harness.Eventually(t, "the port of "+address, func() error {
			got, err := harness.HTTPGet(fmt.Sprintf("http://%s:%d/", address, port))
			if err == nil {
				err = harness.Unless(strings.TrimSpace(got) == want, "it leads to %q", got)
			}
			return err
		})
	}
	conn, err := net.Dial("udp", net.JoinHostPort(harness.HostAddress(t), fmt.Sprint(port)))
	d.Must(err)
	defer conn.Close()
	harness.Eventually(t, "an echo by UDP", func() error {
		buf := make([]byte, 16)
		d.Must(conn.SetDeadline(time.Now().Add(time.Second)))
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err == nil {
			err = harness.Unless(strings.HasPrefix(string(buf[:n]), "hello"), "it says %q", buf[:n])
		}
		return err
	})
}

// TestHostnameVariable: HOSTNAME is what the container sees as its host's name.
func TestHostnameVariable(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	for _, row := range []struct {
		option harness.PodOption
		want   string
	}{
		{func(c *cri.PodSandboxConfig) { c.Hostname = "box" }, "box"},
		{func(c *cri.PodSandboxConfig) { c.Hostname = "" }, harness.Hostname(t)},
		{harness.OnHostNetwork, harness.Hostname(t)},
	} {
		c := d.RunPod(row.option).Run(harness.Idle())
		for _, how := range [][]string{{"sh", "-c", "env | sed -n s/^HOSTNAME=//p"}, {"hostname"}, {"cat", "/etc/hostname"}} {
			if r := c.MayFail(how...); r.Stdout != row.want+"\n" {
				t.Errorf("%v says %q, want %s", how, r.Stdout, row.want)
			}
		}
	}
}

// TestDevices: a device of the host under another name, to be read only.
func TestDevices(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/other", Permissions: "r"}}
	}))
	c.Exec("sh", "-c", ": < /dev/other")
	if r := c.MayFail("sh", "-c", ": > /dev/other"); r.Code == 0 || !strings.Contains(r.Stderr, "not permitted") {
		t.Errorf("opened to be written: %+v", r)
	}
}

// TestTarget: a debugger sees the processes of the container that it was made for, which must be of its pod and run.
func TestTarget(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	target, other, far := p.Run(harness.Running("sleep", "54321")), p.Run(harness.Running("sleep", "98765")), d.RunPod().Run(harness.Idle())
	at := func(id string) harness.ContainerOption {
		return harness.With(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: id}
		})
	}
	if got := p.Run(harness.Idle(), at(target.ID)).Exec("ps"); !strings.Contains(got, "54321") || strings.Contains(got, "98765") {
		t.Errorf("the debugger sees\n%s", got)
	}
	_, err := p.TryCreate(p.ContainerConfig(harness.Idle(), at(far.ID)))
	harness.WantCode(t, err, codes.InvalidArgument, "target_id")
	other.Stop(0)
	_, err = p.TryCreate(p.ContainerConfig(harness.Idle(), at(other.ID)))
	harness.WantCode(t, err, codes.FailedPrecondition, "target_id")
}

// TestTwoAddresses: the first is the pod's, the others are additional.
func TestTwoAddresses(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.WithOwnNetwork())
	d.WriteNetworkOf("pair", fmt.Sprintf(`[{"subnet": %q}], [{"subnet": "fd00:cb:%s::/64"}]`, d.Subnet, d.Instance()[:4]))
	d.WantCondition(cri.NetworkReady, true)
	n := d.RunPod().Status().Network
	first, err := netip.ParseAddr(n.Ip)
	if err != nil || !netip.MustParsePrefix(d.Subnet).Contains(first) || len(n.AdditionalIps) != 1 || !strings.HasPrefix(n.AdditionalIps[0].Ip, "fd00:cb:") {
		t.Errorf("network %v (%v)", n, err)
	}
}

// TestNoCheckpoints: whoever asks is told why, and what to do.
func TestNoCheckpoints(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle())
	before := d.Ledger()
	_, err := d.Runtime.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: c.ID, Location: d.Dir + "/c.tar"})
	harness.WantCode(t, err, codes.Unimplemented, "does not support checkpoint", "volume")
	_, err = d.Runtime.CheckpointPod(ctx, &cri.CheckpointPodRequest{PodSandboxId: c.Pod.ID, OutputPath: d.Dir, ContainerIds: []string{c.ID}})
	harness.WantCode(t, err, codes.Unimplemented, "does not support checkpoint", "volume")
	_, err = d.Runtime.RestorePod(ctx, &cri.RestorePodRequest{CheckpointPath: d.Dir, Config: d.PodConfig()})
	harness.WantCode(t, err, codes.Unimplemented, "does not support checkpoint", "volume")
	c.Exec("true")
	d.WantFlat(before)
}

// TestUpdateAnnotations: they change nothing, and the log says so.
func TestUpdateAnnotations(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod(harness.OnHostNetwork).Run(harness.Idle())
	before := c.Status()
	_, err := d.Runtime.UpdateContainerResources(context.Background(), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Annotations: harness.Awkward})
	d.Must(err)
	if s := c.Status(); !proto.Equal(s, before) {
		t.Errorf("status %v, before %v", s, before)
	}
	if log, err := os.ReadFile(d.LogFile()); err != nil || !strings.Contains(string(log), "annotations of an update") {
		t.Errorf("the log does not tell (%v)", err)
	}
}
