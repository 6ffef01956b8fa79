package crictltests

import (
	"context"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDaemonIsStopped: while the daemon is stopped like a job of a shell, containers print and their ends are kept; then it goes on as if
// nothing had been.
func TestDaemonIsStopped(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(d.tool("print", "-lines", "300", "-every", "2ms", "-exit", "7"))
	d.process.signal(syscall.SIGSTOP)
	eventually(t, "all lines in the log of a container that waits for nobody", func() error {
		lines := c.readLog()
		return unless(len(lines) == 300, "there are %d", len(lines))
	})
	d.process.signal(syscall.SIGCONT)
	if s := c.waitExit(); s.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", s.ExitCode)
	}
	c.wantNumbers(c.finalLog(), "stdout", 300)
}

// TestShimIsStopped: while the shim is stopped, lists and statuses are answered, a request that needs it ends with its caller's deadline, and
// afterwards all goes on.
func TestShimIsStopped(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(idle())
	shim := d.waitRole("shim", 0)
	d.must(syscall.Kill(shim, syscall.SIGSTOP))
	defer func() { _ = syscall.Kill(shim, syscall.SIGCONT) }()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, err := d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
	wantCode(t, err, codes.DeadlineExceeded)
	if s := c.status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", s.State)
	}
	if s := p.status(); s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %s", s.State)
	}
	r, err := d.runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.must(err)
	if len(r.Containers) != 1 {
		t.Errorf("%d containers are listed", len(r.Containers))
	}
	d.wantCondition(cri.RuntimeReady, false)
	d.must(syscall.Kill(shim, syscall.SIGCONT))
	d.wantCondition(cri.RuntimeReady, true)
	c.exec("true")
	if now := d.role("shim"); now != shim {
		t.Errorf("the shim is %d, was %d", now, shim)
	}
}
