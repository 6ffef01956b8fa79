package resources

import (
	"fmt"
	"os"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
	"github.com/cribox/cribox/crictl-tests/ledger"
)

// limited gives a container 64 MiB, and no swap.
func limited() harness.ContainerOption {
	return harness.With(func(c *cri.ContainerConfig) {
		c.Linux.Resources.MemoryLimitInBytes, c.Linux.Resources.MemorySwapLimitInBytes = 64<<20, 64<<20
	})
}

// TestOOMKilled: the reason is OOMKilled when the kernel killed the container's first process, and only then.
func TestOOMKilled(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	if s := p.Run(d.Tool("eat", "256"), limited()).WaitExit(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("over its limit: exit code %d, reason %q, message %q", s.ExitCode, s.Reason, s.Message)
	}
	// A child that the kernel took must not taint a clean end, nor a failure of another kind.
	for code, reason := range map[int32]string{0: "Completed", 3: "Error"} {
		c := p.Run(harness.Shell(fmt.Sprintf("(tail /dev/zero >/dev/null); exit %d", code)), limited())
		if s := c.WaitExit(); s.ExitCode != code || s.Reason != reason {
			t.Errorf("its child was over the limit: exit code %d, reason %q, want %d and %s", s.ExitCode, s.Reason, code, reason)
		}
	}
	// The limit of one container is not the end of another.
	if s := p.Run(harness.Shell("exit 137")).WaitExit(); s.Reason != "Error" {
		t.Errorf("exit code 137 without a kill: reason %q", s.Reason)
	}
}

// TestOOMKillOfExec: a command that the kernel took leaves the container as it was; that it is killed later, by us, is another matter.
func TestOOMKillOfExec(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for name, end := range map[string]func(*harness.Container){
		"stopped": func(c *harness.Container) { c.Stop(0) },
		"stopped, the shim died before": func(c *harness.Container) {
			d.KillRole("shim")
			c.Stop(0)
		},
		"its pod stopped": func(c *harness.Container) { c.Pod.Stop() },
	} {
		c := p.Run(harness.Idle(), limited())
		if r, err := c.TryExec(60, "tail", "/dev/zero"); err != nil || r.Code != 137 {
			t.Errorf("a command over the limit: %v, %v", r, err)
		}
		if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("after that the container is %s: %s", s.State, s.Reason)
			continue
		}
		end(c)
		if s := c.WaitExit(); s.ExitCode != 137 || s.Reason != "Error" {
			t.Errorf("%s: exit code %d, reason %q, want 137 and Error", name, s.ExitCode, s.Reason)
		}
		if name == "its pod stopped" {
			p = d.RunPod()
		}
	}
	// And that the kernel takes it later is yet another.
	c := p.Run(harness.Shell("until [ -e /go ]; do sleep 0.1; done; exec tail /dev/zero"), limited())
	if r, err := c.TryExec(60, "tail", "/dev/zero"); err != nil || r.Code != 137 {
		t.Errorf("a command over the limit: %v, %v", r, err)
	}
	c.Exec("touch", "/go")
	if s := c.WaitExit(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("over its limit after a command was: exit code %d, reason %q", s.ExitCode, s.Reason)
	}
}

// TestOOMKilledUnwatched: nobody was there to see it, and the reason is told all the same, if the kernel keeps it.
func TestOOMKilledUnwatched(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for name, kill := range map[string]func(){
		"daemon": d.Kill,
		"daemon and shim": func() {
			d.Kill()
			d.KillRole("shim")
		},
	} {
		c := p.Run(harness.Shell("until [ -e /go ]; do sleep 0.1; done; exec tail /dev/zero"), limited())
		pid := c.PID()
		kill()
		d.Must(os.WriteFile(fmt.Sprintf("/proc/%d/root/go", pid), nil, 0o644))
		harness.Eventually(t, "the kernel to kill it", func() error {
			now, err := ledger.Look(pid)
			return harness.Unless(err != nil || now.State == 'Z', "process %d runs", pid)
		})
		d.Start()
		blind := name == "daemon and shim" && !harness.ExitsAreKept()
		if s := c.WaitExit(); (s.ExitCode != 137 || s.Reason != "OOMKilled") && !(blind && s.Reason == "Unknown") {
			t.Errorf("%s dead: exit code %d, reason %q", name, s.ExitCode, s.Reason)
		}
	}
}
