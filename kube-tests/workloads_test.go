package kubetests

import (
	"fmt"
	"strings"
	"testing"
)

// tools is a container that runs a subcommand of the test images' one program.
func tools(name string, command ...string) string {
	return fmt.Sprintf(`{name: %s, image: "docker.io/library/tools:1", command: ["/toolbox", "%s"]}`, name, strings.Join(command, `", "`))
}

// shell is a container that runs a line of shell; more are further fields.
func shell(name, line string, more ...string) string {
	return image(name, "docker.io/library/busybox:1", append([]string{fmt.Sprintf(`command: ["sh", "-c", %q]`, line)}, more...)...)
}

// sleeper is a container that only is there.
func sleeper(name string, more ...string) string { return shell(name, "exec sleep 1000000", more...) }

// pod is the manifest of a pod; more are further fields of its spec. Unless they say otherwise it is killed a second after it was told
// to end, so that a shell that does not listen delays nobody.
func pod(name, containers string, more ...string) string {
	spec := strings.Join(append(more, "containers: ["+containers+"]"), ", ")
	if !strings.Contains(spec, "terminationGracePeriodSeconds") {
		spec += ", terminationGracePeriodSeconds: 1"
	}
	return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: %s}}, spec: {%s}}\n", name, name, spec)
}

// TestDeployment: a rolling update replaces every pod while the Service answers all the time, and can be taken back.
func TestDeployment(t *testing.T) {
	s := newSpace(t)
	s.apply(deployment("one", 2) + "---\n" + `{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}` +
		"\n---\n" + pod("visitor", tools("c", "wait")))
	s.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	s.ready("visitor")
	ip := s.get("service/web", "{.spec.clusterIP}")
	ask := func() string {
		return s.exec("visitor", "c", "/toolbox", "get", "-timeout", "20s", "http://"+ip+"/env?k=RELEASE")
	}
	s.await("the service", func() error {
		_, err := s.try("exec", "visitor", "--", "/toolbox", "get", "-timeout", "2s", "http://"+ip+"/")
		return err
	})
	before := strings.Fields(s.get("pods", `{range .items[?(@.metadata.labels.app=="web")]}pod/{.metadata.name} {end}`))
	s.apply(deployment("two", 2))
	done := make(chan struct{})
	var out string
	var err error
	go func() {
		defer close(done)
		out, err = s.try("rollout", "status", "deployment/web", "--timeout=3m")
	}()
	asked := 0
	for rolling := true; rolling; asked++ {
		select {
		case <-done:
			rolling = false
		default:
			ask() // ends the test when it is refused
		}
	}
	if err != nil {
		t.Fatal(out, err)
	}
	t.Logf("the service answered %d times during the update", asked)
	s.wait("delete", before...)
	s.contains("the new release", ask(), "two")
	s.kubectl("rollout", "undo", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	s.await("the old release", func() error {
		for range 10 {
			if answer := ask(); strings.TrimSpace(answer) != "one" {
				return fmt.Errorf("answers %q", answer)
			}
		}
		return nil
	})
}

func deployment(release string, replicas int) string {
	return fmt.Sprintf(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: %d, selector: {matchLabels: {app: web}},
		strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}},
		template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 30, containers: [{name: web, image: "docker.io/library/web:1",
			env: [{name: RELEASE, value: %s}], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 20},
			lifecycle: {preStop: {sleep: {seconds: 10}}}}]}}}}`+"\n", replicas, release)
}

// TestJob: pods that end well are counted, and one that fails is tried again.
func TestJob(t *testing.T) {
	s := newSpace(t)
	s.apply(`{apiVersion: batch/v1, kind: Job, metadata: {name: count}, spec: {completions: 3, parallelism: 2, template: {spec: {restartPolicy: Never,
		containers: [` + shell("sh", "echo done by $HOSTNAME") + `]}}}}`)
	s.apply(`{apiVersion: batch/v1, kind: Job, metadata: {name: fail}, spec: {backoffLimit: 1, template: {spec: {restartPolicy: Never,
		containers: [` + tools("exit", "exit", "3") + `]}}}}`)
	s.wait("condition=Complete", "job/count")
	s.contains("log of the job", s.kubectl("logs", "job/count"), "done by count-")
	s.wait("condition=Failed", "job/fail")
	codes := s.get("pods", `{range .items[?(@.metadata.labels.job-name=="fail")]}{.status.containerStatuses[0].state.terminated.exitCode} {end}`)
	if codes != "3 3 " {
		t.Errorf("exit codes of the failed pods are %q, want 3 twice", codes)
	}
}

// TestCronJob: a job comes by itself within the minute.
func TestCronJob(t *testing.T) {
	s := newSpace(t)
	s.apply(`{apiVersion: batch/v1, kind: CronJob, metadata: {name: tick}, spec: {schedule: "* * * * *", jobTemplate: {spec: {template: {spec: {
		restartPolicy: OnFailure, containers: [` + shell("sh", "echo tick") + `]}}}}}}`)
	s.await("a job of the cron job", func() error {
		out, err := s.try("get", "jobs", "-o", "jsonpath={.items[0].status.succeeded}")
		if err == nil && out != "1" {
			err = fmt.Errorf("succeeded: %q", out)
		}
		return err
	})
}

// TestDaemonSet: every node has one.
func TestDaemonSet(t *testing.T) {
	s := newSpace(t)
	s.apply(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: agent}, spec: {selector: {matchLabels: {app: agent}},
		template: {metadata: {labels: {app: agent}}, spec: {containers: [` + tools("agent", "wait") + `]}}}}`)
	s.kubectl("rollout", "status", "daemonset/agent", "--timeout=3m")
	on := strings.Fields(s.get("pods", "{.items[*].spec.nodeName}"))
	if len(on) != *nodes || *nodes > 1 && on[0] == on[1] {
		t.Errorf("the pods are on %v, want one on each of %d nodes", on, *nodes)
	}
}

