package kubetests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestJourney follows one pod through every station: API server and etcd, scheduler, kubelet, CRI, image, sandbox, runc, namespaces,
// and back to the API server.
func TestJourney(t *testing.T) {
	s := newSpace(t)
	s.apply(`{apiVersion: v1, kind: Pod, metadata: {name: traveller, labels: {from: manifest}}, spec: {
		containers: [{name: web, image: "docker.io/library/web:1", ports: [{containerPort: 8080}]}]}}`)
	if s.get("pod/traveller", "{.metadata.labels.from}") != "manifest" {
		t.Error("the API server has stored another manifest")
	}
	s.ready("traveller")
	s.awaitEvent("traveller", "Scheduled: Successfully assigned "+s.name+"/traveller to node")
	s.awaitEvent("traveller", "Pulled: ")
	s.awaitEvent("traveller", "Started: ")
	n := s.nodeOf("traveller")
	if id := s.get("pod/traveller", "{.status.containerStatuses[0].containerID}"); !strings.HasPrefix(id, "cribox://") {
		t.Errorf("container id %q does not name cribox", id)
	}
	if id := s.get("pod/traveller", "{.status.containerStatuses[0].imageID}"); !strings.Contains(id, "@sha256:") {
		t.Errorf("image id %q is no digest", id)
	}
	pause, container := s.pids(n, "traveller", "web")
	s.wantPodAddress(pause, s.get("pod/traveller", "{.status.podIP}"))
	for kind, with := range map[string]string{"net": "pause", "ipc": "pause", "uts": "pause", "mnt": "own", "pid": "own"} {
		host, p, c := namespace(t, os.Getpid(), kind), namespace(t, pause, kind), namespace(t, container, kind)
		switch {
		case c == host || p == host:
			t.Errorf("%s: the pod is in the host's namespace", kind)
		case with == "pause" && c != p:
			t.Errorf("%s: the container does not share the pod's namespace", kind)
		case with == "own" && c == p:
			t.Errorf("%s: the container has no namespace of its own", kind)
		}
	}
	if bundles, _ := filepath.Glob(filepath.Join(stateDir, fmt.Sprintf("n%d", n), "shim", "*", "bundle", "config.json")); len(bundles) < 2 {
		t.Errorf("runc has bundles %v, want those of pause and container", bundles)
	}
}

func namespace(t *testing.T, pid int, kind string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return link
}
