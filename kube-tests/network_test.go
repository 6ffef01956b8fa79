package kubetests

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// onNode pins a pod to a node.
func onNode(n int) string { return fmt.Sprintf("nodeName: node%d", n) }

// awaitAnswer asks a URL from a pod until the answer holds a text.
func (s *space) awaitAnswer(from, url, want string) {
	s.Helper()
	s.await(url+" from "+from, func() error {
		out, err := s.try("exec", from, "--", "/toolbox", "get", "-timeout", "3s", url)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("answers %q", out)
		}
		return err
	})
}

// TestPodToPod: pods reach each other by address on one node and across nodes, and see each other's own address.
func TestPodToPod(t *testing.T) {
	s := newSpace(t)
	last := min(*nodes, 2)
	s.apply(pod("server", tools("web", "serve"), onNode(1)) + "---\n" + pod("near", tools("c", "wait"), onNode(1)) +
		"---\n" + pod("far", tools("c", "wait"), onNode(last)))
	s.ready("server", "near", "far")
	url := "http://" + s.get("pod/server", "{.status.podIP}") + ":8080/peer"
	for _, from := range []string{"near", "far"} {
		s.awaitAnswer(from, url, s.get("pod/"+from, "{.status.podIP}"))
	}
}

// TestServices: a Service's address and its node port lead to its pods, from a pod on each node.
func TestServices(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("server", tools("web", "serve", "-name", "behind-service"), onNode(1)) + "---\n" +
		`{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}}`)
	s.ready("server")
	ip, port := s.get("service/web", "{.spec.clusterIP}"), s.get("service/web", "{.spec.ports[0].nodePort}")
	for n := 1; n <= *nodes; n++ {
		name := fmt.Sprint("visitor-", n)
		s.apply(pod(name, tools("c", "wait"), onNode(n)))
		s.ready(name)
		s.awaitAnswer(name, "http://"+ip+"/", "behind-service")
		for to := 1; to <= *nodes; to++ {
			s.awaitAnswer(name, "http://"+s.nodeAddress(to)+":"+port+"/", "behind-service")
		}
	}
	s.awaitAnswer("server", "http://"+ip+"/", "behind-service") // from itself: hairpin
}

func (s *space) nodeAddress(n int) string {
	s.Helper()
	return s.get(fmt.Sprint("node/node", n), `{.status.addresses[?(@.type=="InternalIP")].address}`)
}

// TestAPIServerFromPod: a pod finds the API server by its environment, and its service account's token is taken.
func TestAPIServerFromPod(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("caller", tools("tools", "wait")))
	s.ready("caller")
	dir := "/var/run/secrets/kubernetes.io/serviceaccount/"
	host := strings.TrimSpace(s.exec("caller", "tools", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"))
	s.await("the API server from inside", func() error {
		out, err := s.try("exec", "caller", "--", "/toolbox", "get", "-ca", dir+"ca.crt", "-bearer-file", dir+"token", "https://"+host+"/version")
		if err == nil && !strings.Contains(out, "gitVersion") {
			err = fmt.Errorf("answers %q", out)
		}
		return err
	})
}

// TestHostPort: a port of the node leads to the pod, and is free again when the pod is gone.
func TestHostPort(t *testing.T) {
	s := newSpace(t)
	server := `{name: web, image: "docker.io/library/web:1", args: ["serve", "-name", "%s"], ports: [{containerPort: 8080, hostPort: 18080}]}`
	s.apply(pod("visitor", tools("c", "wait")))
	s.ready("visitor")
	url := "http://" + s.nodeAddress(1) + ":18080/"
	for _, name := range []string{"one", "two"} {
		s.apply(pod(name, fmt.Sprintf(server, name), onNode(1)))
		s.ready(name)
		s.awaitAnswer("visitor", url, name)
		s.kubectl("delete", "pod", name)
	}
	if out, err := s.try("exec", "visitor", "--", "/toolbox", "get", "-timeout", "3s", url); err == nil {
		t.Errorf("the port still answers %q although its pod is gone", out)
	}
}

// TestHostNamespaces: hostNetwork, hostPID, hostIPC, shareProcessNamespace and hostUsers do what they say.
func TestHostNamespaces(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("host", shell("sh", "exec sleep 1000000"), onNode(1), "hostNetwork: true", "hostPID: true", "hostIPC: true") + "---\n" +
		pod("shared", shell("a", "exec sleep 1000001")+", "+shell("b", "exec sleep 1000002"), onNode(1), "shareProcessNamespace: true") + "---\n" +
		pod("mapped", shell("sh", "exec sleep 1000000"), onNode(1), "hostUsers: false"))
	s.ready("host", "shared", "mapped")
	if ip := s.get("pod/host", "{.status.podIP}"); ip != s.nodeAddress(1) {
		t.Errorf("the pod on the host's network has address %s", ip)
	}
	_, host := s.pids(1, "host", "sh")
	for _, kind := range []string{"net", "pid", "ipc", "uts"} {
		if namespace(t, host, kind) != namespace(t, os.Getpid(), kind) {
			t.Errorf("hostNetwork, hostPID, hostIPC: the pod has a %s namespace of its own", kind)
		}
	}
	s.contains("processes seen by a", s.exec("shared", "a", "ps"), "sleep 1000002")
	_, mapped := s.pids(1, "mapped", "sh")
	if namespace(t, mapped, "user") == namespace(t, os.Getpid(), "user") {
		t.Error("hostUsers: false: the pod is in the host's user namespace")
	}
	if id := strings.Fields(s.exec("mapped", "sh", "cat", "/proc/self/uid_map")); len(id) != 3 || id[0] != "0" || id[1] == "0" {
		t.Errorf("hostUsers: false: root of the pod is mapped as %v", id)
	}
}
