package lifecycle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// stopping asks for a stop and returns where its error comes.
func stopping(c *harness.Container, grace int64) <-chan error {
	done := make(chan error, 1)
	go func() { done <- tryStop(c, context.Background(), grace) }()
	return done
}

func tryStop(c *harness.Container, ctx context.Context, grace int64) error {
	_, err := c.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: grace})
	return err
}

// deaf is a container that says that it got SIGTERM, and goes on.
func deaf() harness.ContainerOption {
	return harness.Shell("trap 'echo got it' TERM; echo ready; while :; do usleep 10000; done")
}

// TestStopKeepsEarlierDeadline: who asks with more patience than the one before waits no longer than that one.
func TestStopKeepsEarlierDeadline(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod(harness.OnHostNetwork).Run(deaf())
	c.WaitLog("ready")
	first := stopping(c, 2)
	c.WaitLog("got it")
	second := stopping(c, 3600)
	for name, done := range map[string]<-chan error{"first": first, "second": second} {
		select {
		case err := <-done:
			d.Must(err)
		case <-time.After(harness.Patience):
			t.Fatalf("the %s stop still waits", name)
		}
	}
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "ready\ngot it\n" {
		t.Errorf("the stop signal is sent once; log %q", got)
	}
}

// TestCallersDeadline: who gives up waiting for a stop gets its own error, the stop goes on, and the next caller is served.
func TestCallersDeadline(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(harness.OnHostNetwork)
	c := p.Run(deaf())
	c.WaitLog("ready")
	brief, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	harness.WantCode(t, tryStop(c, brief, 3600), codes.DeadlineExceeded)
	if s := c.Status().State; s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a caller that gave up leaves a container that is %s", s)
	}
	gone, leave := context.WithCancel(context.Background())
	left := make(chan error, 1)
	go func() { left <- tryStop(c, gone, 3600) }()
	c.WaitLog("got it")
	leave()
	harness.WantCode(t, <-left, codes.Canceled)
	for _, ask := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := d.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
			return err
		},
		func(ctx context.Context) error {
			_, err := d.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
			return err
		},
	} {
		short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		_ = ask(short) // it may be faster
		cancel()
		d.Must(ask(context.Background()))
	}
}

// TestManyStops: however many ask for the end of one pod at the same time, each is told when it has come.
func TestManyStops(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c, other := p.Run(deaf()), p.Run(harness.Idle())
	c.WaitLog("ready")
	patient := stopping(c, 3600)
	c.WaitLog("got it")
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if _, err := d.Runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
				t.Error(err)
				return
			}
			if s := p.Status(); s.State != cri.PodSandboxState_SANDBOX_NOTREADY || s.Network.GetIp() != "" {
				t.Errorf("a stop has returned, and the pod is %v", s)
			}
			for _, c := range []*harness.Container{c, other} {
				if s := c.Status().State; s != cri.ContainerState_CONTAINER_EXITED {
					t.Errorf("the stop of the pod has returned, and a container is %s", s)
				}
			}
		})
	}
	all.Wait()
	d.Must(<-patient)
	if left := d.ProcessesOf(p.ID); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for range 4 {
		all.Go(func() {
			if _, err := d.Runtime.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// freeze stops all processes of the container in the kernel, out of SIGKILL's reach, and returns what wakes them up.
func freeze(c *harness.Container) (thaw func()) {
	c.Helper()
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID()))
	c.Must(err)
	for line := range strings.Lines(string(cgroups)) {
		if _, path, ok := strings.Cut(strings.TrimSpace(line), ":freezer:"); ok {
			state := filepath.Join("/sys/fs/cgroup/freezer", path, "freezer.state")
			set := func(word string) {
				c.Must(os.WriteFile(state, []byte(word), 0o600))
				harness.Eventually(c, "the cgroup to be "+word, func() error {
					now, err := os.ReadFile(state)
					c.Must(err)
					return harness.Unless(strings.TrimSpace(string(now)) == word, "it is %s", now)
				})
			}
			set("FROZEN")
			var once sync.Once
			thaw := func() { once.Do(func() { _ = os.WriteFile(state, []byte("THAWED"), 0o600) }) }
			c.Cleanup(thaw)
			return thaw
		}
	}
	c.Skip("without the freezer of cgroup v1 no process can be made that SIGKILL does not end")
	return nil
}

// TestUnkillable: a process that the kernel does not let die costs its callers an error by the deadline, and nobody else anything. When it can
// die it does, and all ends well.
func TestUnkillable(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c, sibling := p.Run(deaf()), p.Run(harness.Idle())
	c.WaitLog("ready")
	thaw := freeze(c)
	impatient := func() context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	killed := stopping(c, 0)
	for name, ask := range map[string]func(ctx context.Context) error{
		"StopContainer": func(ctx context.Context) error { return tryStop(c, ctx, 0) },
		"patient stop":  func(ctx context.Context) error { return tryStop(c, ctx, 3600) },
		"RemoveContainer": func(ctx context.Context) error {
			_, err := d.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ID})
			return err
		},
		"StopPodSandbox": func(ctx context.Context) error {
			_, err := d.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
			return err
		},
	} {
		if err := ask(impatient()); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING || s.FinishedAt != 0 {
		t.Errorf("what cannot die is told to be %v", s)
	}
	if s := sibling.WaitExit(); s.ExitCode != 137 {
		t.Errorf("its sibling in a pod that is stopped has exit code %d", s.ExitCode)
	}
	d.RunPod(harness.OnHostNetwork).Run(harness.Idle()).Stop(0) // others are served
	select {
	case err := <-killed:
		harness.WantCode(t, err, codes.DeadlineExceeded, c.ID, "SIGKILL")
	case <-time.After(2 * harness.Patience):
		t.Error("a stop without a deadline waits for ever")
	}
	d.Restart() // which goes on with the stops
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a restart, what cannot die is told to be %v", s)
	}
	thaw()
	if s := c.WaitExit(); s.ExitCode != 137 {
		t.Errorf("it has exit code %d, reason %q", s.ExitCode, s.Reason)
	}
	c.Stop(0)
	p.Stop()
	p.Remove()
}
