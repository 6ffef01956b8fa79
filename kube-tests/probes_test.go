package kubetests

import (
	"fmt"
	"strings"
	"testing"
)

// TestProbes: each kind of probe makes a pod ready, unready when it fails, and restarts a container that is not alive.
func TestProbes(t *testing.T) {
	s := newSpace(t)
	quick := "periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60" // what fails does so by its answer, not because the machine is slow
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

// TestLiveness: a container that fails its liveness probe, by exit code, by HTTP status or by taking too long, is restarted.
func TestLiveness(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("fails", sleeper("c", `livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 60}`)) + "---\n" +
		pod("hangs", sleeper("c", `livenessProbe: {exec: {command: ["sleep", "1000"]}, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 1}`)) + "---\n" +
		pod("missing", image("c", "docker.io/library/web:1", "livenessProbe: {httpGet: {path: /nowhere, port: 8080}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 60}")))
	for name, why := range map[string]string{"fails": "Liveness probe failed", "hangs": "timed out", "missing": "statuscode: 404"} {
		s.awaitRestart(name)
		s.awaitEvent(name, "Unhealthy: Liveness probe")
		s.awaitEvent(name, why)
		s.awaitEvent(name, "Killing: ")
	}
}

// awaitRestart waits until a pod's container was started again.
func (s *space) awaitRestart(pod string) {
	s.Helper()
	s.await("a restart of "+pod, func() error {
		count, err := s.try("get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
		if err == nil && (count == "" || count == "0") {
			err = fmt.Errorf("it was restarted %q times", count)
		}
		return err
	})
}

// TestStartupProbe: liveness has to wait for it, and a container that never comes up is restarted.
func TestStartupProbe(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("slow", sleeper("c", `startupProbe: {exec: {command: ["cat", "/tmp/up"]}, periodSeconds: 1, failureThreshold: 1000, timeoutSeconds: 60}`,
		`livenessProbe: {exec: {command: ["cat", "/tmp/up"]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 60}`)) + "---\n" +
		pod("never", sleeper("c", `startupProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 60}`)))
	s.awaitEvent("slow", "Unhealthy: Startup probe failed")
	s.awaitEvent("never", "failed startup probe, will be restarted")
	if started := s.get("pod/slow", "{.status.containerStatuses[0].started} {.status.containerStatuses[0].restartCount}"); started != "false 0" {
		t.Errorf("a slow container: started and restarts are %s", started)
	}
	s.exec("slow", "c", "touch", "/tmp/up")
	s.ready("slow")
	s.awaitValue("pod/slow", "{.status.containerStatuses[0].started} {.status.containerStatuses[0].restartCount}", "true 0")
}

// TestHooks: postStart runs before the container counts as running, preStop before it is told to stop; as a command, or as a request.
func TestHooks(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("recorder", image("c", "docker.io/library/web:1", "readinessProbe: {tcpSocket: {port: 8080}}"))) // a hook asks once
	s.ready("recorder")
	ip := s.get("pod/recorder", "{.status.podIP}")
	call := func(text string) string {
		return "{httpGet: {host: " + ip + ", port: 8080, path: \"/print?text=" + text + "\"}}"
	}
	command := func(text string) string {
		return `{exec: {command: ["sh", "-c", "wget -qO- http://` + ip + `:8080/print?text=` + text + `"]}}`
	}
	hooked := func(name string, hook func(string) string, text string) string {
		return pod(name, shell("c", "trap 'exit 0' TERM; while true; do sleep 0.1; done",
			"lifecycle: {postStart: "+hook(text+"-start")+", preStop: "+hook(text+"-stop")+"}"), "terminationGracePeriodSeconds: 60")
	}
	s.apply(hooked("commands", command, "a") + "---\n" + hooked("requests", call, "b"))
	s.ready("commands", "requests")
	s.awaitLog("recorder", "c", "a-start")
	s.awaitLog("recorder", "c", "b-start")
	log := s.kubectl("logs", "recorder")
	if strings.Contains(log, "-stop") {
		t.Errorf("after the start the recorder has heard %q", log)
	}
	s.kubectl("delete", "pod", "commands", "requests")
	s.awaitLog("recorder", "c", "a-stop")
	s.awaitLog("recorder", "c", "b-stop")
}

// TestFailingHook: a postStart that fails ends the container, and the event says so.
func TestFailingHook(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("unlucky", sleeper("c", `lifecycle: {postStart: {exec: {command: ["sh", "-c", "echo no luck; exit 6"]}}}`)))
	s.awaitEvent("unlucky", "FailedPostStartHook: ")
	s.awaitEvent("unlucky", "Killing: FailedPostStartHook")
	s.awaitRestart("unlucky")
}

// TestStops: a container is told to end with SIGTERM, or the signal that its image or its pod names, and killed when its time is over.
func TestStops(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("told", tools("term", "wait")+", "+image("int", "docker.io/library/config:int-signal")+", "+
		image("usr1", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`, "lifecycle: {stopSignal: SIGUSR1}")+", "+tools("deaf", "ignore-term"),
		"os: {name: linux}", "activeDeadlineSeconds: 3600", "terminationGracePeriodSeconds: 10", onNode(1)))
	for _, name := range []string{"term", "int", "usr1", "deaf"} {
		s.awaitLog("told", name, "ready\n") // and listens from now on
	}
	s.kubectl("patch", "pod", "told", "--patch", `{"spec": {"activeDeadlineSeconds": 1}}`)
	s.wait("jsonpath={.status.phase}=Failed", "pod/told")
	s.awaitValue("pod/told", "{.status.reason}", "DeadlineExceeded")
	for name, want := range map[string]string{"term": "got 15", "int": "got 2", "usr1": "got 10", "deaf": "ready"} {
		s.contains("the log of "+name, s.kubectl("logs", "told", "-c", name), want+"\n")
		code := "0"
		if name == "deaf" {
			code = "137"
		}
		s.awaitValue("pod/told", `{.status.containerStatuses[?(@.name=="`+name+`")].state.terminated.exitCode}`, code)
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
