package kills

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// unreadable makes reading a file fail, but not for want of it, until back is called: a folder stands in its place.
func unreadable(d *harness.Daemon, path string) (back func()) {
	d.Helper()
	d.Must(os.Rename(path, path+".away"))
	d.Must(os.Mkdir(path, 0o700))
	return func() {
		d.Helper()
		d.Must(os.Remove(path))
		d.Must(os.Rename(path+".away", path))
	}
}

func recordOf(d *harness.Daemon, p *harness.Pod, name string) string {
	return filepath.Join(d.Root, "pods", p.ID, name)
}

// dropCopies is what a pod of an earlier version has of copies.
func dropCopies(d *harness.Daemon, p *harness.Pod) {
	d.Helper()
	d.Must(os.RemoveAll(filepath.Join(d.State, "records", p.ID)))
}

func wantLogged(d *harness.Daemon, words ...string) {
	d.Helper()
	if err := logged(d, words...); err != nil {
		d.Error(err)
	}
}

// logged says whether a line of the daemon's log has all of the words.
func logged(d *harness.Daemon, words ...string) error {
	d.Helper()
	for line := range strings.Lines(harness.HostFile(d, d.LogFile())) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return nil
		}
	}
	return fmt.Errorf("the daemon's log has no line with %q", words)
}

// TestUnreadableRequest: a disk that cannot give back what a container, or its pod, was asked for ends nothing: the copy of it is used.
func TestUnreadableRequest(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]func(c *harness.Container) []string{
		"container": func(c *harness.Container) []string { return []string{c.ID + ".asked"} },
		"pod":       func(*harness.Container) []string { return []string{"asked"} },
		"record":    func(*harness.Container) []string { return []string{"state"} },
		"all":       func(c *harness.Container) []string { return []string{"asked", c.ID + ".asked", "state"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := harness.NewDaemon(t)
			c := d.RunPod().Run(harness.Idle())
			pid, before, podBefore := c.PID(), c.Status(), c.Pod.Status()
			d.Kill()
			for _, file := range files(c) {
				unreadable(d, recordOf(d, c.Pod, file))
			}
			d.Start()
			if now := c.PID(); now != pid {
				t.Fatalf("the container's process was %d and is %d", pid, now)
			}
			harness.WantEqual(t, "container status", c.Status(), before)
			harness.WantEqual(t, "pod status", c.Pod.Status(), podBefore)
			c.Exec("true")
			c.Stop(0)
			c.WaitExit()
			c.Pod.Stop()
			c.Pod.Remove()
		})
	}
}

// TestUnreadableRequestWithoutCopy: nothing is known of a request. What runs goes on, is listed by its id, and is what it was once the
// request can be read.
func TestUnreadableRequestWithoutCopy(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	pid, before, podBefore := c.PID(), c.Status(), c.Pod.Status()
	d.Kill()
	dropCopies(d, c.Pod)
	backPod, backContainer := unreadable(d, recordOf(d, c.Pod, "asked")), unreadable(d, recordOf(d, c.Pod, c.ID+".asked"))
	d.Start()
	if now := c.PID(); now != pid {
		t.Fatalf("the container's process was %d and is %d", pid, now)
	}
	if s := c.Status(); s.State != cri.ContainerState_CONTAINER_RUNNING || s.Metadata.GetName() == "" {
		t.Errorf("the container is listed as %v", s)
	}
	wantLogged(d, "cannot be read", c.ID)
	_, err := c.Pod.TryCreate(c.Pod.ContainerConfig(harness.Idle()))
	harness.WantCode(t, err, codes.Unavailable, "read again")
	c.Exec("true")
	backPod()
	backContainer()
	harness.Eventually(t, "the requests to be read", func() error {
		return harness.Unless(c.Status().Metadata.GetName() == before.Metadata.Name && c.Pod.Status().Metadata.Name == podBefore.Metadata.Name, "not yet")
	})
	harness.WantEqual(t, "container status", c.Status(), before)
	harness.WantEqual(t, "pod status", c.Pod.Status(), podBefore)
	c.Pod.Run(harness.Idle())
	c.Kill()
	c.WaitExit()
}

// TestUnreadableRecord: of a pod whose record cannot be read nothing is taken away, and the others do not notice.
func TestUnreadableRecord(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c, other := d.RunPod().Run(harness.Idle()), d.RunPod().Run(harness.Idle())
	pid, before := c.PID(), c.Status()
	d.Kill()
	dropCopies(d, c.Pod)
	back := unreadable(d, recordOf(d, c.Pod, "state"))
	d.Start()
	wantLogged(d, "cannot be read", c.Pod.ID)
	_, err := d.Runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: c.Pod.ID})
	harness.WantCode(t, err, codes.Unavailable, c.Pod.ID)
	other.Exec("true")
	other.Pod.Stop()
	other.Pod.Remove()
	if now := c.PID(); now != pid {
		t.Fatalf("the container's process was %d and is %d", pid, now)
	}
	back()
	harness.Eventually(t, "the record to be read", func() error {
		_, err := d.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.ID})
		return err
	})
	harness.WantEqual(t, "container status", c.Status(), before)
	c.Exec("true")
}

// TestExitsOfOtherPods: while the record of one pod cannot be written, because the disk does not answer, the exits of other
// pods are told. Its own is told when the disk answers again.
func TestExitsOfOtherPods(t *testing.T) {
	t.Parallel()
	d, log := harness.SteppedDaemon(t)
	stuck, other := d.RunPod().Run(harness.Idle()), d.RunPod().Run(harness.Idle())
	release := hangs(d, recordOf(d, stuck.Pod, "state")+".tmp") // which takes the record's place when it is written
	d.Must(stuck.Kill())
	harness.Eventually(t, "the exit to be delivered", func() error {
		if !strings.Contains(harness.HostFile(t, log), "client.exit") {
			return errors.New("it is not yet")
		}
		return nil
	})
	d.Must(other.Kill())
	other.WaitExit()
	if s := stuck.Status().State; s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("what could not be recorded is shown: %s", s)
	}
	release()
	stuck.WaitExit()
}

// hangs makes whoever opens path for writing wait until release is called, as on a disk that does not answer.
func hangs(d *harness.Daemon, path string) (release func()) {
	d.Helper()
	d.Must(syscall.Mkfifo(path, 0o600))
	release = sync.OnceFunc(func() {
		pipe, err := os.OpenFile(path, os.O_RDWR, 0)
		d.Must(err)
		d.Cleanup(func() { pipe.Close() })
	})
	d.Cleanup(release) // or the daemon could not end
	return release
}
