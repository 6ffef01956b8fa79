package crictltests

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
)

// unreadable makes reading a file fail, but not for want of it, until back is called: a folder stands in its place.
func (d *daemon) unreadable(path string) (back func()) {
	d.Helper()
	d.must(os.Rename(path, path+".away"))
	d.must(os.Mkdir(path, 0o700))
	return func() {
		d.Helper()
		d.must(os.Remove(path))
		d.must(os.Rename(path+".away", path))
	}
}

func (d *daemon) recordOf(p *pod, name string) string {
	return filepath.Join(d.root, "pods", p.id, name)
}

// dropCopies is what a pod of an earlier version has of copies.
func (d *daemon) dropCopies(p *pod) {
	d.Helper()
	d.must(os.RemoveAll(filepath.Join(d.state, "records", p.id)))
}

func (d *daemon) wantLogged(words ...string) {
	d.Helper()
	if err := d.logged(words...); err != nil {
		d.Error(err)
	}
}

// logged says whether a line of the daemon's log has all of the words.
func (d *daemon) logged(words ...string) error {
	d.Helper()
	for line := range strings.Lines(hostFile(d, d.logFile())) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return nil
		}
	}
	return fmt.Errorf("the daemon's log has no line with %q", words)
}

// TestUnreadableRequest: a disk that cannot give back what a container, or its pod, was asked for ends nothing: the copy of it is used.
func TestUnreadableRequest(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]func(c *container) []string{
		"container": func(c *container) []string { return []string{c.id + ".asked"} },
		"pod":       func(*container) []string { return []string{"asked"} },
		"record":    func(*container) []string { return []string{"state"} },
		"all":       func(c *container) []string { return []string{"asked", c.id + ".asked", "state"} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t)
			c := d.runPod().run(idle())
			pid, before, podBefore := c.pid(), c.status(), c.pod.status()
			d.kill()
			for _, file := range files(c) {
				d.unreadable(d.recordOf(c.pod, file))
			}
			d.start()
			if now := c.pid(); now != pid {
				t.Fatalf("the container's process was %d and is %d", pid, now)
			}
			wantEqual(t, "container status", c.status(), before)
			wantEqual(t, "pod status", c.pod.status(), podBefore)
			c.exec("true")
			c.stop(0)
			c.waitExit()
			c.pod.stop()
			c.pod.remove()
		})
	}
}

// TestUnreadableRequestWithoutCopy: nothing is known of a request. What runs goes on, is listed by its id, and is what it was once the
// request can be read.
func TestUnreadableRequestWithoutCopy(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	pid, before, podBefore := c.pid(), c.status(), c.pod.status()
	d.kill()
	d.dropCopies(c.pod)
	backPod, backContainer := d.unreadable(d.recordOf(c.pod, "asked")), d.unreadable(d.recordOf(c.pod, c.id+".asked"))
	d.start()
	if now := c.pid(); now != pid {
		t.Fatalf("the container's process was %d and is %d", pid, now)
	}
	if s := c.status(); s.State != cri.ContainerState_CONTAINER_RUNNING || s.Metadata.GetName() == "" {
		t.Errorf("the container is listed as %v", s)
	}
	d.wantLogged("cannot be read", c.id)
	_, err := c.pod.tryCreate(c.pod.containerConfig(idle()))
	wantCode(t, err, codes.Unavailable, "read again")
	c.exec("true")
	backPod()
	backContainer()
	eventually(t, "the requests to be read", func() error {
		return unless(c.status().Metadata.GetName() == before.Metadata.Name && c.pod.status().Metadata.Name == podBefore.Metadata.Name, "not yet")
	})
	wantEqual(t, "container status", c.status(), before)
	wantEqual(t, "pod status", c.pod.status(), podBefore)
	c.pod.run(idle())
	c.kill()
	c.waitExit()
}

// TestUnreadableRecord: of a pod whose record cannot be read nothing is taken away, and the others do not notice.
func TestUnreadableRecord(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c, other := d.runPod().run(idle()), d.runPod().run(idle())
	pid, before := c.pid(), c.status()
	d.kill()
	d.dropCopies(c.pod)
	back := d.unreadable(d.recordOf(c.pod, "state"))
	d.start()
	d.wantLogged("cannot be read", c.pod.id)
	_, err := d.runtime.StopPodSandbox(context.Background(), &cri.StopPodSandboxRequest{PodSandboxId: c.pod.id})
	wantCode(t, err, codes.Unavailable, c.pod.id)
	other.exec("true")
	other.pod.stop()
	other.pod.remove()
	if now := c.pid(); now != pid {
		t.Fatalf("the container's process was %d and is %d", pid, now)
	}
	back()
	eventually(t, "the record to be read", func() error {
		_, err := d.runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.id})
		return err
	})
	wantEqual(t, "container status", c.status(), before)
	c.exec("true")
}

// TestExitsOfOtherPods: while the record of one pod cannot be written, because the disk does not answer, the exits of other
// pods are told. Its own is told when the disk answers again.
func TestExitsOfOtherPods(t *testing.T) {
	t.Parallel()
	d, log := steppedDaemon(t)
	stuck, other := d.runPod().run(idle()), d.runPod().run(idle())
	release := d.hangs(d.recordOf(stuck.pod, "state") + ".tmp") // which takes the record's place when it is written
	d.must(stuck.kill())
	eventually(t, "the exit to be delivered", func() error {
		if !strings.Contains(hostFile(t, log), "client.exit") {
			return errors.New("it is not yet")
		}
		return nil
	})
	d.must(other.kill())
	other.waitExit()
	if s := stuck.status().State; s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("what could not be recorded is shown: %s", s)
	}
	release()
	stuck.waitExit()
}

// hangs makes whoever opens path for writing wait until release is called, as on a disk that does not answer.
func (d *daemon) hangs(path string) (release func()) {
	d.Helper()
	d.must(syscall.Mkfifo(path, 0o600))
	release = sync.OnceFunc(func() {
		pipe, err := os.OpenFile(path, os.O_RDWR, 0)
		d.must(err)
		d.Cleanup(func() { pipe.Close() })
	})
	d.Cleanup(release) // or the daemon could not end
	return release
}
