package vmtests

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestFirstProcessEndsAtOnce starts containers whose first process is gone before anybody can look,
// while another of its session lives on: Linux 6.1 has an error of its own for that. The shim gets a
// tenth of a processor, a second at a time, so that it mostly comes too late.
func TestFirstProcessEndsAtOnce(t *testing.T) {
	notInSmoke(t)
	s := setups[0]
	s.use(t)
	pod := s.podWith(t, "brief", object{"namespace_options": object{"pid": 0}})
	quota := "systemctl set-property --runtime cribox-shim.scope CPUQuotaPeriodSec=%s CPUQuota=%s"
	t.Cleanup(func() { must(t, fmt.Sprintf(quota, "", "")) })
	must(t, fmt.Sprintf(quota, "1s", "10%"))
	for i := range 4 {
		id := container(t, "brief", pod, fmt.Sprint("main-", i), "sleep 60 & exit 3", nil)
		waitExited(t, id)
		if got := status(t, id, "exitCode"); got != "3" {
			t.Errorf("container %d has exit code %s, want 3", i, got)
		}
	}
}

// TestAppArmorPrefix names a loaded profile as critest does, with localhost/ before it.
func TestAppArmorPrefix(t *testing.T) {
	notInSmoke(t)
	s := setups[0]
	s.use(t)
	must(t, `printf 'profile cribox-vm-test flags=(attach_disconnected) {\n  file,\n  capability,\n  network,\n  signal,\n}\n' | apparmor_parser -r`)
	t.Cleanup(func() { must(t, "echo 'profile cribox-vm-test {}' | apparmor_parser -R") })
	pod := s.pod(t, "apparmor")
	for _, name := range []string{"cribox-vm-test", "localhost/cribox-vm-test"} {
		id := containerWith(t, "apparmor", pod, strings.ReplaceAll(name, "/", "-"), "exec sleep 1000",
			object{"security_context": object{"apparmor": object{"profile_type": 2, "localhost_ref": name}}})
		got := must(t, "cat /proc/$(crictl inspect -o go-template --template '{{.info.pid}}' "+id+")/attr/current")
		if got != "cribox-vm-test (enforce)" {
			t.Errorf("with %s the profile is %q", name, got)
		}
	}
}

// TestReload looks whether systemd keeps the limits of a container when it reads its units again.
func TestReload(t *testing.T) {
	notInSmoke(t)
	s := setups[0]
	s.use(t)
	id := container(t, "reload", s.pod(t, "reload"), "main", "exec sleep 1000",
		object{"memory_limit_in_bytes": 64 << 20, "unified": object{"memory.high": "32M"}})
	limits := "cd /sys/fs/cgroup/vmtests.slice/cribox-" + id + ".scope; grep . memory.max memory.high memory.swap.max pids.max"
	want := "memory.max:67108864\nmemory.high:33554432\nmemory.swap.max:0\npids.max:max"
	if got := must(t, limits); got != want {
		t.Errorf("limits are\n%s\nwant\n%s", got, want)
	}
	must(t, "systemctl daemon-reload")
	if got := must(t, limits); got != want {
		t.Errorf("after a reload limits are\n%s\nwant\n%s", got, want)
	}
}

// TestUnifiedValue asks for a limit that is no number.
func TestUnifiedValue(t *testing.T) {
	notInSmoke(t)
	forEachSetup(t, func(t *testing.T, s setup) {
		pod := s.pod(t, "unified")
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := try(ctx, fmt.Sprintf(`cat >/run/bad.json <<'END'
{"metadata": {"name": "bad"}, "image": {"image": "docker.io/library/busybox:1"},
 "linux": {"resources": {"unified": {"memory.high": "lots"}}}}
END
crictl create %s /run/bad.json /run/unified.json`, pod))
		if err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
			t.Errorf("the answer is %v, want InvalidArgument", err)
		}
	})
}

// TestUserNamespacesAreOffered: not before Linux 6.3, which has no tmpfs with mapped ids.
func TestUserNamespacesAreOffered(t *testing.T) {
	notInSmoke(t)
	setups[0].use(t)
	old := must(t, `uname -r | awk -F. '{ print ($1 < 6 || $1 == 6 && $2 < 3) }'`) == "1"
	if got := must(t, "cribox check || true"); strings.Contains(got, "not offered") != old {
		t.Errorf("cribox check says of it:\n%s", got)
	}
	if got := must(t, `crictl info | grep -c '"user_namespaces": *true' || true`); (got == "0") != old {
		t.Errorf("%s handlers offer user namespaces", got)
	}
}

// TestCrunFigures: crun with systemd keeps limits and processes in a cgroup inside the scope. Figures
// are complete with it and with runc: what is left of the memory, pressure, processes.
func TestCrunFigures(t *testing.T) {
	notInSmoke(t)
	for _, s := range []setup{{"systemd", "runc"}, {"systemd", "crun"}} {
		t.Run(s.String(), func(t *testing.T) {
			s.use(t)
			id := container(t, "figures", s.pod(t, "figures"), "main", "exec sleep 1000",
				object{"memory_limit_in_bytes": 64 << 20})
			got := must(t, fmt.Sprintf("crictl stats -o json --id %s | tr -d ' \n'", id))
			if !strings.Contains(got, `"availableBytes":{"value":"6`) {
				t.Errorf("of 64 MiB the memory that is left is not told: %s", got)
			}
			if n := strings.Count(got, `"psi":{`); n != 3 {
				t.Errorf("the pressure of %d resources is told, want processor, memory and disk: %s", n, got)
			}
			out := must(t, "crictl metricsp | tr -d ' \n'")
			if !strings.Contains(out, "container_processes") {
				t.Errorf("no metric tells the processes: %s", out)
			}
		})
	}
}
