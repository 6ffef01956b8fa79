package crictltests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podStream is what StreamPodSandboxes sends, as one list.
func (d *daemon) podStream(f *cri.PodSandboxFilter) *cri.ListPodSandboxResponse {
	d.Helper()
	stream, err := d.runtime.StreamPodSandboxes(context.Background(), &cri.StreamPodSandboxesRequest{Filter: f})
	d.must(err)
	all := &cri.ListPodSandboxResponse{}
	d.eachPiece(stream, func() error {
		piece, err := stream.Recv()
		all.Items = append(all.Items, piece.GetPodSandboxes()...)
		return hasItems(err, len(piece.GetPodSandboxes()))
	})
	return all
}

// containerStream is what StreamContainers sends, as one list.
func (d *daemon) containerStream(f *cri.ContainerFilter) *cri.ListContainersResponse {
	d.Helper()
	stream, err := d.runtime.StreamContainers(context.Background(), &cri.StreamContainersRequest{Filter: f})
	d.must(err)
	all := &cri.ListContainersResponse{}
	d.eachPiece(stream, func() error {
		piece, err := stream.Recv()
		all.Containers = append(all.Containers, piece.GetContainers()...)
		return hasItems(err, len(piece.GetContainers()))
	})
	return all
}

// imageStream is what StreamImages sends, as one list.
func (d *daemon) imageStream(f *cri.ImageFilter) *cri.ListImagesResponse {
	d.Helper()
	stream, err := d.images.StreamImages(context.Background(), &cri.StreamImagesRequest{Filter: f})
	d.must(err)
	all := &cri.ListImagesResponse{}
	d.eachPiece(stream, func() error {
		piece, err := stream.Recv()
		all.Images = append(all.Images, piece.GetImages()...)
		return hasItems(err, len(piece.GetImages()))
	})
	return all
}

// eachPiece receives until the stream has ended as it should.
func (d *daemon) eachPiece(stream grpc.ClientStream, receive func() error) {
	d.Helper()
	for {
		err := receive()
		if errors.Is(err, io.EOF) {
			return
		}
		d.must(err)
	}
}

func hasItems(err error, n int) error {
	return errors.Join(err, unless(err != nil || n > 0, "a message of a list stream without an item"))
}

// TestListsThatAreTooLong: what a client cannot take in one message is refused as that, and a stream gives it in messages that are far smaller.
func TestListsThatAreTooLong(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(onHostNetwork)
	weighing := func(bytes int) containerOption {
		return with(func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"heavy": strings.Repeat("x", bytes)} })
	}
	ids := map[string]int{}
	for range 2 {
		ids[p.create(idle(), weighing(9<<20)).id] = 0
	}
	for range 8 {
		ids[p.create(idle(), weighing(300<<10)).id] = 0
	}
	_, err := d.runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	wantCode(t, err, codes.ResourceExhausted, "ListContainers", fmt.Sprint(16<<20), "stream")
	stream, err := d.runtime.StreamContainers(context.Background(), &cri.StreamContainersRequest{})
	d.must(err)
	messages := 0
	d.eachPiece(stream, func() error {
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
		return hasItems(nil, len(piece.Containers))
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
