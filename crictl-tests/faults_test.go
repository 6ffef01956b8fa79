package crictltests

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
)

// TestFullStateFolder: where the state folder has no room, what needs some is refused as that, a container stays created, what runs and stops
// goes on, and all is well once there is room.
func TestFullStateFolder(t *testing.T) {
	t.Parallel()
	d := prepareDaemon(t)
	d.must(os.MkdirAll(d.state, 0o711))
	d.must(syscall.Mount("tmpfs", d.state, "tmpfs", 0, "size=8m,mode=0711"))
	t.Cleanup(func() { _ = syscall.Unmount(d.state, syscall.MNT_DETACH) })
	d.start()
	d.empty = d.ledger()
	p := d.runPod()
	runs, waits := p.run(idle()), p.create(idle())
	filler := filepath.Join(d.state, "filler")
	if err := os.WriteFile(filler, make([]byte, 16<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the state folder is not full: %v", err)
	}
	wantCode(t, waits.tryStart(), codes.ResourceExhausted, "no space left")
	if s := waits.status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("the container is %s, %s: %s", s.State, s.Reason, s.Message)
	}
	_, err := d.tryPod(d.podConfig())
	wantCode(t, err, codes.ResourceExhausted, "no space left")
	d.restart()
	if s := waits.status(); s.State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("after a restart the container is %s, %s: %s", s.State, s.Reason, s.Message)
	}
	runs.stop(0)
	runs.waitExit()
	d.must(os.Remove(filler))
	waits.start()
	waits.exec("true")
	d.removeAll()
	d.shutdown()
	d.empty = nil // it has ended, and its state folder is about to go
}

// TestHangupKeepsTheRuntime: a container goes on with the runtime that has started it, whatever its handler is called or does now.
func TestHangupKeepsTheRuntime(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, withHandler("other", ""))
	c := d.runPodBy("other").run(idle())
	dropIn := d.configFile() + ".d"
	d.must(os.Mkdir(dropIn, 0o755))
	d.must(os.WriteFile(dropIn+"/other.toml", []byte(fmt.Sprintf("[runtimes.other]\npath = %q\n", broken)), 0o600))
	d.hangup("the configuration was read again")
	c.exec("true")
	d.must(os.RemoveAll(dropIn))
	d.must(os.WriteFile(d.configFile(), []byte(prepareDaemon(t).configuration()), 0o600)) // without the handler
	d.hangup("the configuration was read again")
	c.exec("true")
}

// stopRecord is what of a container's record a test changes.
func (c *container) changeRecord(change func(record map[string]any)) {
	c.Helper()
	path := c.recordOf(c.pod, "state")
	text, err := os.ReadFile(path)
	c.must(err)
	var r map[string]any
	c.must(json.Unmarshal(text, &r))
	change(r["containers"].(map[string]any)[c.id].(map[string]any))
	text, err = json.Marshal(r)
	c.must(err)
	c.must(os.WriteFile(path, text, 0o600))
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
			d := newDaemon(t)
			c := d.runPod().run(shell("trap 'echo asked' TERM; echo ready; while :; do sleep 1; done"))
			c.waitLog("ready")
			ctx, cancel := context.WithCancel(context.Background())
			go func() {
				_, _ = d.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id, Timeout: row.grace})
			}()
			c.waitLog("asked")
			cancel()
			d.kill()
			c.changeRecord(func(r map[string]any) {
				by := int64(r["stop_by"].(float64))
				r["stop_by"] = by - int64(row.step)
			})
			d.start()
			if !row.runs {
				if s := c.waitExit(); s.ExitCode != 137 {
					t.Errorf("exit code %d, want 137", s.ExitCode)
				}
				return
			}
			c.exec("true")
			c.stop(0)
			c.waitExit()
		})
	}
}

// TestPanicCostsOneRequest: a mistake in the code that stops, releases or removes costs the request that it happened to, not the daemon.
func TestPanicCostsOneRequest(t *testing.T) {
	t.Parallel()
	stop := func(c *container) error {
		_, err := c.runtime.StopContainer(context.Background(), &cri.StopContainerRequest{ContainerId: c.id})
		return err
	}
	for name, row := range map[string]struct {
		step string
		act  func(*container) error
		code codes.Code
	}{
		"stop": {"container.stopping", stop, codes.Internal},
		"exit": {"container.exited", func(c *container) error { return c.kill() }, codes.OK},
		"stop of pods": {"pod.unplugged", func(c *container) error {
			_, err := c.runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: c.pod.id})
			return err
		}, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, func(s *settings) { s.binary = steps }, withEnv("CRIBOX_STEP_PANIC="+row.step))
			c := d.runPod().run(idle())
			err := row.act(c)
			if row.code != codes.OK {
				wantCode(t, err, row.code, "panic")
			}
			eventually(t, "the panic to be in the log", func() error { return d.logged("panic in", row.step) })
			if err := d.process.ended(); err != nil {
				t.Fatalf("the daemon has ended: %v", err)
			}
			d.must(stop(c))
			c.waitExit()
			c.pod.stop()
			c.pod.remove()
		})
	}
}

// TestShimCannotTellYet: the shim cannot read what it has written of a container, and neither shim nor daemon takes it for ended.
func TestShimCannotTellYet(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	pid := c.pid()
	d.kill()
	d.killRole("shim")
	back := d.unreadable(filepath.Join(d.state, "shim", c.id, "task.json"))
	d.start()
	if now := c.pid(); now != pid {
		t.Fatalf("the container's process was %d and is %d", pid, now)
	}
	if s := c.status(); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s: %s %s", s.State, s.Reason, s.Message)
	}
	back()
	eventually(t, "commands to be possible", func() error { _, err := c.tryExec(10, "true"); return err })
	c.stop(0)
	if s := c.waitExit(); s.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", s.ExitCode)
	}
}
