package lifecycle

import (
	"context"
	"os"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// hold makes the daemon wait at its next step, whichever that is, until release is called: the step log is a pipe that nobody reads.
func hold(d *harness.Daemon, log string) (release func()) {
	d.Helper()
	d.Must(os.Remove(log))
	d.Must(syscall.Mkfifo(log, 0o600))
	return func() {
		d.Helper()
		pipe, err := os.OpenFile(log, os.O_RDWR, 0) // with somebody who could read, nobody waits
		d.Must(err)
		d.Cleanup(func() { pipe.Close() })
		d.Must(os.Remove(log)) // later steps make a file of it
	}
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
	d, log := harness.SteppedDaemon(t)
	config, flat := d.PodConfig(), d.Ledger()
	release := hold(d, log)
	_, err := d.Runtime.RunPodSandbox(moment(t), &cri.RunPodSandboxRequest{Config: config})
	harness.WantCode(t, err, codes.DeadlineExceeded)
	release()
	p, err := d.TryPod(config)
	d.Must(err)
	if all := d.Listed(); len(all) != 1 || all[0].Id != p.ID || p.Status().State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("listed: %v", all)
	}
	p.Stop()
	p.Remove()
	d.WantFlat(flat)
}

// TestCreateTooLate is the same for a container.
func TestCreateTooLate(t *testing.T) {
	t.Parallel()
	d, log := harness.SteppedDaemon(t)
	p := d.RunPod()
	config, flat := p.ContainerConfig(harness.Idle()), d.Ledger()
	release := hold(d, log)
	_, err := d.Runtime.CreateContainer(moment(t), &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	harness.WantCode(t, err, codes.DeadlineExceeded)
	release()
	c, err := p.TryCreate(config)
	d.Must(err)
	all, err := d.Runtime.ListContainers(context.Background(), &cri.ListContainersRequest{})
	d.Must(err)
	if len(all.Containers) != 1 || all.Containers[0].Id != c.ID || c.Status().State != cri.ContainerState_CONTAINER_CREATED {
		t.Errorf("listed: %v", all.Containers)
	}
	c.Remove()
	d.WantFlat(flat)
}

// TestRunPodAfterCallerLeft: a pod whose caller does not ask again is finished and listed, so that a kubelet finds and removes it.
func TestRunPodAfterCallerLeft(t *testing.T) {
	t.Parallel()
	d, log := harness.SteppedDaemon(t)
	flat := d.Ledger()
	config := d.PodConfig()
	release := hold(d, log)
	_, err := d.Runtime.RunPodSandbox(moment(t), &cri.RunPodSandboxRequest{Config: config})
	harness.WantCode(t, err, codes.DeadlineExceeded)
	release()
	harness.Eventually(t, "the pod", func() error {
		all := d.Listed()
		return harness.Unless(len(all) == 1 && all[0].State == cri.PodSandboxState_SANDBOX_READY, "listed: %v", all)
	})
	d.RemoveListed()
	d.WantFlat(flat)
}

// TestPullTooLate: of an image that nobody waits for any more only verified blobs stay.
func TestPullTooLate(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	flat := d.Ledger()
	r := fixture.ForTest(t)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/", Stall: true, StallAfter: 100})
	_, err := d.PullWith(moment(t), r.Ref("app:1"), nil)
	harness.WantCode(t, err, codes.DeadlineExceeded)
	if all := d.ListImages(); len(all) > 0 {
		t.Errorf("listed: %v", all)
	}
	d.WantFlat(flat)
}

// TestStopTooLate: a container whose stop outlasts its caller has its grace all the same, and a later caller may shorten it.
func TestStopTooLate(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Shell("trap 'echo asked' TERM; echo ready; while :; do sleep 1; done"))
	c.WaitLog("ready")
	_, err := d.Runtime.StopContainer(moment(t), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 3600})
	harness.WantCode(t, err, codes.DeadlineExceeded)
	c.WaitLog("asked")
	if state := c.Status().State; state != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s before its grace is over", state)
	}
	c.Stop(0)
	if st := c.WaitExit(); st.ExitCode != 137 {
		t.Errorf("exit code %d", st.ExitCode)
	}
}
