package vmtests

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var kube = flag.Bool("kube", false, "the machine is a node of a cluster: hack/vm/kube.sh")

// patience is how long anything may take that a user would wait for, on an emulated machine.
const patience = 5 * time.Minute

const busybox = "docker.io/library/busybox:1"

// namespace is one of the cluster's that belongs to one test.
type namespace struct {
	*testing.T
	name string
}

func needKube(t *testing.T) *namespace {
	t.Helper()
	if !*kube {
		t.Skip("the machine is no node of a cluster; -kube says it is")
	}
	n := &namespace{T: t, name: strings.ToLower(t.Name())}
	n.kubectl("create", "namespace", n.name)
	n.await("the service account", func() (bool, string) {
		out, err := n.try("", "get", "serviceaccount", "default")
		return err == nil, out
	})
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := n.try("", "describe", "pods")
			t.Logf("%s\nthe kubelet's log:\n%s", out, must(t, "journalctl -u kubelet -n 30 -o cat --no-pager"))
		}
		n.kubectl("delete", "namespace", n.name, "--timeout="+patience.String())
	})
	return n
}

// try runs kubectl in the namespace, with input, and returns what it printed.
func (n *namespace) try(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience+time.Minute)
	defer cancel()
	cmd := n.command(ctx, args...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (n *namespace) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "../bin/kube/kubectl", append([]string{"--namespace", n.name}, args...)...)
	dir := os.Getenv("CRIBOX_KUBE")
	if dir == "" {
		dir = "/var/lib/cribox-kube"
	}
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(dir, "admin.kubeconfig"), "NO_PROXY=10.221.0.0/24", "no_proxy=10.221.0.0/24")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (n *namespace) kubectl(args ...string) string {
	n.Helper()
	out, err := n.try("", args...)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

// apply makes an object of this kind and name with this specification.
func (n *namespace) apply(version, kind, name string, spec object) {
	n.Helper()
	_, err := n.try(toJSON(n.T, object{"apiVersion": version, "kind": kind, "metadata": object{"name": name}, "spec": spec}), "apply", "-f", "-")
	if err != nil {
		n.Fatal(err)
	}
}

// pod makes a pod of one container, unless more says otherwise, and waits until it is ready.
func (n *namespace) pod(name string, c, more object) {
	n.Helper()
	n.apply("v1", "Pod", name, with(object{"containers": []object{c}, "terminationGracePeriodSeconds": 2}, more))
	n.wait("condition=Ready", "pod/"+name)
}

// shell is a container that runs a script.
func shell(name, script string, more object) object {
	return with(object{"name": name, "image": busybox, "command": []string{"sh", "-c", script}}, more)
}

func with(o, more object) object {
	for k, v := range more {
		o[k] = v
	}
	return o
}

func (n *namespace) get(what, path string) string {
	n.Helper()
	return n.kubectl("get", what, "-o", "jsonpath="+path)
}

func (n *namespace) wait(condition, what string) {
	n.Helper()
	n.kubectl("wait", "--for="+condition, "--timeout="+patience.String(), what)
}

// await asks again until the answer is yes.
func (n *namespace) await(what string, ask func() (bool, string)) {
	n.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		ok, said := ask()
		if ok {
			return
		}
		if time.Now().After(end) {
			n.Fatalf("%s: not after %v: %s", what, patience, said)
		}
	}
}

// cgroup returns these files of the container's cgroup, with their names, one a line.
func (n *namespace) cgroup(pod, files string) string {
	n.Helper()
	id := strings.TrimPrefix(n.get("pod/"+pod, "{.status.containerStatuses[0].containerID}"), "cribox://")
	return must(n.T, fmt.Sprintf("cd /sys/fs/cgroup/kubepods.slice; cd $(dirname $(find . -path '*%s.scope/memory.max')); grep -H . %s", id, files))
}

