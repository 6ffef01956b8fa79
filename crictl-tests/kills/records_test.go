package kills

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestRecordsOfAnEarlierVersion starts on the records that an earlier version wrote in format 1
// before the machine lost its power: a ready pod with a running, an exited and a created container,
// and a stopped pod. All are known by what they were, none runs, and all can be removed.
func TestRecordsOfAnEarlierVersion(t *testing.T) {
	d := harness.NewDaemon(t)
	d.Kill()
	d.Must(os.CopyFS(filepath.Join(d.Root, "pods"), os.DirFS("testdata/format1/pods")))
	d.Start()
	ctx := context.Background()
	pods, err := d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	d.Must(err)
	created := map[string]int64{"visitor": 1796021852984291208, "web": 1796021851809048789}
	for _, p := range pods.Items {
		name := p.Metadata.Name
		if p.CreatedAt != created[name] || p.State != cri.PodSandboxState_SANDBOX_NOTREADY ||
			p.Metadata.Uid != "demo-"+name || p.Metadata.Namespace != "demo" || p.Labels["app"] != name {
			t.Errorf("pod %v", p)
		}
		delete(created, name)
	}
	if len(created) != 0 {
		t.Errorf("not listed: %v", created)
	}
	type fate struct {
		state cri.ContainerState
		code  int32
	}
	want := map[string]fate{
		"ended": {cri.ContainerState_CONTAINER_EXITED, 7}, "sidecar": {cri.ContainerState_CONTAINER_EXITED, 137},
		"server": {cri.ContainerState_CONTAINER_EXITED, 137}, "shell": {cri.ContainerState_CONTAINER_EXITED, 255},
		"waits": {cri.ContainerState_CONTAINER_EXITED, 255},
	}
	containers, err := d.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	d.Must(err)
	for _, c := range containers.Containers {
		reply, err := d.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		d.Must(err)
		s := reply.Status
		if got := (fate{s.State, s.ExitCode}); got != want[s.Metadata.Name] {
			t.Errorf("container %s is %v, want %v: %v", s.Metadata.Name, got, want[s.Metadata.Name], s)
		}
		if (s.Metadata.Name == "ended") != (s.Metadata.Attempt == 3 && s.Annotations["a"] == "b" && s.FinishedAt == 1796021855154299066) && s.Metadata.Name != "waits" {
			t.Errorf("container %v", s)
		}
		delete(want, s.Metadata.Name)
	}
	if len(want) != 0 {
		t.Errorf("not listed: %v", want)
	}
	for _, p := range pods.Items {
		_, err := d.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		d.Must(err)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Root, "pods", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
