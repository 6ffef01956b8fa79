package badinput

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// What every client gets for what it should not have asked. Requests of one kind are in one file, badinput_*_test.go; here is what concerns
// them all. A row of a table changes one thing in a request that is right, and says which field the answer must name.

// notYet are the requests that cribox does not serve. Whoever makes one of them takes it away here, and writes the rows of its bad input.
var notYet = []string{
	"CheckpointContainer", "CheckpointPod", "RestorePod", // not in version 1
}

// theirs are requests with a test of their own, TestBadStreams.
var theirs = []string{"Exec", "Attach", "PortForward"}

// badIDs are no id of anything. None may become a path.
var badIDs = map[string]string{
	"unknown": "feedfeedfeed", "upper case": "FEEDFEEDFEED", "path": "../../etc/passwd", "slash": "/", "NUL": "a\x00b",
	"10 KiB": strings.Repeat("a", 10<<10), "dot": ".", "blank": " ", "newline": "feed\n",
}

// requestByID is a request that names a pod or a container, what it gets for an unknown id, and the id's field.
type requestByID struct {
	ask   func(id string) error
	code  codes.Code
	field string
}

const podID, containerID = "pod_sandbox_id", "container_id"

func byID(d *harness.Daemon) map[string]requestByID {
	ctx := context.Background()
	return map[string]requestByID{
		"StopPodSandbox": {func(id string) error {
			_, err := d.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		}, codes.OK, podID},
		"RemovePodSandbox": {func(id string) error {
			_, err := d.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		}, codes.OK, podID},
		"PodSandboxStatus": {func(id string) error {
			_, err := d.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		}, codes.NotFound, podID},
		"StartContainer": {func(id string) error {
			_, err := d.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		}, codes.NotFound, containerID},
		"StopContainer": {func(id string) error {
			_, err := d.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		}, codes.OK, containerID},
		"RemoveContainer": {func(id string) error {
			_, err := d.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		}, codes.OK, containerID},
		"ContainerStatus": {func(id string) error {
			_, err := d.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
			return err
		}, codes.NotFound, containerID},
		"ContainerStats": {func(id string) error {
			_, err := d.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
			return err
		}, codes.NotFound, containerID},
		"PodSandboxStats": {func(id string) error {
			_, err := d.Runtime.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id})
			return err
		}, codes.NotFound, podID},
		"ReopenContainerLog": {func(id string) error {
			_, err := d.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
			return err
		}, codes.NotFound, containerID},
		"UpdateContainerResources": {func(id string) error {
			_, err := d.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 2}})
			return err
		}, codes.NotFound, containerID},
		"UpdatePodSandboxResources": {func(id string) error {
			_, err := d.Runtime.UpdatePodSandboxResources(ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Resources: &cri.LinuxContainerResources{CpuShares: 2}})
			return err
		}, codes.NotFound, podID},
		"ExecSync": {func(id string) error {
			_, err := d.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		}, codes.NotFound, containerID},
		"CreateContainer": {func(id string) error {
			c := &harness.Pod{Daemon: d, Config: d.PodConfig()}
			_, err := d.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: c.ContainerConfig(harness.Idle()), SandboxConfig: c.Config})
			return err
		}, codes.NotFound, podID},
	}
}

func TestUnknownIDs(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Pulled(harness.Busybox)
	before := d.Ledger()
	wantBadIDs(d, byID(d))
	d.WantFlat(before)
}

func wantBadIDs(d *harness.Daemon, requests map[string]requestByID) {
	d.Helper()
	for request, row := range requests {
		for kind, id := range badIDs {
			err := row.ask(id)
			if status.Code(err) != row.code || len(status.Convert(err).Message()) > 1000 {
				d.Errorf("%s with an id of kind %q: want %s, got: %.300v", request, kind, row.code, err)
			}
			if kind == "unknown" && row.code != codes.OK {
				harness.WantCode(d, err, row.code, id)
			}
		}
		if err := row.ask(""); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), row.field) {
			d.Errorf("%s with an empty id: want InvalidArgument that names %s, got: %v", request, row.field, err)
		}
	}
}

func TestAmbiguousID(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	var ids []string
	for range 17 { // of seventeen hexadecimal ids two begin alike
		ids = append(ids, p.Create(harness.Idle()).ID)
	}
	for i, a := range ids {
		for _, b := range ids[i+1:] {
			if a[0] == b[0] {
				_, err := d.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: a[:1]})
				harness.WantCode(t, err, codes.InvalidArgument, containerID)
				r, err := d.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: a[:20]})
				d.Must(err)
				if r.Status.Id != a {
					t.Errorf("%s stands for %s", a[:20], r.Status.Id)
				}
				return
			}
		}
	}
}

