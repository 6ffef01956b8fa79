package crictltests

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
)

// What docs/cri.md says of single fields, where no other test looks at them.

// TestPodIsToldBack: list and status say what was asked, and a container's status is the same in its pod's.
func TestPodIsToldBack(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	config := d.podConfig(func(c *cri.PodSandboxConfig) { c.Metadata.Attempt, c.Labels, c.Annotations = 3, awkward, awkward })
	r, err := d.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "runc"})
	d.must(err)
	p := &pod{daemon: d, id: r.PodSandboxId, config: config}
	c := p.run(idle())

	began := time.Now().UnixNano()
	quiet, err := d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	d.must(err)
	s := quiet.Status
	if !proto.Equal(s.Metadata, config.Metadata) || s.RuntimeHandler != "runc" {
		t.Errorf("status: metadata %v, handler %q", s.Metadata, s.RuntimeHandler)
	}
	if quiet.Timestamp < began || quiet.Timestamp > time.Now().UnixNano() || len(quiet.Info) > 0 {
		t.Errorf("status: timestamp %d, info %v", quiet.Timestamp, quiet.Info)
	}
	if n := len(quiet.ContainersStatuses); n != 1 || !proto.Equal(quiet.ContainersStatuses[0], c.status()) {
		t.Errorf("the pod's status has %d containers: %v, want %v", n, quiet.ContainersStatuses, c.status())
	}
	list, err := d.runtime.ListPodSandbox(ctx, nil)
	d.must(err)
	want := &cri.PodSandbox{Id: p.id, Metadata: config.Metadata, State: s.State, CreatedAt: s.CreatedAt, Labels: awkward, Annotations: awkward, RuntimeHandler: "runc"}
	if len(list.Items) != 1 || !proto.Equal(list.Items[0], want) {
		t.Errorf("listed: %v, want %v", list.Items, want)
	}
	verbose, err := d.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	d.must(err)
	var info struct {
		Pid         int
		Netns       string
		RuntimeSpec struct {
			Linux struct{ Namespaces []map[string]string }
		}
	}
	if d.must(json.Unmarshal([]byte(verbose.Info["info"]), &info)); info.Pid != d.processesOf(p.id)[0].Pid {
		t.Errorf("info %s, want the pid of pause, %d", verbose.Info["info"], d.processesOf(p.id)[0].Pid)
	}
	// Multus' dynamic networks and every recipe for crictl inspectp look for the network namespace here.
	if !slices.ContainsFunc(info.RuntimeSpec.Linux.Namespaces, func(n map[string]string) bool {
		return n["type"] == "network" && n["path"] != "" && n["path"] == info.Netns
	}) {
		t.Errorf("runtimeSpec.linux.namespaces is %v, the network namespace %q", info.RuntimeSpec.Linux.Namespaces, info.Netns)
	}
}

// TestContainerIsToldBack: list and status say what was asked, and what came of it.
func TestContainerIsToldBack(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	p := d.runPod()
	c := p.run(idle(), with(func(c *cri.ContainerConfig) {
		c.Metadata.Attempt, c.Labels, c.Annotations = 2, awkward, awkward
		c.Image = &cri.ImageSpec{Image: d.pulled(busybox), UserSpecifiedImage: "box:newest", Annotations: awkward, RuntimeHandler: "runc", ImageRef: "as@asked"}
		c.Mounts = []*cri.Mount{{ContainerPath: "/logs", HostPath: d.logs(), Readonly: true, MountOptions: []string{"noexec"}}}
		c.Linux.Resources.CpuShares, c.StopSignal = 99, cri.Signal_SIGNAL_SIGRTMINPLUS3
		c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.SupplementalGroups = &cri.Int64Value{Value: 1000}, []int64{77}
	}))
	quiet, err := d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
	d.must(err)
	s, asked := quiet.Status, c.config
	image := proto.CloneOf(asked.Image)
	image.Image = d.ref(busybox) // as people call it
	want := &cri.ContainerStatus{
		Id: c.id, Metadata: asked.Metadata, State: cri.ContainerState_CONTAINER_RUNNING, CreatedAt: s.CreatedAt, StartedAt: s.StartedAt,
		Image: image, ImageRef: s.ImageRef, ImageId: d.pulled(busybox), Labels: awkward, Annotations: awkward, Mounts: asked.Mounts, LogPath: c.logPath(),
		Resources: &cri.ContainerResources{Linux: asked.Linux.Resources}, StopSignal: asked.StopSignal,
		User: &cri.ContainerUser{Linux: &cri.LinuxContainerUser{Uid: 1000, Gid: 1000, SupplementalGroups: []int64{1000, 900, 77}}},
	}
	if !proto.Equal(s, want) || len(quiet.Info) > 0 {
		t.Errorf("status\n%v\nwant\n%v\ninfo %v", s, want, quiet.Info)
	}
	list, err := d.runtime.ListContainers(ctx, nil)
	d.must(err)
	item := &cri.Container{Id: c.id, PodSandboxId: p.id, Metadata: asked.Metadata, Image: asked.Image, ImageRef: s.ImageRef, ImageId: s.ImageId,
		State: s.State, CreatedAt: s.CreatedAt, Labels: awkward, Annotations: awkward}
	if len(list.Containers) != 1 || !proto.Equal(list.Containers[0], item) {
		t.Errorf("listed\n%v\nwant\n%v", list.Containers, item)
	}
	verbose, err := d.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	d.must(err)
	var info struct {
		Pid         int
		RuntimeSpec struct{ Process struct{ Args []string } }
	}
	if d.must(json.Unmarshal([]byte(verbose.Info["info"]), &info)); info.Pid != c.pid() || !slices.Equal(info.RuntimeSpec.Process.Args, []string{"sleep", "1d"}) {
		t.Errorf("info %s, want pid %d", verbose.Info["info"], c.pid())
	}
}

