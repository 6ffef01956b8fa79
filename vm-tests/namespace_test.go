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
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(dir, "admin.kubeconfig"),
		"NO_PROXY=10.221.0.0/24", "no_proxy=10.221.0.0/24")
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
	made := object{"apiVersion": version, "kind": kind, "metadata": object{"name": name}, "spec": spec}
	_, err := n.try(toJSON(n.T, made), "apply", "-f", "-")
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

// deployment makes a Deployment of pods with one container, and waits until they are available.
func (n *namespace) deployment(name string, replicas int, c, more object) {
	n.Helper()
	labels := object{"app": name}
	n.apply("apps/v1", "Deployment", name, object{
		"replicas": replicas, "selector": object{"matchLabels": labels},
		"template": object{"metadata": object{"labels": labels},
			"spec": with(object{"containers": []object{c}, "terminationGracePeriodSeconds": 2}, more)},
	})
	n.wait("condition=Available", "deployment/"+name)
}

// webServer is a container that answers with this text, and is ready when it does.
func webServer(text string, more object) object {
	return with(object{"name": "c", "image": "docker.io/library/web:1", "args": []string{"serve", "-name", text},
		"readinessProbe": httpProbe("/healthz")}, more)
}

func httpProbe(path string) object {
	return object{"httpGet": object{"path": path, "port": 8080}, "periodSeconds": 2, "timeoutSeconds": 60}
}

func execProbe(command ...string) object {
	return object{"exec": object{"command": command}, "periodSeconds": 2, "timeoutSeconds": 60}
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

// container returns the ID of the pod's first container.
func (n *namespace) container(pod string) string {
	n.Helper()
	return strings.TrimPrefix(n.get("pod/"+pod, "{.status.containerStatuses[0].containerID}"), "cribox://")
}

// cgroup returns these files of the container's cgroup, with their names, one a line.
func (n *namespace) cgroup(pod, files string) string {
	n.Helper()
	return must(n.T, fmt.Sprintf("cd /sys/fs/cgroup/kubepods.slice; "+
		"cd $(dirname $(find . -path '*%s.scope/memory.max')); grep -H . %s", n.container(pod), files))
}
