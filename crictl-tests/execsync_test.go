package crictltests

import (
	"context"
	"math"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestExecSync(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle(), with(func(c *cri.ContainerConfig) {
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
		r, err := c.tryExec(30, "sh", "-c", row.script)
		if err != nil {
			t.Errorf("%s: %v", row.script, err)
			continue
		}
		if r.stdout != row.stdout || r.stderr != row.stderr || r.code != row.code {
			t.Errorf("%s: got %+v", row.script, r)
		}
	}
	if r, err := c.tryExec(30, "/no/such/program"); err == nil && r.code != 126 && r.code != 127 {
		t.Errorf("a program that does not exist: %+v", r)
	} else if err != nil && !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("the error should name the program: %v", err)
	}
}

// TestExecSyncTimeout: the code is what makes a probe fail instead of being unknown, and the process must not live on.
func TestExecSyncTimeout(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	_, err := c.tryExec(1, "sh", "-c", "trap '' TERM; sleep 4321 & wait; sleep 4321")
	wantCode(t, err, codes.DeadlineExceeded)
	d.wantNoProcess(c, "4321")
	_, err = c.tryExec(math.MaxInt64, "true")
	d.must(err)
}

// TestExecSyncSlowStart: the time that a busy machine takes to start a command is not the command's, or a probe fails for it.
func TestExecSyncSlowStart(t *testing.T) {
	t.Parallel()
	d := withWrappers(t, map[string]string{"slow": `case " $* " in *" exec "*) sleep 2;; esac`})
	d.start()
	d.empty = d.ledger()
	p, err := d.inHandler("slow")
	d.must(err)
	c := p.run(idle())
	_, err = c.tryExec(1, "true")
	d.must(err)
	_, err = c.tryExec(1, "sleep", "8") // not killed as late as one that never starts
	wantCode(t, err, codes.DeadlineExceeded)
}

// TestExecSyncClientLeaves: a process that nobody waits for any more ends.
func TestExecSyncClientLeaves(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = d.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "echo > /tmp/begun; sleep 4322"}})
	}()
	c.waitFile("/tmp/begun")
	leave()
	<-done
	d.wantNoProcess(c, "4322")
}

func (c *container) waitFile(path string) {
	c.Helper()
	eventually(c, path+" in the container", func() error {
		r, err := c.tryExec(10, "test", "-e", path)
		if err != nil {
			return err
		}
		return unless(r.code == 0, "not there")
	})
}

// wantNoProcess waits until no process of the container carries the argument.
func (d *daemon) wantNoProcess(c *container, arg string) {
	d.Helper()
	eventually(d, "the process to be gone", func() error {
		for _, p := range d.processesOf(c.id) {
			for _, a := range p.Args {
				if strings.Contains(a, arg) {
					return unless(false, "process %d still runs: %s", p.Pid, p.Name())
				}
			}
		}
		return nil
	})
}

// TestExecSyncManyBytes: output is capped, and what is over the cap does not block the process.
func TestExecSyncManyBytes(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	r, err := c.tryExec(60, "sh", "-c", "dd if=/dev/zero bs=1M count=4 2>/dev/null | tr '\\0' x")
	d.must(err)
	if len(r.stdout) != 4<<20 || strings.Trim(r.stdout, "x") != "" {
		t.Errorf("4 MiB came back as %d bytes", len(r.stdout))
	}
	r, err = c.tryExec(60, "sh", "-c", "dd if=/dev/zero bs=1M count=40 2>/dev/null; dd if=/dev/zero bs=1M count=40 >&2 2>/dev/null; exit 3")
	d.must(err)
	if r.code != 3 || len(r.stdout) == 0 {
		t.Errorf("80 MiB: exit code %d, %d bytes", r.code, len(r.stdout)+len(r.stderr))
	}
}

// TestExecSyncBackgroundChild: a child that keeps the output open does not hold the call for ever.
func TestExecSyncBackgroundChild(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	r, err := c.tryExec(60, "sh", "-c", "sleep 4323 & echo parent")
	d.must(err)
	if r.stdout != "parent\n" || r.code != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestExecSyncConfined(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle(), with(func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
		c.Linux.SecurityContext.NoNewPrivs = true
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	}))
	status := c.exec("cat", "/proc/self/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1", "Uid:\t1000\t1000"} {
		if !strings.Contains(status, want) {
			t.Errorf("an exec'ed process lacks %q", want)
		}
	}
}

// TestExecSyncDaemonDies: what a dead daemon was waiting for does not stay in the container.
func TestExecSyncDaemonDies(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = d.runtime.ExecSync(context.Background(), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "echo > /tmp/begun; sleep 4324"}})
	}()
	c.waitFile("/tmp/begun")
	d.kill()
	<-done
	d.start()
	d.wantNoProcess(c, "4324")
	c.exec("true")
}

// TestContainerDiesDuringExec: the call ends with the container.
func TestContainerDiesDuringExec(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.tryExec(0, "sh", "-c", "echo > /tmp/begun; sleep 4325")
	}()
	c.waitFile("/tmp/begun")
	d.must(syscall.Kill(c.pid(), syscall.SIGKILL))
	c.waitExit()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("ExecSync waits for a process of a container that is dead")
	}
}

func hostFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