// TestBadFilters: a filter that fits nothing, whatever is wrong with it, gives an empty list.
func TestBadFilters(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	d.RunPod(harness.OnHostNetwork).Run(harness.Idle())
	for _, id := range badIDs {
		pods, err := d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: id}})
		d.Must(err)
		byPod, err := d.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: id}})
		d.Must(err)
		byID, err := d.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: id}})
		d.Must(err)
		stats, err := d.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{Id: id}})
		d.Must(err)
		podStats, err := d.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: id}})
		d.Must(err)
		if n := len(pods.Items) + len(byPod.Containers) + len(byID.Containers) + len(stats.Stats) + len(podStats.Stats); n > 0 {
			t.Errorf("the filter %.30q fits %d", id, n)
		}
	}
	for _, labels := range []map[string]string{{"": ""}, {"a b/c/d": "x"}, {"app\x00": "y"}, {strings.Repeat("k", 10<<10): ""}} {
		pods, err := d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: labels}})
		d.Must(err)
		containers, err := d.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: labels}})
		d.Must(err)
		if len(pods.Items)+len(containers.Containers) > 0 {
			t.Errorf("the label selector %.40v fits something", labels)
		}
	}
	none, err := d.Images.ListImages(ctx, &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: "docker.io/library/never-pulled:1"}}})
	d.Must(err)
	if len(none.Images) > 0 {
		t.Errorf("images under a name that was never pulled: %v", none.Images)
	}
}

func TestBadRuntimeRequests(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	ctx := context.Background()
	for _, v := range []string{"", "v1", "0.1.0", "no version\n"} {
		_, err := d.Runtime.Version(ctx, &cri.VersionRequest{Version: v})
		d.Must(err)
	}
	for _, cidr := range []string{"10.0.0.0", "10.0.0.0/99", "10.0.0.0/16\n10.1.0.0/16", "fd00::/64,fd01::/64", "no-cidr"} {
		_, err := d.Runtime.UpdateRuntimeConfig(ctx, &cri.UpdateRuntimeConfigRequest{
			RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}}})
		harness.WantCode(t, err, codes.InvalidArgument, "pod_cidr")
	}
}

// eachMethod calls every request of both services with what the function makes of an empty message, and hands on the answer.
func eachMethod(d *harness.Daemon, fill func(protoreflect.Message), answer func(method string, err error)) {
	d.Helper()
	for _, name := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		d.Must(err)
		service, ok := found.(protoreflect.ServiceDescriptor)
		if !ok {
			d.Fatalf("%s is no service", name)
		}
		for i := range service.Methods().Len() {
			m := service.Methods().Get(i)
			kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
			d.Must(err)
			request := kind.New()
			fill(request)
			answer(string(m.Name()), call(d, m, request.Interface()))
		}
	}
}

// call asks a method by its name and throws the reply away; of a stream it waits for the first message, or for the header where there may be
// none for long.
func call(d *harness.Daemon, m protoreflect.MethodDescriptor, request proto.Message) error {
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience)
	defer cancel()
	if !m.IsStreamingServer() {
		return d.Conn.Invoke(ctx, path, request, &emptypb.Empty{})
	}
	stream, err := d.Conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if header, err := stream.Header(); err != nil || len(header) > 0 && m.Name() == "GetContainerEvents" {
		return err
	}
	err = stream.RecvMsg(&emptypb.Empty{})
	if errors.Is(err, io.EOF) { // of nothing
		return nil
	}
	return err
}

// TestNothingInside: every request with messages of nothing in it, to every depth, gets an answer, and the daemon lives.
func TestNothingInside(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	before := d.Ledger()
	for depth := range 6 {
		eachMethod(d, func(m protoreflect.Message) { hollow(m, depth) }, func(method string, err error) {
			switch status.Code(err) {
			case codes.OK, codes.InvalidArgument, codes.NotFound, codes.Unimplemented:
			default:
				t.Errorf("%s with %d levels of nothing: %v", method, depth, err)
			}
		})
	}
	if d.Process.Ended() != nil {
		t.Fatal("the daemon died")
	}
	d.WantFlat(before)
}

// hollow puts an empty message into every field of m that takes one, and into those again, down to the depth.
func hollow(m protoreflect.Message, depth int) {
	if depth == 0 {
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
		case f.IsList() && f.Message() != nil:
			hollow(m.Mutable(f).List().AppendMutable().Message(), depth-1)
		case f.Message() != nil:
			hollow(m.Mutable(f).Message(), depth-1)
		}
	}
}

