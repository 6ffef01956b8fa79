package lifecycle

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// podStream is what StreamPodSandboxes sends, as one list.
func podStream(d *harness.Daemon, f *cri.PodSandboxFilter) *cri.ListPodSandboxResponse {
	d.Helper()
	stream, err := d.Runtime.StreamPodSandboxes(context.Background(), &cri.StreamPodSandboxesRequest{Filter: f})
	d.Must(err)
	all := &cri.ListPodSandboxResponse{}
	d.EachPiece(stream, func() error {
		piece, err := stream.Recv()
		all.Items = append(all.Items, piece.GetPodSandboxes()...)
		return harness.HasItems(err, len(piece.GetPodSandboxes()))
	})
	return all
}

// containerStream is what StreamContainers sends, as one list.
func containerStream(d *harness.Daemon, f *cri.ContainerFilter) *cri.ListContainersResponse {
	d.Helper()
	stream, err := d.Runtime.StreamContainers(context.Background(), &cri.StreamContainersRequest{Filter: f})
	d.Must(err)
	all := &cri.ListContainersResponse{}
	d.EachPiece(stream, func() error {
		piece, err := stream.Recv()
		all.Containers = append(all.Containers, piece.GetContainers()...)
		return harness.HasItems(err, len(piece.GetContainers()))
	})
	return all
}

// TestListsThatAreTooLong: what a client cannot take in one message is refused as that, and a stream gives it in messages that are far smaller.
func TestListsThatAreTooLong(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	weighing := func(bytes int) harness.ContainerOption {
		return harness.With(func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"heavy": strings.Repeat("x", bytes)} })
	}
	ids := map[string]int{}
	for range 2 {
		ids[p.Create(harness.Idle(), weighing(9<<20)).ID] = 0
	}
	for range 8 {
		ids[p.Create(harness.Idle(), weighing(300<<10)).ID] = 0
	}
	_, err := d.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	harness.WantCode(t, err, codes.ResourceExhausted, "ListContainers", fmt.Sprint(16<<20), "stream")
	stream, err := d.Runtime.StreamContainers(context.Background(), &cri.StreamContainersRequest{})
	d.Must(err)
	messages := 0
	d.EachPiece(stream, func() error {
		piece, err := stream.Recv()
		if err != nil {
			return err
		}
		messages++
		for _, c := range piece.Containers {
			ids[c.Id]++
		}
		if n := len(piece.Containers); n > 1 && proto.Size(piece) > 1<<20 {
			t.Errorf("a message with %d containers has %d bytes", n, proto.Size(piece))
		}
		return harness.HasItems(nil, len(piece.Containers))
	})
	if messages < 5 || messages > 6 { // two alone, eight by threes
		t.Errorf("10 containers came in %d messages", messages)
	}
	for id, n := range ids {
		if n != 1 {
			t.Errorf("container %s came %d times", id, n)
		}
	}
}
