package streams

import (
	"context"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

func TestExecSync(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Envs = []*cri.KeyValue{{Key: "SEEN", Value: []byte("by exec")}}
		c.WorkingDir = "/tmp"
	}))
	for _, row := range []struct {
		script, stdout, stderr string
		code                   int32
	}{
		{"echo out; echo err >&2", "out\n", "err\n", 0},
		{"exit 42", "", "", 42},
		{"kill -KILL $$", "", "", 137},
		{"echo $SEEN; pwd", "by exec\n/tmp\n", "", 0},
		{"printf 'no newline'", "no newline", "", 0},
		{"cat; echo end of stdin", "end of stdin\n", "", 0},
	} {
		r, err := c.TryExec(30, "sh", "-c", row.script)
		if err != nil {
			t.Errorf("%s: %v", row.script, err)
			continue
		}
		if r.Stdout != row.stdout || r.Stderr != row.stderr || r.Code != row.code {
			t.Errorf("%s: got %+v", row.script, r)
		}
	}
	if r, err := c.TryExec(30, "/no/such/program"); err == nil && r.Code != 126 && r.Code != 127 {
		t.Errorf("a program that does not exist: %+v", r)
	} else if err != nil && !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("the error should name the program: %v", err)
	}
}

// TestExecSyncTimeout: the code is what makes a probe fail instead of being unknown, and the process must not live on.
func TestExecSyncTimeout(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	_, err := c.TryExec(1, "sh", "-c", "trap '' TERM; sleep 4321 & wait; sleep 4321")
	harness.WantCode(t, err, codes.DeadlineExceeded)
	d.WantNoProcess(c, "4321")
	_, err = c.TryExec(math.MaxInt64, "true")
	d.Must(err)
}

// TestExecSyncSlowStart: the time that a busy machine takes to start a command is not the command's, or a probe fails for it.
func TestExecSyncSlowStart(t *testing.T) {
	t.Parallel()
	d := harness.WithWrappers(t, map[string]string{"slow": `case " $* " in *" exec "*) sleep 2;; esac`})
	d.Start()
	d.Empty = d.Ledger()
	p, err := d.InHandler("slow")
	d.Must(err)
	c := p.Run(harness.Idle())
	_, err = c.TryExec(1, "true")
	d.Must(err)
	_, err = c.TryExec(1, "sleep", "8") // not killed as late as one that never starts
	harness.WantCode(t, err, codes.DeadlineExceeded)
}

// TestExecSyncClientLeaves: a process that nobody waits for any more ends.
func TestExecSyncClientLeaves(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = d.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "echo > /tmp/begun; sleep 4322"}})
	}()
	waitFile(c, "/tmp/begun")
	leave()
	<-done
	d.WantNoProcess(c, "4322")
}

func waitFile(c *harness.Container, path string) {
	c.Helper()
	harness.Eventually(c, path+" in the container", func() error {
		r, err := c.TryExec(10, "test", "-e", path)
		if err != nil {
			return err
		}
		return harness.Unless(r.Code == 0, "not there")
	})
}

// TestExecSyncManyBytes: output is capped, and what is over the cap does not block the process.
func TestExecSyncManyBytes(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	r, err := c.TryExec(60, "sh", "-c", "dd if=/dev/zero bs=1M count=4 2>/dev/null | tr '\\0' x")
	d.Must(err)
	if len(r.Stdout) != 4<<20 || strings.Trim(r.Stdout, "x") != "" {
		t.Errorf("4 MiB came back as %d bytes", len(r.Stdout))
	}
	r, err = c.TryExec(60, "sh", "-c", "dd if=/dev/zero bs=1M count=40 2>/dev/null; dd if=/dev/zero bs=1M count=40 >&2 2>/dev/null; exit 3")
	d.Must(err)
	if r.Code != 3 || len(r.Stdout) == 0 {
		t.Errorf("80 MiB: exit code %d, %d bytes", r.Code, len(r.Stdout)+len(r.Stderr))
	}
}

// TestExecSyncBackgroundChild: a child that keeps the output open does not hold the call for ever.
func TestExecSyncBackgroundChild(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	r, err := c.TryExec(60, "sh", "-c", "sleep 4323 & echo parent")
	d.Must(err)
	if r.Stdout != "parent\n" || r.Code != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestExecSyncConfined(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
		c.Linux.SecurityContext.NoNewPrivs = true
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	}))
	status := c.Exec("cat", "/proc/self/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1", "Uid:\t1000\t1000"} {
		if !strings.Contains(status, want) {
			t.Errorf("an exec'ed process lacks %q", want)
		}
	}
}

// TestExecSyncDaemonDies: what a dead daemon was waiting for does not stay in the container.
func TestExecSyncDaemonDies(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = d.Runtime.ExecSync(context.Background(), &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "echo > /tmp/begun; sleep 4324"}})
	}()
	waitFile(c, "/tmp/begun")
	d.Kill()
	<-done
	d.Start()
	d.WantNoProcess(c, "4324")
	c.Exec("true")
}

// TestContainerDiesDuringExec: the call ends with the container.
func TestContainerDiesDuringExec(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.TryExec(0, "sh", "-c", "echo > /tmp/begun; sleep 4325")
	}()
	waitFile(c, "/tmp/begun")
	d.Must(syscall.Kill(c.PID(), syscall.SIGKILL))
	c.WaitExit()
	select {
	case <-done:
	case <-time.After(harness.Patience):
		t.Error("ExecSync waits for a process of a container that is dead")
	}
}