// TestUnimplemented: a request that is not served says so, and only those do.
func TestUnimplemented(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	seen := map[string]bool{}
	eachMethod(d, func(protoreflect.Message) {}, func(method string, err error) {
		seen[method] = true
		refused, listed := status.Code(err) == codes.Unimplemented, slices.Contains(notYet, method)
		if !slices.Contains(theirs, method) && refused != listed {
			t.Errorf("%s is listed as not served: %t; it answers: %v", method, listed, err)
		}
	})
	for _, method := range notYet {
		if !seen[method] {
			t.Errorf("%s is no request of the CRI", method)
		}
	}
}

// TestUnknownFields: what a newer kubelet says beside what is known is ignored, told once and counted.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	if got := unknownFields(d); got != "{}" {
		t.Errorf("before any, the verbose Status tells of unknown fields: %s", got)
	}
	p := d.RunPod(harness.OnHostNetwork, func(c *cri.PodSandboxConfig) {
		newer(c, 31001)
		newer(c.Linux.SecurityContext, 31002)
	})
	for range 2 { // in a list, and in the message itself
		r := &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: p.ContainerConfig(harness.Idle()), SandboxConfig: p.Config}
		r.Config.Envs = []*cri.KeyValue{{Key: "A"}, {Key: "B"}}
		newer(r.Config.Envs[1], 31003)
		newer(r, 31004)
		_, err := d.Runtime.CreateContainer(context.Background(), r)
		d.Must(err)
	}
	want := `{"runtime.v1.CreateContainerRequest 31004":2,"runtime.v1.KeyValue 31003":2,` +
		`"runtime.v1.LinuxSandboxSecurityContext 31002":3,"runtime.v1.PodSandboxConfig 31001":3}` // of a pod's config in each request with it
	if got := unknownFields(d); got != want {
		t.Errorf("unknown fields are counted as\n%s\nwant\n%s", got, want)
	}
	log, err := os.ReadFile(d.LogFile())
	d.Must(err)
	for _, field := range []string{
		"field 31001 of runtime.v1.PodSandboxConfig ", "field 31002 of runtime.v1.LinuxSandboxSecurityContext ",
		"field 31003 of runtime.v1.KeyValue ", "field 31004 of runtime.v1.CreateContainerRequest ",
	} {
		if n := strings.Count(string(log), field); n != 1 {
			t.Errorf("the log tells of %q %d times, want once", field, n)
		}
	}
	// A stream's request is looked at like any other.
	stream, err := d.Images.StreamImages(context.Background(), newer(&cri.StreamImagesRequest{}, 31005))
	d.Must(err)
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if got := unknownFields(d); !strings.Contains(got, `"runtime.v1.StreamImagesRequest 31005":1`) {
		t.Errorf("an unknown field of a stream's request is not counted: %s", got)
	}
}

// TestManyUnknownFields: nobody fills the daemon's memory or its log with inventions.
func TestManyUnknownFields(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	r := &cri.VersionRequest{}
	var unknown []byte
	for n := range 10_000 {
		unknown = protowire.AppendVarint(protowire.AppendTag(unknown, protowire.Number(50_000+n), protowire.VarintType), 1)
	}
	r.ProtoReflect().SetUnknown(unknown)
	_, err := d.Runtime.Version(context.Background(), r)
	d.Must(err)
	got := unknownFields(d)
	if n := strings.Count(got, "VersionRequest"); n == 0 || n > 1000 || !strings.Contains(got, `"others":`) {
		t.Errorf("of 10000 unknown fields %d are told apart, %.200s", n, got)
	}
	log, err := os.ReadFile(d.LogFile())
	d.Must(err)
	if n := strings.Count(string(log), "is unknown to this version"); n == 0 || n > 1000 {
		t.Errorf("10000 unknown fields give %d lines in the log", n)
	}
}

// newer adds a field that this version of the API does not have.
func newer[M proto.Message](m M, number protowire.Number) M {
	b := protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), "from a newer version")
	m.ProtoReflect().SetUnknown(append(m.ProtoReflect().GetUnknown(), b...))
	return m
}

func unknownFields(d *harness.Daemon) string {
	d.Helper()
	r, err := d.Runtime.Status(context.Background(), &cri.StatusRequest{Verbose: true})
	d.Must(err)
	return r.Info["unknownFields"]
}
