package vmtests

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestService does to the unit what administrators do, and looks whether the container stayed.
func TestService(t *testing.T) {
	forEachSetup(t, func(t *testing.T, s setup) {
		pod := s.pod(t, "service")
		id := container(t, "service", pod, "main", "exec sleep 100000", object{"memory_limit_in_bytes": 64 << 20})
		pid := must(t, "crictl inspect -o go-template --template '{{.info.pid}}' "+id)
		for _, step := range []struct{ name, script string }{
			{"nothing", "true"},
			{"daemon-reload", "systemctl daemon-reload"},
			{"restart", "systemctl restart cribox"},
			{"kill", killed("cribox.service", `kill -KILL $old`)},
			{"daemon-reexec", "systemctl daemon-reexec"},
		} {
			must(t, step.script)
			if got := must(t, "systemctl is-active cribox; crictl version | grep -c RuntimeName; "+
				"crictl exec "+id+" echo inside"); strings.Join(strings.Fields(got), " ") != "active 1 inside" {
				t.Errorf("after %s: %q", step.name, got)
			}
			if got := must(t, "crictl inspect -o go-template --template '{{.status.state}} {{.info.pid}}' "+id); got != "CONTAINER_RUNNING "+pid {
				t.Errorf("after %s: %s, want a running container of process %s", step.name, got, pid)
			}
		}
	})
}

// killed is a script that does something to the main process of the unit, and waits for another one that answers.
func killed(unit, act string) string {
	return fmt.Sprintf(`old=$(systemctl show -P MainPID %[1]s)
		%[2]s
		end=$((SECONDS + 60))
		until new=$(systemctl show -P MainPID %[1]s) && [ "$new" != 0 ] && [ "$new" != "$old" ] && crictl version >/dev/null 2>&1; do
			[ $SECONDS -lt $end ] || { echo "no new daemon for a minute" >&2; exit 1; }
			sleep 0.2
		done`, unit, act)
}

// TestOOMKilled looks for the reason of containers that the kernel ended, twenty times: systemd removes
// a scope together with its memory.events as soon as the last process is gone.
func TestOOMKilled(t *testing.T) {
	forEachSetup(t, func(t *testing.T, s setup) {
		times, reasons := 20, map[string]int{}
		if *smoke {
			times = 3
		}
		pod := s.pod(t, "oom")
		for i := range times {
			id := container(t, "oom", pod, fmt.Sprint("main-", i), "exec dd if=/dev/zero of=/dev/null bs=256M",
				object{"memory_limit_in_bytes": 32 << 20})
			waitExited(t, id)
			reasons[status(t, id, "reason")+" "+status(t, id, "exitCode")]++
		}
		if reasons["OOMKilled 137"] != times {
			t.Errorf("reasons of %d containers: %v", times, reasons)
		}
	})
}

// TestReboot reboots the machine under a running pod and looks at what the node has of it afterwards.
func TestReboot(t *testing.T) {
	notInSmoke(t)
	s := setups[0]
	s.use(t)
	pod := s.pod(t, "reboot")
	id := container(t, "reboot", pod, "main", "trap 'exit 0' TERM; while :; do sleep 1; done", nil)
	before := must(t, "cat /proc/sys/kernel/random/boot_id")
	// The machine may be gone before ssh has said so.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, _ = try(ctx, "systemctl reboot")
	waitRebooted(t, before)

	if got := must(t, "systemctl is-active cribox"); got != "active" {
		t.Errorf("after the reboot cribox.service is %s", got)
	}
	if got := must(t, "crictl inspectp -o go-template --template '{{.status.state}}' "+pod); got != "SANDBOX_NOTREADY" {
		t.Errorf("after the reboot the pod is %s", got)
	}
	if got := status(t, id, "state"); got != "CONTAINER_EXITED" {
		t.Errorf("after the reboot the container is %s", got)
	}
	must(t, "crictl rmp -af >&2")
	if got := must(t, "grep -c ' /run/cribox/.*overlay' /proc/mounts || true"); got != "0" {
		t.Errorf("%s mounts are left of the pod that was removed", got)
	}
	container(t, "again", s.pod(t, "again"), "main", "exec sleep 1000", nil)
}

// waitRebooted waits until the machine has another boot ID and cribox answers.
func waitRebooted(t *testing.T, before string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	for {
		id, err := try(ctx, "cat /proc/sys/kernel/random/boot_id; crictl version >/dev/null")
		if err == nil && id != before {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the machine was not back 8 minutes after its reboot: %v", err)
		case <-time.After(time.Second):
		}
	}
}
