package crictltests

import (
	"fmt"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestContainersOfAPodShare: one address, one localhost, one IPC namespace, one /dev/shm.
func TestContainersOfAPodShare(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	web := p.run(d.tool("serve", "-addr", ":8080", "-name", "web"), called("web"))
	api := p.run(d.tool("serve", "-addr", ":9090", "-name", "api"), called("api"))
	shellA, shellB := p.run(idle()), p.run(idle())

	for _, c := range []*container{shellA, shellB} {
		if got := c.exec("ip", "-4", "addr", "show", "eth0"); !strings.Contains(got, p.ip()+"/") {
			t.Errorf("a container does not have the pod's address %s:\n%s", p.ip(), got)
		}
	}
	if got := web.exec("/toolbox", "get", "-wait", "20s", "http://127.0.0.1:9090/"); strings.TrimSpace(got) != "api" {
		t.Errorf("web asks localhost:9090: %q", got)
	}
	if got := api.exec("/toolbox", "get", "-wait", "20s", "http://localhost:8080/"); strings.TrimSpace(got) != "web" {
		t.Errorf("api asks localhost:8080: %q", got)
	}
	web.exec("/toolbox", "sysv-send", "4711", "over System V")
	if got := api.exec("/toolbox", "sysv-receive", "4711"); got != "over System V\n" {
		t.Errorf("System V queue: %q", got)
	}
	web.exec("/toolbox", "mq-send", "/queue", "over POSIX")
	if got := api.exec("/toolbox", "mq-receive", "/queue"); got != "over POSIX\n" {
		t.Errorf("POSIX queue: %q", got)
	}
	shellA.exec("sh", "-c", "echo through memory > /dev/shm/note")
	if got := shellB.exec("cat", "/dev/shm/note"); got != "through memory\n" {
		t.Errorf("/dev/shm: %q", got)
	}
	// What is not shared: files and processes.
	shellA.exec("touch", "/tmp/mine")
	if r, err := shellB.tryExec(10, "test", "-e", "/tmp/mine"); err != nil || r.code == 0 {
		t.Errorf("a container sees another's files: %v %v", r, err)
	}
	if got := shellB.exec("cat", "/proc/1/cmdline"); !strings.HasPrefix(got, "sleep") {
		t.Errorf("process 1 is %q", got)
	}
}

// TestQueuesAreThePods: a message outlives the container that sent it.
func TestQueuesAreThePods(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	if s := p.run(d.tool("sysv-send", "12", "left behind")).waitExit(); s.ExitCode != 0 {
		t.Fatalf("send: exit code %d", s.ExitCode)
	}
	c := p.run(d.tool("sysv-receive", "12"))
	c.waitExit()
	if got := text(c.finalLog(), "stdout"); got != "left behind\n" {
		t.Errorf("got %q", got)
	}
}

func TestPodsReachEachOther(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	server, client := d.runPod(), d.runPod()
	server.run(d.tool("serve", "-addr", ":8080", "-name", "far"))
	c := client.run(d.tool("serve", "-addr", ":8080", "-name", "near"))
	if server.ip() == client.ip() {
		t.Fatalf("both pods have %s", server.ip())
	}
	if got := c.exec("/toolbox", "get", "-wait", "20s", fmt.Sprintf("http://%s:8080/", server.ip())); strings.TrimSpace(got) != "far" {
		t.Errorf("the other pod says %q", got)
	}
	eventually(t, "the host to reach the pod", func() error {
		body, err := get(fmt.Sprintf("http://%s:8080/", server.ip()))
		if err == nil {
			err = unless(strings.TrimSpace(body) == "far", "it says %q", body)
		}
		return err
	})
}

// TestSharedPidNamespace: processes of one container are seen by the other, and zombies do not pile up.
func TestSharedPidNamespace(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	a := p.run(running("sleep", "12345"))
	b := p.run(idle())
	eventually(t, "the other container's process", func() error { // it is runc's init for a moment
		got := b.exec("ps")
		return unless(strings.Contains(got, "sleep 12345"), "it is not seen:\n%s", got)
	})
	b.exec("sh", "-c", "(sh -c 'exit 0' &) ; true")
	eventually(t, "pause to reap what lost its parent", func() error {
		got := b.exec("ps")
		return unless(!strings.Contains(got, "[sh]"), "a zombie:\n%s", got)
	})
	a.stop(0)
	if s := a.status(); s.ExitCode != 137 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	b.exec("true")
}
