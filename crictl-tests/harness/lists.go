package harness

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// WantNoContainers fails the test when a container is listed.
func (d *Daemon) WantNoContainers() {
	d.Helper()
	r, err := d.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.Must(err)
	if len(r.Containers) > 0 {
		d.Errorf("refused containers are listed: %v", r.Containers)
	}
}

// EachPiece receives until the stream has ended as it should.
func (d *Daemon) EachPiece(stream grpc.ClientStream, receive func() error) {
	d.Helper()
	for {
		err := receive()
		if errors.Is(err, io.EOF) {
			return
		}
		d.Must(err)
	}
}

// HasItems complains about an error, and about a message of a list stream that has no item.
func HasItems(err error, n int) error {
	return errors.Join(err, Unless(err != nil || n > 0, "a message of a list stream without an item"))
}

// Listed returns the pods that the daemon lists.
func (d *Daemon) Listed() []*cri.PodSandbox {
	d.Helper()
	r, err := d.Runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
	d.Must(err)
	return r.Items
}

// RemoveListed stops and removes every pod that is listed.
func (d *Daemon) RemoveListed() {
	d.Helper()
	for _, item := range d.Listed() {
		p := &Pod{Daemon: d, ID: item.Id}
		p.Stop()
		p.Remove()
	}
}
