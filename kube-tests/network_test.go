package kubetests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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

// TestServices: a Service's address and its node port lead to its pods, from a pod on each node and from the nodes themselves.
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
		s.awaitAnswerOnNode(n, ip+":80", "behind-service")
		for to := 1; to <= *nodes; to++ {
			s.awaitAnswer(name, "http://"+s.nodeAddress(to)+":"+port+"/", "behind-service")
			s.awaitAnswerOnNode(n, s.nodeAddress(to)+":"+port, "behind-service")
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

// onHost runs a command where a node's cribox runs.
func onHost(node int, command ...string) (string, error) {
	holder, err := os.ReadFile(filepath.Join(stateDir, fmt.Sprintf("holder%d.pid", node)))
	if err != nil {
		return "", err
	}
	out, err := exec.Command("nsenter", append([]string{"-t", strings.TrimSpace(string(holder)), "-m", "-n", "--"}, command...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s on node%d: %w: %s", strings.Join(command, " "), node, err, out)
	}
	return string(out), err
}

// askOnNode asks HOST:PORT for / from the node itself.
func askOnNode(node int, address string) (string, error) {
	host, port, _ := strings.Cut(address, ":")
	return onHost(node, "timeout", "5", "bash", "-c", fmt.Sprintf(`exec 3<>/dev/tcp/%s/%s && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3`, host, port))
}

// awaitAnswerOnNode asks HOST:PORT from the node itself until the answer holds a text.
func (s *space) awaitAnswerOnNode(node int, address, want string) {
	s.Helper()
	s.await(fmt.Sprintf("%s from node%d", address, node), func() error {
		out, err := askOnNode(node, address)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("answers %q", out)
		}
		return err
	})
}

// TestHostPort: on each node a port of the node leads to the pod, from pods, from the other node and from the node itself,
// and is free again when the pod is gone.
func TestHostPort(t *testing.T) {
	s := newSpace(t)
	server := func(name string) string {
		return image("web", "docker.io/library/web:1", `args: ["serve", "-name", "`+name+`"]`, "ports: [{containerPort: 8080, hostPort: 18080}]")
	}
	s.apply(pod("visitor", tools("c", "wait")))
	s.ready("visitor")
	for node := 1; node <= *nodes; node++ {
		address := s.nodeAddress(node) + ":18080"
		url := "http://" + address + "/"
		for _, name := range []string{fmt.Sprint("one-", node), fmt.Sprint("two-", node)} {
			s.apply(pod(name, server(name), onNode(node)))
			s.ready(name)
			s.awaitAnswer("visitor", url, name)
			for from := 1; from <= *nodes; from++ {
				s.awaitAnswerOnNode(from, address, name)
			}
			s.kubectl("delete", "pod", name)
		}
		if out, err := s.try("exec", "visitor", "--", "/toolbox", "get", "-timeout", "3s", url); err == nil {
			t.Errorf("the port still answers %q although its pod is gone", out)
		}
	}
}

// TestHostIP: a port of one address of the node is not one of its others.
func TestHostIP(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("shy", image("web", "docker.io/library/web:1", `args: ["serve", "-name", "shy"]`,
		"ports: [{containerPort: 8080, hostPort: 18081, hostIP: 127.0.0.1}]"), onNode(1)))
	s.ready("shy")
	s.awaitAnswerOnNode(1, "127.0.0.1:18081", "shy")
	if out, err := askOnNode(1, s.nodeAddress(1)+":18081"); err == nil {
		t.Errorf("the port of 127.0.0.1 answers %q on the node's address", out)
	}
}

