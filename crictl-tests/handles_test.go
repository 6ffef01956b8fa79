package crictltests

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
)

// copyProgram makes the daemon start from another path from now on, as after an upgrade that puts each version into a folder of its own.
func (d *daemon) copyProgram(name string) {
	d.Helper()
	program, err := os.ReadFile(binary(d.binary))
	d.must(err)
	path := filepath.Join(d.dir, name)
	d.must(os.MkdirAll(filepath.Dir(path), 0o755))
	d.must(os.WriteFile(path, program, 0o755))
	d.binary, err = filepath.Rel(binFolder, path)
	d.must(err)
}

// hangingRuntime is runc whose exec never ends. It writes the file begun when it gets there.
func hangingRuntime(t *testing.T) (path, begun string) {
	t.Helper()
	dir := t.TempDir()
	path, begun = filepath.Join(dir, "runc-that-hangs"), filepath.Join(dir, "begun")
	script := fmt.Sprintf("#!/bin/sh\nfor word; do\n\tif [ \"$word\" = exec ]; then : >%s; exec sleep 1000; fi\ndone\nexec %s \"$@\"\n", begun, binary("runc"))
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
	d := newDaemon(t, withConfig(fmt.Sprintf("[runtimes.hangs]\npath = %q\n", runtime)))
	shim, logger := d.waitRole("shim", 0), d.waitRole("logger", 0)
	bystander := d.runPod().run(idle())
	d.kill()
	d.copyProgram("v2/cribox")
	d.start()
	c := d.runPodBy("hangs").run(idle())
	hangs := make(chan error, 1)
	go func() {
		_, err := c.tryExec(0, "true")
		hangs <- err
	}()
	eventually(t, "the exec to hang", func() error { _, err := os.Stat(begun); return err })
	c.pod.stop()
	if err := <-hangs; err == nil {
		t.Error("an exec whose runtime never ended has succeeded")
	}
	if now := d.role("shim"); now != shim {
		t.Errorf("the shim was %d and is %d: stopping a pod has ended it", shim, now)
	}
	if now := d.role("logger"); now != logger {
		t.Errorf("the logger was %d and is %d: stopping a pod has ended it", logger, now)
	}
	bystander.exec("true")
}

// takeNumber makes a process of the host that has this number, once that is free.
func takeNumber(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("a process with number %d", pid), func() error {
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
func inTarget(target *container) containerOption {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: target.id}
	}
}

func (c *container) specFile() string {
	return filepath.Join(c.state, "pods", c.pod.id, c.id, "config.json")
}

// TestSEC70TargetEnds: the container whose PID namespace was asked for ends, and a process of the host gets its number. No container runs in the
// host's PID namespace for that.
func TestSEC70TargetEnds(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	target := p.run(idle())
	debug := p.create(inTarget(target), idle())
	pid := target.pid()
	target.stop(0)
	target.waitExit()
	takeNumber(t, pid)
	err := debug.tryStart()
	wantCode(t, err, codes.FailedPrecondition, "target_id", target.id)
	if all := d.processesOf(debug.id); len(all) > 0 {
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
	for name, options := range map[string][]podOption{"plain": nil, "user namespace": {inUserNamespace}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			p := d.runPod(options...)
			target := p.run(idle())
			debug, old := p.create(inTarget(target), idle()), p.create(inTarget(target), idle())
			for _, c := range []*container{target, debug, old} {
				spec, err := os.ReadFile(c.specFile())
				d.must(err)
				if number := numberedPath.Find(spec); number != nil {
					t.Errorf("the spec of container %s names %s", c.config.Metadata.Name, number)
				}
			}
			spec, err := os.ReadFile(old.specFile())
			d.must(err)
			folder := filepath.Join(d.state, "pods", p.id)
			spec = bytes.ReplaceAll(spec, []byte(filepath.Join(folder, old.id, "pidns")), fmt.Appendf(nil, "/proc/%d/ns/pid", target.pid()))
			for _, kind := range []string{"ipc", "uts"} {
				spec = bytes.ReplaceAll(spec, []byte(filepath.Join(folder, "ns", kind)), fmt.Appendf(nil, "/proc/%d/ns/%s", p.pausePID(), kind))
			}
			d.must(os.WriteFile(old.specFile(), spec, 0o600))
			d.restart()
			for _, c := range []*container{debug, old} {
				c.start()
				for _, kind := range []string{"pid", "ipc", "uts"} {
					if mine, theirs := c.namespace(kind), target.namespace(kind); mine != theirs {
						t.Errorf("%s: the %s namespace is %s, the target's is %s", c.config.Metadata.Name, kind, mine, theirs)
					}
				}
			}
		})
	}
}

// namespace is the one that the container's first process lives in.
func (c *container) namespace(kind string) string {
	c.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.pid(), kind))
	c.must(err)
	return link
}
