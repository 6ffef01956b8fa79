package kubetests

import (
	"strings"
	"testing"
)

// TestProbes: each kind of probe makes a pod ready, unready when it fails, and restarts a container that is not alive.
func TestProbes(t *testing.T) {
	s := newSpace(t)
	quick := "periodSeconds: 1, failureThreshold: 1"
	s.apply(pod("http", image("c", "docker.io/library/web:1", "readinessProbe: {httpGet: {path: /healthz, port: 8080}, "+quick+"}")))
	s.apply(pod("tcp", image("c", "docker.io/library/web:1", "readinessProbe: {tcpSocket: {port: 8080}, "+quick+"}")))
	s.apply(pod("exec", image("c", "docker.io/library/busybox:1", `command: ["sh", "-c", "touch /tmp/ok; exec sleep 1000000"]`,
		`readinessProbe: {exec: {command: ["cat", "/tmp/ok"]}, `+quick+"}")))
	s.apply(pod("grpc", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "grpc-health"]`, "readinessProbe: {grpc: {port: 9090}, "+quick+"}")))
	s.ready("http", "tcp", "exec", "grpc")
	s.exec("exec", "c", "rm", "/tmp/ok")
	s.exec("grpc", "c", "touch", "/tmp/sick")
	s.wait("condition=Ready=false", "pod/exec", "pod/grpc")
	s.exec("exec", "c", "touch", "/tmp/ok")
	s.exec("grpc", "c", "rm", "/tmp/sick")
	s.ready("exec", "grpc")
}

// TestLiveness: a container that fails its liveness probe, by exit code or by taking too long, is restarted.
func TestLiveness(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("fails", image("c", "docker.io/library/busybox:1", `command: ["sleep", "1000000"]`,
		`livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 2}`)))
	s.apply(pod("hangs", image("c", "docker.io/library/busybox:1", `command: ["sleep", "1000000"]`,
		`livenessProbe: {exec: {command: ["sleep", "1000"]}, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 1}`)))
	for _, name := range []string{"fails", "hangs"} {
		s.wait("jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/"+name)
		s.awaitEvent(name, "Unhealthy: Liveness probe")
		s.awaitEvent(name, "Killing: ")
	}
}

// TestHooks: postStart runs before the container counts as running, preStop before it is told to stop.
func TestHooks(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("hooked", image("c", "docker.io/library/busybox:1", `command: ["sh", "-c", "exec sleep 1000000"]`,
		`volumeMounts: [{name: notes, mountPath: /notes}]`,
		`lifecycle: {postStart: {exec: {command: ["sh", "-c", "echo started >>/notes/a"]}}, preStop: {exec: {command: ["sh", "-c", "echo stopping >>/notes/a"]}}}`),
		"volumes: [{name: notes, hostPath: {path: /var/lib/cribox-kube/hooks, type: DirectoryOrCreate}}]", onNode(1)) +
		"---\n" + pod("reader", image("c", "docker.io/library/busybox:1", `command: ["sleep", "1000000"]`, `volumeMounts: [{name: notes, mountPath: /notes}]`),
		"volumes: [{name: notes, hostPath: {path: /var/lib/cribox-kube/hooks, type: DirectoryOrCreate}}]", onNode(1)))
	s.ready("hooked", "reader")
	if got := s.exec("reader", "c", "cat", "/notes/a"); got != "started\n" {
		t.Errorf("after the start the hooks have written %q", got)
	}
	s.kubectl("delete", "pod", "hooked")
	if got := s.exec("reader", "c", "cat", "/notes/a"); got != "started\nstopping\n" {
		t.Errorf("after the end the hooks have written %q", got)
	}
}

// TestTerminationMessage: what a container says about its end is in its status, from the file or else from its log.
func TestTerminationMessage(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("says", image("c", "docker.io/library/busybox:1", `command: ["sh", "-c", "echo the disk is full >/dev/termination-log; exit 7"]`), "restartPolicy: Never"))
	s.apply(pod("prints", image("c", "docker.io/library/busybox:1", `command: ["sh", "-c", "echo last words; exit 1"]`,
		"terminationMessagePolicy: FallbackToLogsOnError"), "restartPolicy: Never"))
	s.wait("jsonpath={.status.phase}=Failed", "pod/says", "pod/prints")
	for name, want := range map[string]string{"says": "the disk is full", "prints": "last words"} {
		if got := strings.TrimSpace(s.get("pod/"+name, "{.status.containerStatuses[0].state.terminated.message}")); got != want {
			t.Errorf("the message of %s is %q, want %q", name, got, want)
		}
	}
	if code := s.get("pod/says", "{.status.containerStatuses[0].state.terminated.exitCode}"); code != "7" {
		t.Errorf("the exit code is %s, want 7", code)
	}
}
