package network

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/layout"
)

// TestPodLockWaits: somebody who holds the pod's lock alone for a moment is waited for, as long as
// the caller wants to.
func TestPodLockWaits(t *testing.T) {
	c := &Connector{layout: layout.Layout{State: t.TempDir()}}
	if err := os.Mkdir(c.layout.StatePath("locks"), 0o700); err != nil {
		t.Fatal(err)
	}
	alone, err := os.Create(c.layout.LockPath("pod"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(alone.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.podLock(gone, "pod"); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who has left gets %v", err)
	}
	patience := lockLimit
	lockLimit = 0
	if _, err := c.podLock(t.Context(), "pod"); !errdefs.IsUnavailable(err) {
		t.Errorf("a caller who has waited long enough gets %v", err)
	}
	lockLimit = patience
	taken := make(chan error)
	go func() {
		lock, err := c.podLock(t.Context(), "pod")
		if err == nil {
			err = lock.Close()
		}
		taken <- err
	}()
	if err := alone.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Errorf("after the other has let go: %v", err)
	}
}
