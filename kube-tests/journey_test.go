package kubetests

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestJourney follows one pod through every station: API server and etcd, scheduler, kubelet, CRI, registry, image, sandbox, runc,
// namespaces, and back to the API server.
func TestJourney(t *testing.T) {
	s := newSpace(t)
	const ref = "docker.io/library/whiteouts:1" // used by nobody else
	for n := 1; n <= *nodes; n++ {
		if images := s.crictl(n, "images", "-q", ref); images != "" {
			s.crictl(n, "rmi", ref)
		}
	}
	asked := strings.Count(s.fetch("http://"+registry+"/requests"), "\n")
	s.apply(pod("traveller", image("web", ref, `command: ["sh", "-c", "cd /w && for f in *; do echo $f; done; exec sleep 1000000"]`)))
	if stored := s.stored("pods/" + s.name + "/traveller"); !strings.Contains(stored, ref) {
		t.Errorf("etcd has stored %q", stored)
	}
	s.ready("traveller")
	s.awaitEvent("traveller", "Scheduled: Successfully assigned "+s.name+"/traveller to node")
	s.awaitEvent("traveller", "Pulled: ")
	s.awaitEvent("traveller", "Started: ")
	n := s.nodeOf("traveller")
	s.contains("etcd, about the end of the journey,", s.stored("pods/"+s.name+"/traveller"), fmt.Sprint("node", n))
	if id := s.get("pod/traveller", "{.status.containerStatuses[0].containerID}"); !strings.HasPrefix(id, "cribox://") {
		t.Errorf("container id %q does not name cribox", id)
	}
	_, digest, _ := strings.Cut(s.get("pod/traveller", "{.status.containerStatuses[0].imageID}"), "@")
	requests := strings.SplitAfter(s.fetch("http://"+registry+"/requests"), "\n")
	s.wantPulled("whiteouts", digest, strings.Join(requests[asked:], ""))
	s.awaitLog("traveller", "web", "opaque\n")
	if got := s.kubectl("logs", "traveller"); got != "again\ndir\nkept\nopaque\n" {
		t.Errorf("the layers together have %q", got)
	}
	pause, container := s.pids(n, "traveller", "web")
	s.wantPodAddress(pause, s.get("pod/traveller", "{.status.podIP}"))
	s.wantNamespaces(pause, container)
	if bundles, _ := filepath.Glob(filepath.Join(stateDir, fmt.Sprintf("n%d", n), "shim", "*", "bundle", "config.json")); len(bundles) < 2 {
		t.Errorf("runc has bundles %v, want those of pause and container", bundles)
	}
}

// stored asks etcd for what is below /registry/ under a key.
func (s *space) stored(key string) string {
	s.Helper()
	pki := filepath.Join(clusterDir, "pki")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "apiserver.crt"), filepath.Join(pki, "apiserver.key"))
	if err != nil {
		s.Fatal(err)
	}
	authority, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		s.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}}
	defer client.CloseIdleConnections()
	question, _ := json.Marshal(map[string][]byte{"key": []byte("/registry/" + key)})
	answer, err := client.Post("https://127.0.0.1:22379/v3/kv/range", "application/json", bytes.NewReader(question))
	if err != nil {
		s.Fatal(err)
	}
	defer answer.Body.Close()
	var found struct{ Kvs []struct{ Value []byte } }
	if err := json.NewDecoder(answer.Body).Decode(&found); err != nil || len(found.Kvs) != 1 {
		s.Fatalf("etcd has %d of %s, %v", len(found.Kvs), key, err)
	}
	return string(found.Kvs[0].Value)
}

// wantPulled asserts that requests of the distribution protocol fetched an image: the tag became the digest, which names
// a manifest of the image spec, and whatever it names was fetched, unless another image had brought that layer.
func (s *space) wantPulled(name, digest, requests string) {
	s.Helper()
	raw := s.fetch("http://" + registry + "/v2/library/" + name + "/manifests/1")
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(raw))); got != digest {
		s.Errorf("the image id is %s, the registry's manifest is %s", digest, got)
	}
	var manifest struct {
		SchemaVersion int
		Config        struct{ MediaType, Digest string }
		Layers        []struct{ Digest string }
	}
	if err := json.Unmarshal([]byte(raw), &manifest); err != nil || manifest.SchemaVersion != 2 || manifest.Config.MediaType != "application/vnd.oci.image.config.v1+json" {
		s.Fatalf("no manifest of the image spec: %v in %s", err, raw)
	}
	if !regexp.MustCompile(`(?m)^(GET|HEAD) /v2/library/` + name + `/manifests/(1|` + digest + `) 200$`).MatchString(requests) {
		s.Errorf("the manifest was not asked for:\n%s", requests)
	}
	s.contains("the requests", requests, "GET /v2/library/"+name+"/blobs/"+manifest.Config.Digest+" 200\n")
	for _, l := range manifest.Layers[1:] { // the lowest is busybox
		s.contains("the requests", requests, "GET /v2/library/"+name+"/blobs/"+l.Digest+" 200\n")
	}
}

// wantNamespaces compares each kind of namespace of the host, the pod and its container.
func (s *space) wantNamespaces(pause, container int) {
	s.Helper()
	cgroup := "host" // as on every runtime, with cgroups of version 1
	if unifiedCgroups() {
		cgroup = "own"
	}
	for kind, whose := range map[string]string{
		"net": "pod", "ipc": "pod", "uts": "pod", "mnt": "own", "pid": "own", "cgroup": cgroup, "user": "host", "time": "host",
	} {
		host, p, c := namespace(s.T, os.Getpid(), kind), namespace(s.T, pause, kind), namespace(s.T, container, kind)
		switch {
		case whose == "host" && c != host:
			s.Errorf("%s: the container is not in the host's namespace", kind)
		case whose != "host" && c == host:
			s.Errorf("%s: the container is in the host's namespace", kind)
		case whose == "pod" && c != p:
			s.Errorf("%s: the container does not share the pod's namespace", kind)
		case whose == "own" && c == p:
			s.Errorf("%s: the container has no namespace of its own", kind)
		}
	}
}

// unifiedCgroups: the host has cgroups of version 2.
func unifiedCgroups() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func namespace(t *testing.T, pid int, kind string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return link
}
