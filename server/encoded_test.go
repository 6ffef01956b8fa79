package server

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// TestEncodedOnce checks that a client reads all fields of a message whose constant parts are
// encoded once, and the current values of the others.
func TestEncodedOnce(t *testing.T) {
	labels, annotations := map[string]string{"app": "web", "tier": "front"}, map[string]string{"seen": "today"}
	pod := sandbox.Pod{Encodings: &sandbox.Encodings{}, Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u", Attempt: 2},
		Labels: labels, Annotations: annotations}}
	pod.ID, pod.State, pod.PausePID, pod.Created, pod.Handler = "p", "ready", 1, 7, "kata"
	container := sandbox.Container{Encodings: &sandbox.Encodings{}, PodID: "p", Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "n", Attempt: 3}, Image: &runtimeapi.ImageSpec{Image: "i"},
		Labels: labels, Annotations: annotations}}
	container.ID, container.State, container.Created, container.ImageID, container.ImageRef = "c", "created", 8, "id", "ref"
	wantPod := &runtimeapi.PodSandbox{Id: "p", Metadata: pod.Config.Metadata, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: 7,
		Labels: labels, Annotations: annotations, RuntimeHandler: "kata"}
	wantContainer := &runtimeapi.Container{Id: "c", PodSandboxId: "p", Metadata: container.Config.Metadata, Image: container.Config.Image, ImageRef: "ref",
		ImageId: "id", CreatedAt: 8, Labels: labels, Annotations: annotations}
	for range 2 {
		wantRead(t, podItem(pod), wantPod)
		wantRead(t, containerItem(container), wantContainer)
		wantRead(t, podAttributes(pod), &runtimeapi.PodSandboxAttributes{Id: "p", Metadata: wantPod.Metadata, Labels: labels, Annotations: annotations})
		wantRead(t, containerAttributes(container),
			&runtimeapi.ContainerAttributes{Id: "c", Metadata: wantContainer.Metadata, Labels: labels, Annotations: annotations})
		pod.PausePID, wantPod.State = 0, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		container.State, wantContainer.State = "running", runtimeapi.ContainerState_CONTAINER_RUNNING
	}
}

// wantRead compares what a client decodes. It also compares the size, by which lists are divided
// and refused.
func wantRead[M proto.Message](t *testing.T, told, want M) {
	t.Helper()
	b, err := proto.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	read := want.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, read); err != nil || !proto.Equal(read, want) {
		t.Errorf("a client reads %v, want %v (%v)", read, want, err)
	}
	if proto.Size(told) != len(b) || len(b) != proto.Size(want) {
		t.Errorf("%d bytes, said to be %d, want %d", len(b), proto.Size(told), proto.Size(want))
	}
}
