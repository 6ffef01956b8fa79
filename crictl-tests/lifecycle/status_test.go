package lifecycle

import (
	"context"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestPodStatusHasItsContainers: a pod's status carries those of its containers, and a time that none of it is older than.
func TestPodStatusHasItsContainers(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p, other := d.RunPod(harness.OnHostNetwork), d.RunPod(harness.OnHostNetwork)
	ask := func() *cri.PodSandboxStatusResponse {
		r, err := d.Runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
		d.Must(err)
		if len(r.Info) > 0 {
			t.Errorf("a status that is not verbose has info: %v", r.Info)
		}
		return r
	}
	before := time.Now().UnixNano()
	if r := ask(); len(r.ContainersStatuses) != 0 || r.Timestamp < before || r.Timestamp > time.Now().UnixNano() {
		t.Errorf("of an empty pod: %d containers, at %d", len(r.ContainersStatuses), r.Timestamp)
	}
	dead := p.Run(harness.Shell("exit 3"))
	dead.WaitExit()
	up, made := p.Run(harness.Idle()), p.Create(harness.Idle())
	other.Create(harness.Idle())
	r := ask()
	want := []*harness.Container{made, up, dead} // the newest first
	if len(r.ContainersStatuses) != len(want) {
		t.Fatalf("%d containers: %v", len(r.ContainersStatuses), r.ContainersStatuses)
	}
	for i, c := range want {
		harness.WantEqual(t, "the status of container "+c.Config.Metadata.Name, r.ContainersStatuses[i], c.Status())
	}
	harness.WantEqual(t, "the status of the pod", r.Status, p.Status())
}

// TestVerbose: what a person sees with crictl inspect and inspectp beside the status.
func TestVerbose(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	c := p.Run(harness.Idle())
	var pod struct {
		Info struct {
			Pid    int
			Netns  string
			Cgroup string
			State  string
			IPs    []string
			Config struct {
				Metadata struct{ Name string }
			}
		}
	}
	d.CrictlJSON(&pod, "inspectp", p.ID)
	pause := d.ProcessesOf(p.ID)
	if i := pod.Info; i.Pid == 0 || i.Pid != pause[len(pause)-1].Pid && i.Pid != pause[0].Pid || i.Netns == "" || i.Cgroup == "" || i.State != "ready" ||
		len(i.IPs) == 0 || i.IPs[0] != p.IP() || i.Config.Metadata.Name != p.Config.Metadata.Name {
		t.Errorf("crictl inspectp: %+v", i)
	}
	var inside struct {
		Info struct {
			Pid         int
			SandboxID   string
			Cgroup      string
			State       string
			RuntimeSpec struct {
				Process struct{ Args []string }
			}
			Config struct {
				Metadata struct{ Name string }
			}
		}
	}
	d.CrictlJSON(&inside, "inspect", c.ID)
	if i := inside.Info; i.Pid != c.PID() || i.SandboxID != p.ID || i.Cgroup == "" || i.State != "running" || len(i.RuntimeSpec.Process.Args) != 2 ||
		i.Config.Metadata.Name != c.Config.Metadata.Name {
		t.Errorf("crictl inspect: %+v", i)
	}
	p.Stop() // and nothing of it is an error
	d.CrictlJSON(&pod, "inspectp", p.ID)
	d.CrictlJSON(&inside, "inspect", c.ID)
	if pod.Info.State != "notready" || inside.Info.State != "exited" {
		t.Errorf("after the stop the pod is %s, the container %s", pod.Info.State, inside.Info.State)
	}
}