// TestKubeDeployment: pods with probes become available, and one whose probe fails is restarted.
func TestKubeDeployment(t *testing.T) {
	n := needKube(t)
	probe := object{"exec": object{"command": []string{"test", "-e", "/tmp/up"}}, "periodSeconds": 2, "timeoutSeconds": 60}
	c := shell("c", "touch /tmp/up; exec sleep 100000", object{"readinessProbe": probe, "livenessProbe": probe})
	n.apply("apps/v1", "Deployment", "web", object{
		"replicas": 2, "selector": object{"matchLabels": object{"app": "web"}},
		"template": object{"metadata": object{"labels": object{"app": "web"}},
			"spec": object{"containers": []object{c}, "terminationGracePeriodSeconds": 2}},
	})
	n.wait("condition=Available", "deployment/web")
	pod := n.get("pods", "{.items[0].metadata.name}")
	n.kubectl("exec", pod, "--", "rm", "/tmp/up")
	n.await("a restart", func() (bool, string) {
		restarts := n.get("pod/"+pod, "{.status.containerStatuses[0].restartCount}")
		return restarts != "0", restarts
	})
	n.wait("condition=Ready", "pod/"+pod)
}

// TestKubeLimits looks for the limits of a pod in the files of its cgroups, before and after systemd
// has read its units again, and after they were changed in place.
func TestKubeLimits(t *testing.T) {
	n := needKube(t)
	n.pod("limited", shell("c", "exec sleep 100000", object{"resources": object{
		"requests": object{"cpu": "100m", "memory": "32Mi"}, "limits": object{"cpu": "200m", "memory": "64Mi"}}}), nil)
	files := "memory.max cpu.max memory.swap.max ../memory.max ../cpu.max"
	want := "memory.max:67108864\ncpu.max:20000 100000\nmemory.swap.max:0\n../memory.max:67108864\n../cpu.max:20000 100000"
	if got := n.cgroup("limited", files); got != want {
		t.Errorf("the limits are\n%s\nwant\n%s", got, want)
	}
	must(t, "systemctl daemon-reload")
	if got := n.cgroup("limited", files); got != want {
		t.Errorf("after a daemon-reload the limits are\n%s\nwant\n%s", got, want)
	}

	n.kubectl("patch", "pod", "limited", "--subresource", "resize", "--patch", `{"spec": {"containers": [{"name": "c",
		"resources": {"requests": {"cpu": "300m", "memory": "48Mi"}, "limits": {"cpu": "400m", "memory": "96Mi"}}}]}}`)
	want = strings.NewReplacer("67108864", "100663296", "20000", "40000").Replace(want)
	n.await("the resize", func() (bool, string) {
		got := n.cgroup("limited", files)
		return got == want, fmt.Sprintf("the limits are\n%s\nwant\n%s", got, want)
	})
	must(t, "systemctl daemon-reload")
	if got := n.cgroup("limited", files); got != want {
		t.Errorf("after a resize and a daemon-reload the limits are\n%s\nwant\n%s", got, want)
	}
	if got := n.get("pod/limited", "{.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("the container was restarted %s times", got)
	}
}

// TestKubeMemoryQoS: a container that asks for memory is throttled before its limit, and what it asks for is kept for it.
func TestKubeMemoryQoS(t *testing.T) {
	n := needKube(t)
	n.pod("qos", shell("c", "exec sleep 100000", object{"resources": object{
		"requests": object{"memory": "32Mi"}, "limits": object{"memory": "128Mi"}}}), nil)
	if got := n.cgroup("qos", "memory.high"); got == "memory.high:max" {
		t.Errorf("the container has %s", got)
	}
	before := n.cgroup("qos", "memory.high memory.min memory.low")
	must(t, "systemctl daemon-reload")
	if got := n.cgroup("qos", "memory.high memory.min memory.low"); got != before {
		t.Errorf("after a daemon-reload there is\n%s\nwant\n%s", got, before)
	}
}

// TestKubeOOMKilled: the status says why the container has ended.
func TestKubeOOMKilled(t *testing.T) {
	n := needKube(t)
	n.apply("v1", "Pod", "greedy", object{"restartPolicy": "Never", "containers": []object{
		shell("c", "exec dd if=/dev/zero of=/dev/null bs=256M", object{"resources": object{"limits": object{"memory": "32Mi"}}})}})
	n.wait("jsonpath={.status.phase}=Failed", "pod/greedy")
	ended := "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}"
	if got := n.get("pod/greedy", ended); got != "OOMKilled 137" {
		t.Errorf("the container ended with %q, want OOMKilled 137", got)
	}
}

