package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/cni"
)

// dialLimit is how long a port of a pod may take to answer: it is on the loopback.
const dialLimit = 10 * time.Second

// afterAnswer is how long a client may still send after the pod has closed its side of a connection. A program that has closed both sides
// and one that still reads look the same until something is sent.
const afterAnswer = time.Second

// PortForward connects the client with a port of the pod's loopback, IPv4 or IPv6, until one of them is done or ctx ends (CRI PortForward).
// ErrNotFound, ErrInvalidArgument for a port that is none, ErrFailedPrecondition when the pod is not ready or nobody listens.
func (m *Manager) PortForward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	p, err := m.forwardable(podID, port)
	if err != nil {
		return err
	}
	dialing, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	netns := p.NetNS
	if hostNetwork(p.Config) {
		netns = ""
	}
	conn, err := cni.Dial(dialing, netns, uint16(port))
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w: %w", port, p.ID, err, errdefs.ErrFailedPrecondition)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(conn, client)
		_ = errors.Join(err, conn.CloseWrite()) // the pod's side says what became of it
	}()
	_, err = io.Copy(client, conn)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("port %d of pod %s: %w", port, p.ID, err)
	}
	if err := client.Close(); err != nil { // this direction; the client may go on in the other
		return nil
	}
	select {
	case <-sent:
	case <-ctx.Done():
	case <-time.After(afterAnswer):
	}
	return nil
}

// CheckPortForward says why a port could not be forwarded now: ErrNotFound, ErrInvalidArgument, ErrFailedPrecondition.
func (m *Manager) CheckPortForward(podID string, ports []int32) error {
	for _, port := range ports {
		if _, err := m.forwardable(podID, port); err != nil {
			return err
		}
	}
	_, err := m.readyPod(podID)
	return err
}

func (m *Manager) forwardable(podID string, port int32) (Pod, error) {
	p, err := m.readyPod(podID)
	if err == nil && (port < 1 || port > 65535) {
		err = fmt.Errorf("port %d is not between 1 and 65535: %w", port, errdefs.ErrInvalidArgument)
	}
	return p, err
}

func (m *Manager) readyPod(id string) (Pod, error) {
	p, err := m.Pod(id)
	if err == nil && !p.Ready() {
		err = fmt.Errorf("pod %s is not ready: %w", p.ID, errdefs.ErrFailedPrecondition)
	}
	return p, err
}
