package kills

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestFullStateFolder: where the state folder has no room, what needs some is refused as that, a container stays created, what runs and stops
// goes on, and all is well once there is room.
func TestFullStateFolder(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t)
	d.Must(os.MkdirAll(d.State, 0o711))
	d.Must(syscall.Mount("tmpfs", d.State, "tmpfs", 0, "size=8m,mode=0711"))
	t.Cleanup(func() { _ = syscall.Unmount(d.State, syscall.MNT_DETACH) })
	d.Start()
	d.Empty = d.Ledger()
	p := d.RunPod()
	runs, waits := p.Run(harness.Idle()), p.Create(harness.Idle())
	filler := filepath.Join(d.State, "filler")
	if err := os.WriteFile(filler, make([]byte, 16<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the state folder is not full: %v", err)
	}
	harness.WantCode(t, waits.TryStart(), codes.ResourceExhausted, "no space left")
	if s := waits.Status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("the container is %s, %s: %s", s.State, s.Reason, s.Message)
	}
	_, err := d.TryPod(d.PodConfig())
	harness.WantCode(t, err, codes.ResourceExhausted, "no space left")
	d.Restart()
	if s := waits.Status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a restart the container is %s, %s: %s", s.State, s.Reason, s.Message)
	}
	runs.Stop(0)
	runs.WaitExit()
	d.Must(os.Remove(filler))
	waits.Start()
	waits.Exec("true")
	d.RemoveAll()
	d.Shutdown()
	d.Empty = nil // it has ended, and its state folder is about to go
}

// TestHangupKeepsTheRuntime: a container goes on with the runtime that has started it, whatever its handler is called or does now.
func TestHangupKeepsTheRuntime(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := harness.NewDaemon(t, harness.WithHandler("other", ""))
	c := d.RunPodBy("other").Run(harness.Idle())
	dropIn := d.ConfigFile() + ".d"
	d.Must(os.Mkdir(dropIn, 0o755))
	d.Must(os.WriteFile(dropIn+"/other.toml", []byte(fmt.Sprintf("[runtimes.other]\npath = %q\n", broken)), 0o600))
	d.Hangup("configuration reloaded")
	c.Exec("true")
	d.Must(os.RemoveAll(dropIn))
	d.Must(os.WriteFile(d.ConfigFile(), []byte(harness.PrepareDaemon(t).Configuration()), 0o600)) // without the handler
	d.Hangup("configuration reloaded")
	c.Exec("true")
}

// stopRecord is what of a container's record a test changes.
func changeRecord(c *harness.Container, change func(record map[string]any)) {
	c.Helper()
	path := recordOf(c.Pod.Daemon, c.Pod, "state")
	text, err := os.ReadFile(path)
	c.Must(err)
	var r map[string]any
	c.Must(json.Unmarshal(text, &r))
	change(r["containers"].(map[string]any)[c.ID].(map[string]any))
	text, err = json.Marshal(r)
	c.Must(err)
	c.Must(os.WriteFile(path, text, 0o600))
}

// TestStopAndTheClock: somebody sets the clock while the daemon is away. To the daemon that comes back it is as if the date of the record were
// another. A stop has its grace all the same, and no more than that.
func TestStopAndTheClock(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		grace int64
		step  time.Duration
		runs  bool
	}{
		"forward": {3600, 24 * time.Hour, true},
		"back":    {5, -24 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := harness.NewDaemon(t)
			c := d.RunPod().Run(harness.Shell("trap 'echo asked' TERM; echo ready; while :; do sleep 1; done"))
			c.WaitLog("ready")
			ctx, cancel := context.WithCancel(context.Background())
			go func() {
				_, _ = d.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: row.grace})
			}()
			c.WaitLog("asked")
			cancel()
			d.Kill()
			changeRecord(c, func(r map[string]any) {
				by := int64(r["stop_by"].(float64))
				r["stop_by"] = by - int64(row.step)
			})
			d.Start()
			if !row.runs {
				if s := c.WaitExit(); s.ExitCode != 137 {
					t.Errorf("exit code %d, want 137", s.ExitCode)
				}
				return
			}
			c.Exec("true")
			c.Stop(0)
			c.WaitExit()
		})
	}
}

// TestPanicCostsOneRequest: a mistake in the code that stops, releases or removes costs the request that it happened to, not the daemon.
func TestPanicCostsOneRequest(t *testing.T) {
	t.Parallel()
	stop := func(c *harness.Container) error {
		_, err := c.Runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: c.ID})
		return err
	}
	for name, row := range map[string]struct {
		step string
		act  func(*harness.Container) error
		code codes.Code
	}{
		"stop": {"container.stopping", stop, codes.Internal},
		"exit": {"container.exited", func(c *harness.Container) error { return c.Kill() }, codes.OK},
		"stop of pods": {"pod.unplugged", func(c *harness.Container) error {
			_, err := c.Runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: c.Pod.ID})
			return err
		}, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := harness.NewDaemon(t, func(s *harness.Settings) { s.Binary = harness.Steps }, harness.WithEnv("CRIBOX_STEP_PANIC="+row.step))
			c := d.RunPod().Run(harness.Idle())
			err := row.act(c)
			if row.code != codes.OK {
				harness.WantCode(t, err, row.code, "panic")
			}
			harness.Eventually(t, "the panic to be in the log", func() error { return logged(d, "panic in", row.step) })
			if err := d.Process.Ended(); err != nil {
				t.Fatalf("the daemon has ended: %v", err)
			}
			d.Must(stop(c))
			c.WaitExit()
			c.Pod.Stop()
			c.Pod.Remove()
		})
	}
}

// TestShimCannotReadTaskYet: the shim cannot read what it has written of a container, and neither shim nor daemon takes it for ended.
func TestShimCannotReadTaskYet(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	pid := c.PID()
	d.Kill()
	d.KillRole("shim")
	back := unreadable(d, filepath.Join(d.State, "shim", c.ID, "task.json"))
	d.Start()
	if now := c.PID(); now != pid {
		t.Fatalf("the container's process was %d and is %d", pid, now)
	}
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s: %s %s", s.State, s.Reason, s.Message)
	}
	back()
	harness.Eventually(t, "commands to be possible", func() error { _, err := c.TryExec(10, "true"); return err })
	c.Stop(0)
	if s := c.WaitExit(); s.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", s.ExitCode)
	}
}
