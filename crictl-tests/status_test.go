package crictltests

import (
	"context"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPodStatusHasItsContainers: a pod's status carries those of its containers, and a time that none of it is older than.
func TestPodStatusHasItsContainers(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p, other := d.runPod(onHostNetwork), d.runPod(onHostNetwork)
	ask := func() *cri.PodSandboxStatusResponse {
		r, err := d.runtime.PodSandboxStatus(context.Background(), &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
		d.must(err)
		if len(r.Info) > 0 {
			t.Errorf("a status that is not verbose has info: %v", r.Info)
		}
		return r
	}
	before := time.Now().UnixNano()
	if r := ask(); len(r.ContainersStatuses) != 0 || r.Timestamp < before || r.Timestamp > time.Now().UnixNano() {
		t.Errorf("of an empty pod: %d containers, at %d", len(r.ContainersStatuses), r.Timestamp)
	}
	dead := p.run(shell("exit 3"))
	dead.waitExit()
	up, made := p.run(idle()), p.create(idle())
	other.create(idle())
	r := ask()
	want := []*container{made, up, dead} // the newest first
	if len(r.ContainersStatuses) != len(want) {
		t.Fatalf("%d containers: %v", len(r.ContainersStatuses), r.ContainersStatuses)
	}
	for i, c := range want {
		wantEqual(t, "the status of container "+c.config.Metadata.Name, r.ContainersStatuses[i], c.status())
	}
	wantEqual(t, "the status of the pod", r.Status, p.status())
}

// TestVerbose: what a person sees with crictl inspect and inspectp beside the status.
func TestVerbose(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	c := p.run(idle())
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
	d.crictlJSON(&pod, "inspectp", p.id)
	pause := d.processesOf(p.id)
	if i := pod.Info; i.Pid == 0 || i.Pid != pause[len(pause)-1].Pid && i.Pid != pause[0].Pid || i.Netns == "" || i.Cgroup == "" || i.State != "ready" ||
		len(i.IPs) == 0 || i.IPs[0] != p.ip() || i.Config.Metadata.Name != p.config.Metadata.Name {
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
	d.crictlJSON(&inside, "inspect", c.id)
	if i := inside.Info; i.Pid != c.pid() || i.SandboxID != p.id || i.Cgroup == "" || i.State != "running" || len(i.RuntimeSpec.Process.Args) != 2 ||
		i.Config.Metadata.Name != c.config.Metadata.Name {
		t.Errorf("crictl inspect: %+v", i)
	}
	p.stop() // and nothing of it is an error
	d.crictlJSON(&pod, "inspectp", p.id)
	d.crictlJSON(&inside, "inspect", c.id)
	if pod.Info.State != "notready" || inside.Info.State != "exited" {
		t.Errorf("after the stop the pod is %s, the container %s", pod.Info.State, inside.Info.State)
	}
}