// TestNames: host names, and what a pod's hosts and resolv.conf are told to be.
func TestNames(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("plain", sleeper("c")) + "---\n" +
		pod("named", sleeper("c"), "hostname: box", "subdomain: shelf", `hostAliases: [{ip: 192.0.2.7, hostnames: [seven, "seven.example"]}]`) + "---\n" +
		pod("full", sleeper("c"), "hostname: box", "subdomain: shelf", "setHostnameAsFQDN: true") + "---\n" +
		pod("overridden", sleeper("c"), "hostnameOverride: any.name.example") + "---\n" +
		pod("resolving", sleeper("c"), "dnsPolicy: None", `dnsConfig: {nameservers: [192.0.2.53], searches: [here.example], options: [{name: ndots, value: "3"}, {name: edns0}]}`))
	s.ready("plain", "named", "full", "overridden", "resolving")
	domain := "box.shelf." + s.name + ".svc.cluster.local"
	for _, c := range []struct{ pod, command, want string }{
		{"plain", "hostname", "plain"},
		{"plain", "grep plain /etc/hosts | tr '\t' ' '", s.get("pod/plain", "{.status.podIP}") + " plain"},
		{"named", "hostname", "box"},
		{"named", "grep box /etc/hosts | tr '\t' ' '", s.get("pod/named", "{.status.podIP}") + " " + domain + " box"},
		{"named", "grep seven /etc/hosts | tr '\t' ' '", "192.0.2.7 seven seven.example"},
		{"full", "hostname", domain},
		{"full", "cat /etc/hostname", domain},
		{"overridden", "hostname", "any.name.example"},
		{"resolving", "grep -v options /etc/resolv.conf | sort", "nameserver 192.0.2.53\nsearch here.example"},
		{"resolving", "grep options /etc/resolv.conf | tr ' ' '\\n' | sort | xargs", "edns0 ndots:3 options"}, // the kubelet keeps no order
	} {
		if got := strings.TrimSpace(s.exec(c.pod, "c", "sh", "-c", c.command)); got != c.want {
			t.Errorf("%s: %s: %q, want %q", c.pod, c.command, got, c.want)
		}
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
	if _, shared := s.pids(1, "shared", "a"); namespace(t, shared, "pid") == namespace(t, os.Getpid(), "pid") {
		t.Error("shareProcessNamespace: the pod's processes are in the host's PID namespace")
	}
	_, mapped := s.pids(1, "mapped", "sh")
	if namespace(t, mapped, "user") == namespace(t, os.Getpid(), "user") {
		t.Error("hostUsers: false: the pod is in the host's user namespace")
	}
	if id := strings.Fields(s.exec("mapped", "sh", "cat", "/proc/self/uid_map")); len(id) != 3 || id[0] != "0" || id[1] == "0" {
		t.Errorf("hostUsers: false: root of the pod is mapped as %v", id)
	}
}

// TestUserNamespaceVolumes: what a pod with users of its own writes into a volume has on the disk the owner that it has inside.
func TestUserNamespaceVolumes(t *testing.T) {
	s := newSpace(t)
	data := "volumeMounts: [{name: data, mountPath: /data}, {name: config, mountPath: /config}]"
	s.kubectl("create", "configmap", "settings", "--from-literal=color=blue")
	s.apply(pod("mapped", sleeper("root", data)+", "+sleeper("user", data, "securityContext: {runAsUser: 1000}"), onNode(1), "hostUsers: false",
		"securityContext: {fsGroup: 2000}", "volumes: [{name: data, emptyDir: {}}, {name: config, configMap: {name: settings}}]"))
	s.ready("mapped")
	s.exec("mapped", "root", "touch", "/data/of-root")
	s.exec("mapped", "user", "touch", "/data/of-user")
	dir := filepath.Join(clusterDir, "node1", "kubelet", "pods", s.get("pod/mapped", "{.metadata.uid}"), "volumes", "kubernetes.io~empty-dir", "data")
	for file, want := range map[string]string{"of-root": "0:2000", "of-user": "1000:2000"} {
		if got := strings.TrimSpace(s.exec("mapped", "root", "stat", "-c", "%u:%g", "/data/"+file)); got != want {
			t.Errorf("inside %s is of %s, want %s", file, got, want)
		}
		if got, err := onHost(1, "stat", "-c", "%u:%g", filepath.Join(dir, file)); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("on the disk %s is of %s, want %s: %v", file, got, want, err)
		}
	}
	if got := s.exec("mapped", "user", "cat", "/config/color"); got != "blue" {
		t.Errorf("the config map has %q", got)
	}
	_, pid := s.pids(1, "mapped", "user")
	if id := hostUID(t, pid); id < 65536 {
		t.Errorf("user 1000 of the pod is user %d of the host", id)
	}
}

// hostUID is the user that a process has outside of its user namespace.
func hostUID(t *testing.T, pid int) uint32 {
	t.Helper()
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}
