package lifecycle

import (
	"context"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestDaemonIsStopped: while the daemon is stopped like a job of a shell, containers print and their ends are kept; then it goes on as if
// nothing had been.
func TestDaemonIsStopped(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("print", "-lines", "300", "-every", "2ms", "-exit", "7"))
	harness.Freeze(t, d.Process.PID())
	harness.Eventually(t, "all lines in the log of a container that waits for nobody", func() error {
		lines := c.ReadLog()
		return harness.Unless(len(lines) == 300, "there are %d", len(lines))
	})
	d.Process.Signal(syscall.SIGCONT)
	if s := c.WaitExit(); s.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", s.ExitCode)
	}
	c.WantNumbers(c.FinalLog(), "stdout", 300)
}

// TestShimIsStopped: while the shim is stopped, lists and statuses are answered, a request that needs it ends with its caller's deadline, and
// afterwards all goes on.
func TestShimIsStopped(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(harness.Idle())
	shim := d.WaitRole("shim", 0)
	harness.Freeze(t, shim)
	defer func() { _ = syscall.Kill(shim, syscall.SIGCONT) }()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, err := d.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"true"}})
	harness.WantCode(t, err, codes.DeadlineExceeded)
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", s.State)
	}
	if s := p.Status(); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %s", s.State)
	}
	r, err := d.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.Must(err)
	if len(r.Containers) != 1 {
		t.Errorf("%d containers are listed", len(r.Containers))
	}
	d.WantCondition(cri.RuntimeReady, false)
	d.Must(syscall.Kill(shim, syscall.SIGCONT))
	d.WantCondition(cri.RuntimeReady, true)
	c.Exec("true")
	if now := d.Role("shim"); now != shim {
		t.Errorf("the shim is %d, was %d", now, shim)
	}
}
