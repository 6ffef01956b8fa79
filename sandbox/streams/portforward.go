package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// dialLimit is how long a port of a pod may take to answer: it is on the loopback.
const dialLimit = 10 * time.Second

// afterAnswer is how long a client may be silent after the pod has closed its side of a connection.
// A program that has closed both sides and one that still reads look the same until something is
// sent.
const afterAnswer = 5 * time.Second

// maxPorts is how many ports one client may name before it connects. Each costs it two channels.
const maxPorts = 1024

// PortForward connects the client with a port of the pod's loopback, IPv4 or IPv6, until one of
// them is done or ctx ends (CRI PortForward). ErrNotFound, ErrInvalidArgument for a port that is
// none, ErrFailedPrecondition when the pod is not ready or nobody listens.
func (ss *Sessions) PortForward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	p, err := ss.forwardable(podID, port)
	if err != nil {
		return err
	}
	dialing, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	netns := p.NetNS
	if spec.HostNetwork(p.Config) {
		netns = ""
	}
	conn, err := ss.dial(dialing, netns, uint16(port))
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w: %w", port, p.ID, err, errdefs.ErrFailedPrecondition)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	up := upload{to: conn, ended: make(chan struct{})}
	go up.run(client)
	_, err = io.Copy(client, conn)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("port %d of pod %s: %w", port, p.ID, err)
	}
	if err := client.Close(); err != nil { // this direction; the client may go on in the other
		return nil
	}
	up.wait(ctx)
	if c, ok := client.(interface{ Reset() error }); ok {
		_ = c.Reset() // nobody reads from it any more: what is still sent is dropped, and run ends
	}
	return nil
}

// halfCloser is the pod's end of a connection.
type halfCloser interface {
	io.Writer
	CloseWrite() error
}

// upload is what a client sends to a port.
type upload struct {
	to    halfCloser
	taken atomic.Int64 // bytes
	ended chan struct{}
}

// run goes on until the client has no more, or the connection is closed and the client sends or is
// reset.
func (u *upload) run(client io.Reader) {
	defer close(u.ended)
	err := guard.Call(context.Background(), "input of a port", func() error { _, err := io.Copy(u, client); return err })
	_ = errors.Join(err, u.to.CloseWrite()) // the pod's side says what became of it
}

func (u *upload) Write(p []byte) (int, error) {
	n, err := u.to.Write(p)
	u.taken.Add(int64(n))
	return n, err
}

// wait returns when the upload has ended, or when the pod has taken nothing of it for afterAnswer.
func (u *upload) wait(ctx context.Context) {
	for before := int64(-1); before != u.taken.Load(); {
		before = u.taken.Load()
		select {
		case <-u.ended:
			return
		case <-ctx.Done():
			return
		case <-time.After(afterAnswer):
		}
	}
}

// CheckPortForward says why a port could not be forwarded now: ErrNotFound, ErrInvalidArgument,
// ErrFailedPrecondition.
func (ss *Sessions) CheckPortForward(podID string, ports []int32) error {
	if _, err := ss.readyPod(podID); err != nil {
		return err
	}
	if len(ports) > maxPorts {
		return fmt.Errorf("port: %d ports were given; the limit is %d: %w", len(ports), maxPorts, errdefs.ErrInvalidArgument)
	}
	for _, port := range ports {
		if err := checkPort(port); err != nil {
			return err
		}
	}
	return nil
}

func (ss *Sessions) forwardable(podID string, port int32) (table.Pod, error) {
	p, err := ss.readyPod(podID)
	if err == nil {
		err = checkPort(port)
	}
	return p, err
}

func checkPort(port int32) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port %d is not between 1 and 65535: %w", port, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (ss *Sessions) readyPod(id string) (table.Pod, error) {
	p, err := ss.table.Pod(id)
	if err == nil && !p.Ready() {
		err = fmt.Errorf("pod %s is not ready: %w", p.ID, errdefs.ErrFailedPrecondition)
	}
	return p, err
}
