package lifecycle

import (
	"fmt"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestContainersOfAPodShare: one address, one localhost, one IPC namespace, one /dev/shm.
func TestContainersOfAPodShare(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	web := p.Run(d.Tool("serve", "-addr", ":8080", "-name", "web"), harness.Called("web"))
	api := p.Run(d.Tool("serve", "-addr", ":9090", "-name", "api"), harness.Called("api"))
	shellA, shellB := p.Run(harness.Idle()), p.Run(harness.Idle())

	for _, c := range []*harness.Container{shellA, shellB} {
		if got := c.Exec("ip", "-4", "addr", "show", "eth0"); !strings.Contains(got, p.IP()+"/") {
			t.Errorf("a container does not have the pod's address %s:\n%s", p.IP(), got)
		}
	}
	if got := web.Exec("/toolbox", "get", "-wait", "20s", "http://127.0.0.1:9090/"); strings.TrimSpace(got) != "api" {
		t.Errorf("web asks localhost:9090: %q", got)
	}
	if got := api.Exec("/toolbox", "get", "-wait", "20s", "http://localhost:8080/"); strings.TrimSpace(got) != "web" {
		t.Errorf("api asks localhost:8080: %q", got)
	}
	web.Exec("/toolbox", "sysv-send", "4711", "over System V")
	if got := api.Exec("/toolbox", "sysv-receive", "4711"); got != "over System V\n" {
		t.Errorf("System V queue: %q", got)
	}
	web.Exec("/toolbox", "mq-send", "/queue", "over POSIX")
	if got := api.Exec("/toolbox", "mq-receive", "/queue"); got != "over POSIX\n" {
		t.Errorf("POSIX queue: %q", got)
	}
	shellA.Exec("sh", "-c", "echo through memory > /dev/shm/note")
	if got := shellB.Exec("cat", "/dev/shm/note"); got != "through memory\n" {
		t.Errorf("/dev/shm: %q", got)
	}
	// What is not shared: files and processes.
	shellA.Exec("touch", "/tmp/mine")
	if r, err := shellB.TryExec(10, "test", "-e", "/tmp/mine"); err != nil || r.Code == 0 {
		t.Errorf("a container sees another's files: %v %v", r, err)
	}
	if got := shellB.Exec("cat", "/proc/1/cmdline"); !strings.HasPrefix(got, "sleep") {
		t.Errorf("process 1 is %q", got)
	}
}

// TestQueuesAreThePods: a message outlives the container that sent it.
func TestQueuesAreThePods(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	if s := p.Run(d.Tool("sysv-send", "12", "left behind")).WaitExit(); s.ExitCode != 0 {
		t.Fatalf("send: exit code %d", s.ExitCode)
	}
	c := p.Run(d.Tool("sysv-receive", "12"))
	c.WaitExit()
	if got := harness.TextOf(c.FinalLog(), "stdout"); got != "left behind\n" {
		t.Errorf("got %q", got)
	}
}

func TestPodsReachEachOther(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	server, client := d.RunPod(), d.RunPod()
	server.Run(d.Tool("serve", "-addr", ":8080", "-name", "far"))
	c := client.Run(d.Tool("serve", "-addr", ":8080", "-name", "near"))
	if server.IP() == client.IP() {
		t.Fatalf("both pods have %s", server.IP())
	}
	if got := c.Exec("/toolbox", "get", "-wait", "20s", fmt.Sprintf("http://%s:8080/", server.IP())); strings.TrimSpace(got) != "far" {
		t.Errorf("the other pod says %q", got)
	}
	harness.Eventually(t, "the host to reach the pod", func() error {
		body, err := harness.HTTPGet(fmt.Sprintf("http://%s:8080/", server.IP()))
		if err == nil {
			err = harness.Unless(strings.TrimSpace(body) == "far", "it says %q", body)
		}
		return err
	})
}

// TestSharedPidNamespace: processes of one container are seen by the other, and zombies do not pile up.
func TestSharedPidNamespace(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod(func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD })
	a := p.Run(harness.Running("sleep", "12345"))
	b := p.Run(harness.Idle())
	harness.Eventually(t, "the other container's process", func() error { // it is runc's init for a moment
		got := b.Exec("ps")
		return harness.Unless(strings.Contains(got, "sleep 12345"), "it is not seen:\n%s", got)
	})
	b.Exec("sh", "-c", "(sh -c 'exit 0' &) ; true")
	harness.Eventually(t, "pause to reap what lost its parent", func() error {
		got := b.Exec("ps")
		return harness.Unless(!strings.Contains(got, "[sh]"), "a zombie:\n%s", got)
	})
	a.Stop(0)
	if s := a.Status(); s.ExitCode != 137 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	b.Exec("true")
}