// TestImageIsToldBack: list and status are the same, and the user is a number or a name as the image has it.
func TestImageIsToldBack(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	for name, user := range map[string]*cri.Image{
		"config:uid-gid": {Uid: &cri.Int64Value{Value: 1000}}, "config:name-group": {Username: "app"}, "config:cmd": {},
	} {
		id := d.pulled(name)
		i := d.imageStatus(id)
		if !proto.Equal(i.Uid, user.Uid) || i.Username != user.Username || i.Spec.GetImage() != id || i.Size == 0 || i.Pinned {
			t.Errorf("%s: %v, want user %v", name, i, user)
		}
		if !slices.ContainsFunc(d.listImages(), func(one *cri.Image) bool { return proto.Equal(one, i) }) {
			t.Errorf("%s: not listed as its status has it: %v", name, i)
		}
	}
	r, err := d.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: d.ref("config:cmd")}, Verbose: true})
	d.must(err)
	var info struct {
		ImageSpec struct{ Config struct{ Cmd []string } }
	}
	if d.must(json.Unmarshal([]byte(r.Info["info"]), &info)); !slices.Equal(info.ImageSpec.Config.Cmd, []string{"/toolbox", "wait"}) {
		t.Errorf("info %s", r.Info["info"])
	}
}

// TestPullIsForEveryHandler: an image that was pulled for one handler is everybody's, whatever else a request says.
func TestPullIsForEveryHandler(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	r, err := d.images.PullImage(context.Background(), &cri.PullImageRequest{SandboxConfig: d.podConfig(),
		Image: &cri.ImageSpec{Image: d.ref(busybox), RuntimeHandler: "runc", Annotations: awkward, UserSpecifiedImage: "box"}})
	d.must(err)
	if i := d.imageStatus(d.ref(busybox)); r.ImageRef != d.idOf(busybox) || i.GetId() != r.ImageRef || len(i.Spec.Annotations) > 0 || i.Spec.RuntimeHandler != "" {
		t.Errorf("pulled %s: %v", r.ImageRef, i)
	}
}

// TestHostPorts: one port of the host leads where its address and protocol say.
func TestHostPorts(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	port := int32(freePort(t))
	gateway := netip.MustParsePrefix(d.subnet).Addr().Next().String()
	p := d.runPod(func(c *cri.PodSandboxConfig) {
		c.PortMappings = []*cri.PortMapping{
			{HostPort: port, ContainerPort: 8081, HostIp: hostAddress(t)},
			{HostPort: port, ContainerPort: 8082, HostIp: gateway},
			{HostPort: port, ContainerPort: 8083, Protocol: cri.Protocol_UDP},
		}
	})
	for _, row := range []string{"8081 one", "8082 two"} {
		port, name, _ := strings.Cut(row, " ")
		p.run(d.tool("serve", "-addr", ":"+port, "-name", name))
	}
	p.run(d.tool("echo-udp", ":8083"))
	for address, want := range map[string]string{hostAddress(t): "one", gateway: "two"} {
		eventually(t, "the port of "+address, func() error {
			got, err := get(fmt.Sprintf("http://%s:%d/", address, port))
			if err == nil {
				err = unless(strings.TrimSpace(got) == want, "it leads to %q", got)
			}
			return err
		})
	}
	conn, err := net.Dial("udp", net.JoinHostPort(hostAddress(t), fmt.Sprint(port)))
	d.must(err)
	defer conn.Close()
	eventually(t, "an echo by UDP", func() error {
		buf := make([]byte, 16)
		d.must(conn.SetDeadline(time.Now().Add(time.Second)))
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err == nil {
			err = unless(strings.HasPrefix(string(buf[:n]), "hello"), "it says %q", buf[:n])
		}
		return err
	})
}

