package crictltests

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
)

// hold makes the daemon wait at its next step, whichever that is, until release is called: the step log is a pipe that nobody reads.
func (d *daemon) hold(log string) (release func()) {
	d.Helper()
	d.must(os.Remove(log))
	d.must(syscall.Mkfifo(log, 0o600))
	return func() {
		d.Helper()
		pipe, err := os.OpenFile(log, os.O_RDWR, 0) // with somebody who could read, nobody waits
		d.must(err)
		d.Cleanup(func() { pipe.Close() })
		d.must(os.Remove(log)) // later steps make a file of it
	}
}

// steppedDaemon is one whose steps can be held.
func steppedDaemon(t *testing.T, options ...option) (d *daemon, log string) {
	log = filepath.Join(shortFolder(t), "steps")
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(log)) })
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return newDaemon(t, append(options, func(s *settings) { s.binary = steps }, withEnv("CRIBOX_STEP_LOG="+log))...), log
}

// moment is how long a caller waits here for what takes longer.
func moment(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestRunPodTooLate: a pod that was not ready in time for its caller is what he gets when he asks again.
func TestRunPodTooLate(t *testing.T) {
	t.Parallel()
	d, log := steppedDaemon(t)
	config, flat := d.podConfig(), d.ledger()
	release := d.hold(log)
	_, err := d.runtime.RunPodSandbox(moment(t), &cri.RunPodSandboxRequest{Config: config})
	wantCode(t, err, codes.DeadlineExceeded)
	release()
	p, err := d.tryPod(config)
	d.must(err)
	if all := d.listed(); len(all) != 1 || all[0].Id != p.id || p.status().State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("listed: %v", all)
	}
	p.stop()
	p.remove()
	d.wantFlat(flat)
}

// TestCreateTooLate is the same for a container.
func TestCreateTooLate(t *testing.T) {
	t.Parallel()
	d, log := steppedDaemon(t)
	p := d.runPod()
	config, flat := p.containerConfig(idle()), d.ledger()
	release := d.hold(log)
	_, err := d.runtime.CreateContainer(moment(t), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	wantCode(t, err, codes.DeadlineExceeded)
	release()
	c, err := p.tryCreate(config)
	d.must(err)
	all, err := d.runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.must(err)
	if len(all.Containers) != 1 || all.Containers[0].Id != c.id || c.status().State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("listed: %v", all.Containers)
	}
	c.remove()
	d.wantFlat(flat)
}

// TestRunPodForNobody: a pod whose caller does not ask again is finished and listed, so that a kubelet finds and removes it.
func TestRunPodForNobody(t *testing.T) {
	t.Parallel()
	d, log := steppedDaemon(t)
	flat := d.ledger()
	config := d.podConfig()
	release := d.hold(log)
	_, err := d.runtime.RunPodSandbox(moment(t), &cri.RunPodSandboxRequest{Config: config})
	wantCode(t, err, codes.DeadlineExceeded)
	release()
	eventually(t, "the pod", func() error {
		all := d.listed()
		return unless(len(all) == 1 && all[0].State == cri.PodSandboxState_SANDBOX_READY, "listed: %v", all)
	})
	d.removeListed()
	d.wantFlat(flat)
}

// TestPullTooLate: of an image that nobody waits for any more only verified blobs stay.
func TestPullTooLate(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	flat := d.ledger()
	r := fixture.ForTest(t)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/", Stall: true, StallAfter: 100})
	_, err := d.pullWith(moment(t), r.Ref("app:1"), nil)
	wantCode(t, err, codes.DeadlineExceeded)
	if all := d.listImages(); len(all) > 0 {
		t.Errorf("listed: %v", all)
	}
	d.wantFlat(flat)
}

// TestStopTooLate: a container whose stop outlasts its caller has its grace all the same, and a later caller may shorten it.
func TestStopTooLate(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(shell("trap 'echo asked' TERM; echo ready; while :; do sleep 1; done"))
	c.waitLog("ready")
	_, err := d.runtime.StopContainer(moment(t), &cri.StopContainerRequest{ContainerId: c.id, Timeout: 3600})
	wantCode(t, err, codes.DeadlineExceeded)
	c.waitLog("asked")
	if state := c.status().State; state != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s before its grace is over", state)
	}
	c.stop(0)
	if st := c.waitExit(); st.ExitCode != 137 {
		t.Errorf("exit code %d", st.ExitCode)
	}
}
