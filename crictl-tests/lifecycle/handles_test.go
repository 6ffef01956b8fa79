package lifecycle

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// copyProgram makes the daemon start from another path from now on, as after an upgrade that puts each version into a folder of its own.
func copyProgram(d *harness.Daemon, name string) {
	d.Helper()
	path := filepath.Join(d.Dir, name)
	d.Must(os.MkdirAll(filepath.Dir(path), 0o755))
	for _, file := range []string{"", "-helper"} {
		program, err := os.ReadFile(harness.Binary(d.Binary) + file)
		d.Must(err)
		d.Must(os.WriteFile(path+file, program, 0o755))
	}
	d.Binary = path
}

// hangingRuntime is runc whose exec never ends. It writes the file begun when it gets there.
func hangingRuntime(t *testing.T) (path, begun string) {
	t.Helper()
	dir := t.TempDir()
	path, begun = filepath.Join(dir, "runc-that-hangs"), filepath.Join(dir, "begun")
	script := fmt.Sprintf("#!/bin/sh\nfor word; do\n\tif [ \"$word\" = exec ]; then : >%s; exec sleep 1000; fi\ndone\nexec %s \"$@\"\n", begun, harness.Binary("runc"))
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, begun
}

// TestUpgradeKeepsTheShim: the daemon runs from another path than the shim, and an exec hangs. Stopping the pod ends the runtime that hangs,
// and never the shim, which has the pod's lock open too.
func TestUpgradeKeepsTheShim(t *testing.T) {
	t.Parallel()
	runtime, begun := hangingRuntime(t)
	d := harness.NewDaemon(t, harness.WithTop(`exec = "runtime"`), harness.WithConfig(fmt.Sprintf("[runtimes.hangs]\npath = %q\n", runtime)))
	shim, logger := d.WaitRole("shim", 0), d.WaitRole("logger", 0)
	bystander := d.RunPod().Run(harness.Idle())
	d.Kill()
	copyProgram(d, "v2/cribox")
	d.Start()
	c := d.RunPodBy("hangs").Run(harness.Idle())
	hangs := make(chan error, 1)
	go func() {
		_, err := c.TryExec(0, "true")
		hangs <- err
	}()
	harness.Eventually(t, "the exec to hang", func() error { _, err := os.Stat(begun); return err })
	c.Pod.Stop()
	if err := <-hangs; err == nil {
		t.Error("an exec whose runtime never ended has succeeded")
	}
	if now := d.Role("shim"); now != shim {
		t.Errorf("the shim was %d and is %d: stopping a pod has ended it", shim, now)
	}
	if now := d.Role("logger"); now != logger {
		t.Errorf("the logger was %d and is %d: stopping a pod has ended it", logger, now)
	}
	bystander.Exec("true")
}

// takeNumber makes a process of the host that has this number, once that is free.
func takeNumber(t *testing.T, pid int) {
	t.Helper()
	harness.Eventually(t, fmt.Sprintf("a process with number %d", pid), func() error {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0o644); err != nil {
			return err
		}
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			return err
		}
		if cmd.Process.Pid != pid {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return fmt.Errorf("it is %d", cmd.Process.Pid)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return nil
	})
}

// inTarget makes a container share the PID namespace of another one.
func inTarget(target *harness.Container) harness.ContainerOption {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: target.ID}
	}
}

func specFile(c *harness.Container) string {
	return filepath.Join(c.State, "pods", c.Pod.ID, c.ID, "config.json")
}

// TestSEC70TargetEnds: the container whose PID namespace was asked for ends, and a process of the host gets its number. No container runs in the
// host's PID namespace for that.
func TestSEC70TargetEnds(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	target := p.Run(harness.Idle())
	debug := p.Create(inTarget(target), harness.Idle())
	pid := target.PID()
	target.Stop(0)
	target.WaitExit()
	takeNumber(t, pid)
	err := debug.TryStart()
	harness.WantCode(t, err, codes.FailedPrecondition, "target_id", target.ID)
	if all := d.ProcessesOf(debug.ID); len(all) > 0 {
		ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", all[0].Pid))
		host, _ := os.Readlink("/proc/self/ns/pid")
		t.Errorf("the container runs in PID namespace %s, the host's is %s", ns, host)
	}
}

var numberedPath = regexp.MustCompile(`/proc/\d+/`)

// TestSEC70NoNumbers: no spec names a process, a container that waits for its start through a restart joins the namespaces that were meant, and
// so does one whose spec an earlier version has written.
func TestSEC70NoNumbers(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]harness.PodOption{"plain": nil, "user namespace": {harness.InUserNamespace}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := harness.NewDaemon(t)
			p := d.RunPod(options...)
			target := p.Run(harness.Idle())
			debug, old := p.Create(inTarget(target), harness.Idle()), p.Create(inTarget(target), harness.Idle())
			for _, c := range []*harness.Container{target, debug, old} {
				spec, err := os.ReadFile(specFile(c))
				d.Must(err)
				if number := numberedPath.Find(spec); number != nil {
					t.Errorf("the spec of container %s names %s", c.Config.Metadata.Name, number)
				}
			}
			spec, err := os.ReadFile(specFile(old))
			d.Must(err)
			folder := filepath.Join(d.State, "pods", p.ID)
			spec = bytes.ReplaceAll(spec, []byte(filepath.Join(folder, old.ID, "pidns")), fmt.Appendf(nil, "/proc/%d/ns/pid", target.PID()))
			for _, kind := range []string{"ipc", "uts"} {
				spec = bytes.ReplaceAll(spec, []byte(filepath.Join(folder, "ns", kind)), fmt.Appendf(nil, "/proc/%d/ns/%s", p.PausePID(), kind))
			}
			d.Must(os.WriteFile(specFile(old), spec, 0o600))
			d.Restart()
			for _, c := range []*harness.Container{debug, old} {
				c.Start()
				for _, kind := range []string{"pid", "ipc", "uts"} {
					if mine, theirs := namespaceOf(c, kind), namespaceOf(target, kind); mine != theirs {
						t.Errorf("%s: the %s namespace is %s, the target's is %s", c.Config.Metadata.Name, kind, mine, theirs)
					}
				}
			}
		})
	}
}

// namespaceOf is the one that the container's first process lives in.
func namespaceOf(c *harness.Container, kind string) string {
	c.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.PID(), kind))
	c.Must(err)
	return link
}