// TestHostnameVariable: HOSTNAME is what the container sees as its host's name.
func TestHostnameVariable(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for _, row := range []struct {
		option podOption
		want   string
	}{
		{func(c *cri.PodSandboxConfig) { c.Hostname = "box" }, "box"},
		{func(c *cri.PodSandboxConfig) { c.Hostname = "" }, hostname(t)},
		{onHostNetwork, hostname(t)},
	} {
		c := d.runPod(row.option).run(idle())
		for _, how := range [][]string{{"sh", "-c", "env | sed -n s/^HOSTNAME=//p"}, {"hostname"}, {"cat", "/etc/hostname"}} {
			if r := c.mayFail(how...); r.stdout != row.want+"\n" {
				t.Errorf("%v says %q, want %s", how, r.stdout, row.want)
			}
		}
	}
}

// TestDevices: a device of the host under another name, to be read only.
func TestDevices(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle(), with(func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/other", Permissions: "r"}}
	}))
	c.exec("sh", "-c", ": < /dev/other")
	if r := c.mayFail("sh", "-c", ": > /dev/other"); r.code == 0 || !strings.Contains(r.stderr, "not permitted") {
		t.Errorf("opened to be written: %+v", r)
	}
}

// TestTarget: a debugger sees the processes of the container that it was made for, which must be of its pod and run.
func TestTarget(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	target, other, far := p.run(running("sleep", "54321")), p.run(running("sleep", "98765")), d.runPod().run(idle())
	at := func(id string) containerOption {
		return with(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: id}
		})
	}
	if got := p.run(idle(), at(target.id)).exec("ps"); !strings.Contains(got, "54321") || strings.Contains(got, "98765") {
		t.Errorf("the debugger sees\n%s", got)
	}
	_, err := p.tryCreate(p.containerConfig(idle(), at(far.id)))
	wantCode(t, err, codes.InvalidArgument, "target_id")
	other.stop(0)
	_, err = p.tryCreate(p.containerConfig(idle(), at(other.id)))
	wantCode(t, err, codes.FailedPrecondition, "target_id")
}

// TestTwoAddresses: the first is the pod's, the others are additional.
func TestTwoAddresses(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, withOwnNetwork())
	d.writeNetworkOf("pair", fmt.Sprintf(`[{"subnet": %q}], [{"subnet": "fd00:cb:%s::/64"}]`, d.subnet, d.instance()[:4]))
	d.wantCondition(cri.NetworkReady, true)
	n := d.runPod().status().Network
	first, err := netip.ParseAddr(n.Ip)
	if err != nil || !netip.MustParsePrefix(d.subnet).Contains(first) || len(n.AdditionalIps) != 1 || !strings.HasPrefix(n.AdditionalIps[0].Ip, "fd00:cb:") {
		t.Errorf("network %v (%v)", n, err)
	}
}

// TestNoCheckpoints: whoever asks is told why, and what to do.
func TestNoCheckpoints(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	ctx := context.Background()
	c := d.runPod(onHostNetwork).run(idle())
	before := d.ledger()
	_, err := d.runtime.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: c.id, Location: d.dir + "/c.tar"})
	wantCode(t, err, codes.Unimplemented, "no checkpoints", "volume")
	_, err = d.runtime.CheckpointPod(ctx, &cri.CheckpointPodRequest{PodSandboxId: c.pod.id, OutputPath: d.dir, ContainerIds: []string{c.id}})
	wantCode(t, err, codes.Unimplemented, "no checkpoints", "volume")
	_, err = d.runtime.RestorePod(ctx, &cri.RestorePodRequest{CheckpointPath: d.dir, Config: d.podConfig()})
	wantCode(t, err, codes.Unimplemented, "no checkpoints", "volume")
	c.exec("true")
	d.wantFlat(before)
}

// TestUpdateAnnotations: they change nothing, and the log says so.
func TestUpdateAnnotations(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod(onHostNetwork).run(idle())
	before := c.status()
	_, err := d.runtime.UpdateContainerResources(context.Background(), &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Annotations: awkward})
	d.must(err)
	if s := c.status(); !proto.Equal(s, before) {
		t.Errorf("status %v, before %v", s, before)
	}
	if log, err := os.ReadFile(d.logFile()); err != nil || !strings.Contains(string(log), "annotations of an update mean nothing") {
		t.Errorf("the log does not tell (%v)", err)
	}
}