// TestKubeSidecar: an init container that stays is up before the container, and ends after it.
func TestKubeSidecar(t *testing.T) {
	n := needKube(t)
	n.apply("v1", "Pod", "job", object{"restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
		"volumes": []object{{"name": "data", "emptyDir": object{}}},
		"initContainers": []object{shell("side", "touch /data/up; trap 'exit 0' TERM; while :; do sleep 1; done", object{
			"restartPolicy": "Always", "volumeMounts": []object{{"name": "data", "mountPath": "/data"}},
			"startupProbe": object{"exec": object{"command": []string{"test", "-e", "/data/up"}}, "periodSeconds": 1, "timeoutSeconds": 60}})},
		"containers": []object{shell("c", "test -e /data/up", object{"volumeMounts": []object{{"name": "data", "mountPath": "/data"}}})}})
	n.wait("jsonpath={.status.phase}=Succeeded", "pod/job")
	main := n.get("pod/job", "{.status.containerStatuses[0].state.terminated.finishedAt}")
	side := n.get("pod/job", "{.status.initContainerStatuses[0].state.terminated.finishedAt}")
	if main == "" || side < main { // both are UTC, in whole seconds
		t.Errorf("the sidecar ended at %q, the container at %q", side, main)
	}
}

// TestKubeKills ends daemon, shim and logger, restarts units and has systemd read them again. The pod
// keeps its container, its log has every line, and it can be deleted.
func TestKubeKills(t *testing.T) {
	n := needKube(t)
	n.pod("steady", shell("c", "trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done", nil), object{"restartPolicy": "Never"})
	started := n.get("pod/steady", "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].state.running.startedAt}")
	for _, script := range []string{
		killed("cribox.service", "kill -KILL $old"),
		"systemctl daemon-reload; systemctl restart cribox",
		"systemctl kill -s KILL cribox-logger.scope",
		"systemctl kill -s KILL cribox-shim.scope",
		"systemctl restart kubelet",
	} {
		before := strings.Count(n.kubectl("logs", "steady"), "\n")
		must(t, script)
		n.await("a new line after "+script, func() (bool, string) {
			out, err := n.try("", "logs", "steady")
			return err == nil && strings.Count(out, "\n") > before, fmt.Sprint(len(out), " bytes, ", err)
		})
		n.await("an exec after "+script, func() (bool, string) {
			out, err := n.try("", "exec", "steady", "--", "echo", "inside")
			return err == nil && out == "inside", fmt.Sprint(out, err)
		})
	}
	if got := n.get("pod/steady", "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].state.running.startedAt}"); got != started {
		t.Errorf("the container is %s, it was %s", got, started)
	}
	for i, line := range strings.Split(n.kubectl("logs", "steady"), "\n") {
		if line != fmt.Sprint(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
	n.kubectl("delete", "pod", "steady", "--timeout="+patience.String())
}

// TestKubeReboot reboots the node: a container gets its SIGTERM and the time that it needs, and
// the node runs the pods of the Deployment again.
func TestKubeReboot(t *testing.T) {
	n := needKube(t)
	must(t, "rm -rf /var/tmp/reboot; mkdir -m 777 /var/tmp/reboot")
	c := shell("c", "trap 'sleep 3; date >/host/ended; exit 0' TERM; while :; do sleep 1; done",
		object{"volumeMounts": []object{{"name": "host", "mountPath": "/host"}}})
	n.apply("apps/v1", "Deployment", "web", object{
		"replicas": 1, "selector": object{"matchLabels": object{"app": "web"}},
		"template": object{"metadata": object{"labels": object{"app": "web"}}, "spec": object{"containers": []object{c},
			"terminationGracePeriodSeconds": 20,
			"volumes":                       []object{{"name": "host", "hostPath": object{"path": "/var/tmp/reboot"}}}}},
	})
	n.wait("condition=Available", "deployment/web")
	before := must(t, "cat /proc/sys/kernel/random/boot_id")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, _ = try(ctx, "systemctl reboot")
	waitRebooted(t, before)
	n.await("the pod runs on the node that is back", func() (bool, string) {
		out, err := n.try("", "exec", "deployment/web", "--", "true")
		return err == nil, fmt.Sprint(out, err)
	})
	n.wait("condition=Available", "deployment/web")
	if got := must(t, "ls /var/tmp/reboot"); got != "ended" {
		t.Errorf("the container had no time to end: %q", got)
	}
}
