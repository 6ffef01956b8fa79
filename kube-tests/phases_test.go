package kubetests

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestPhases: Pending, Running, Succeeded and Failed, each with its reason.
func TestPhases(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("pending", tools("c", "wait"), "nodeSelector: {no: such-node}") + "---\n" + pod("running", tools("c", "wait")) + "---\n" +
		pod("succeeded", tools("c", "exit", "0"), "restartPolicy: Never") + "---\n" + pod("failed", tools("c", "exit", "9"), "restartPolicy: Never") + "---\n" +
		pod("looping", tools("c", "exit", "1")) + "---\n" + pod("nothing", image("c", "docker.io/library/busybox:1", `command: ["/no/such/program"]`), "restartPolicy: Never"))
	for name, phase := range map[string]string{"pending": "Pending", "running": "Running", "succeeded": "Succeeded", "failed": "Failed", "nothing": "Failed"} {
		s.wait("jsonpath={.status.phase}="+phase, "pod/"+name)
	}
	state := "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}"
	for name, want := range map[string]string{"succeeded": "Completed 0", "failed": "Error 9", "nothing": "StartError 128"} {
		if got := s.get("pod/"+name, state); got != want {
			t.Errorf("%s ended with %q, want %q", name, got, want)
		}
	}
	s.contains("message of a program that is not there", s.get("pod/nothing", "{.status.containerStatuses[0].state.terminated.message}"), "/no/such/program")
	s.awaitValue("pod/pending", `{.status.conditions[?(@.type=="PodScheduled")].reason}`, "Unschedulable")
	s.wait("jsonpath={.status.containerStatuses[0].state.waiting.reason}=CrashLoopBackOff", "pod/looping") // watched: at first it lasts a second
}

// TestStaticPod: a manifest in the kubelet's folder is a pod without any API server's doing, and goes with its file.
func TestStaticPod(t *testing.T) {
	s := newSpace(t)
	file := filepath.Join(clusterDir, "node1", "manifests", "static.yaml")
	manifest := fmt.Sprintf(`--- # what begins with a brace is JSON to the kubelet
{apiVersion: v1, kind: Pod, metadata: {name: static, namespace: %s}, spec: {terminationGracePeriodSeconds: 2, containers: [%s]}}`, s.name, tools("c", "wait"))
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(file) })
	s.await("the mirror pod", func() error { _, err := s.try("get", "pod", "static-node1"); return err })
	s.ready("static-node1")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.wait("delete", "pod/static-node1")
	s.await("the end of the pod in cribox", func() error { // in any state: the kubelet itself kills what is in the cgroup of a pod
		if left := s.crictl(1, "pods", "-q", "--namespace", s.name); left != "" {
			return fmt.Errorf("it still has %s", left)
		}
		return nil
	})
}