// TestStatefulSet: pods come in order under the names of their set, and one that is deleted comes back under its own.
func TestStatefulSet(t *testing.T) {
	s := newSpace(t)
	s.apply(`{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}, spec: {serviceName: db, replicas: 2, selector: {matchLabels: {app: db}},
		template: {metadata: {labels: {app: db}}, spec: {terminationGracePeriodSeconds: 2, containers: [` + tools("db", "wait") + `]}}}}`)
	s.kubectl("rollout", "status", "statefulset/db", "--timeout=3m")
	if host := strings.TrimSpace(s.exec("db-1", "db", "hostname")); host != "db-1" {
		t.Errorf("the second pod's host name is %q", host)
	}
	ready := s.get("pod/db-0", `{.status.conditions[?(@.type=="Ready")].lastTransitionTime}`)
	if made := s.get("pod/db-1", "{.metadata.creationTimestamp}"); made < ready {
		t.Errorf("the second pod was made at %s, the first was ready at %s", made, ready)
	}
	before := s.get("pod/db-0", "{.metadata.uid}")
	s.kubectl("delete", "pod", "db-0")
	s.await("the pod under its old name", func() error {
		uid, err := s.try("get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}")
		if err == nil && uid == before {
			err = fmt.Errorf("is still the old one")
		}
		return err
	})
	s.ready("db-0")
}

// TestInitContainers: they run one after another before the rest, and what they leave in a volume is there.
func TestInitContainers(t *testing.T) {
	s := newSpace(t)
	data := "volumeMounts: [{name: data, mountPath: /data}]"
	s.apply(pod("ordered", shell("main", "cat /data/steps; exec sleep 1000000", data), "volumes: [{name: data, emptyDir: {}}]",
		"initContainers: ["+shell("first", "echo first >>/data/steps", data)+", "+shell("second", "echo second >>/data/steps", data)+"]"))
	s.ready("ordered")
	s.awaitLog("ordered", "main", "second\n")
	if got := s.kubectl("logs", "ordered", "-c", "main"); got != "first\nsecond\n" {
		t.Errorf("the main container finds %q", got)
	}
	s.apply(pod("stuck", tools("main", "wait"), "restartPolicy: Never", "initContainers: ["+tools("bad", "exit", "4")+"]"))
	s.wait("jsonpath={.status.phase}=Failed", "pod/stuck")
	if code := s.get("pod/stuck", "{.status.initContainerStatuses[0].state.terminated.exitCode}"); code != "4" {
		t.Errorf("the init container's exit code is %q", code)
	}
}

// TestSidecars: restartable init containers start first, see what the main container writes, and end after it in the opposite order.
func TestSidecars(t *testing.T) {
	s := newSpace(t)
	logs := "volumeMounts: [{name: logs, mountPath: /logs}]"
	sidecar := func(name, last string) string {
		return shell(name, "touch /logs/app; trap 'echo "+name+" >>/logs/app; "+last+"exit 0' TERM; tail -f /logs/app & while true; do wait; done", logs, "restartPolicy: Always")
	}
	s.apply(pod("trio", shell("main", "for i in 1 2 3; do echo line $i >>/logs/app; done; until test -e /logs/seen; do sleep 0.2; done; echo main >>/logs/app", logs),
		"restartPolicy: Never", "terminationGracePeriodSeconds: 60", "volumes: [{name: logs, emptyDir: {}}]", "initContainers: ["+sidecar("outer", "echo in order: $(cat /logs/app); ")+", "+sidecar("inner", "")+"]"))
	s.awaitLog("trio", "outer", "line 3")
	s.exec("trio", "inner", "touch", "/logs/seen")
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/trio")
	s.contains("the log of the outer sidecar", s.kubectl("logs", "trio", "-c", "outer"), "in order: line 1 line 2 line 3 main inner outer\n")
	if codes := s.get("pod/trio", "{.status.initContainerStatuses[*].state.terminated.exitCode}"); codes != "0 0" {
		t.Errorf("the sidecars' exit codes are %q", codes)
	}
}

// TestOneAddress: containers of a pod have one address, and reach each other's ports on localhost and a message queue.
func TestOneAddress(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("trio", tools("a", "serve", "-addr", ":8081", "-name", "a")+", "+tools("b", "serve", "-addr", ":8082", "-name", "b")+", "+
		tools("receiver", "sysv-receive", "77"), "restartPolicy: Never") + "---\n" + pod("visitor", tools("c", "wait")))
	s.ready("visitor")
	s.wait("jsonpath={.status.phase}=Running", "pod/trio")
	ip := s.get("pod/trio", "{.status.podIP}")
	for port, want := range map[string]string{"8081": "a", "8082": "b"} {
		s.await("port "+port, func() error {
			out, err := s.try("exec", "visitor", "--", "/toolbox", "get", "-timeout", "2s", "http://"+ip+":"+port+"/")
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("answers %q", out)
			}
			return err
		})
	}
	s.contains("b, seen by a on localhost", s.exec("trio", "a", "/toolbox", "get", "http://localhost:8082/"), "b")
	s.exec("trio", "a", "/toolbox", "sysv-send", "77", "hello-queue")
	s.awaitLog("trio", "receiver", "hello-queue")
}
