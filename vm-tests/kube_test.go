package vmtests

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestKubeDeployment: pods become available, a new version takes their place one by one, and the
// Deployment grows.
func TestKubeDeployment(t *testing.T) {
	n := needKube(t)
	n.deployment("web", 2, shell("c", "exec sleep 100000", nil), nil)
	first := n.get("pods", "{.items[*].metadata.uid}")
	n.kubectl("patch", "deployment", "web", "--patch",
		`{"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "VERSION", "value": "two"}]}]}}}}`)
	n.kubectl("rollout", "status", "deployment/web", "--timeout="+patience.String())
	if got := n.kubectl("exec", "deployment/web", "--", "sh", "-c", "echo $VERSION"); got != "two" {
		t.Errorf("after the update a pod is of version %q", got)
	}
	for _, uid := range strings.Fields(first) {
		n.await("the end of the first version", func() (bool, string) {
			uids := n.get("pods", "{.items[*].metadata.uid}")
			return !strings.Contains(uids, uid), uids
		})
	}
	n.kubectl("scale", "deployment", "web", "--replicas=3")
	n.wait("jsonpath={.status.readyReplicas}=3", "deployment/web")
}

// TestKubeProbes: a pod is ready when its probes over HTTP and by a command say so, and a container
// whose probe fails is restarted.
func TestKubeProbes(t *testing.T) {
	n := needKube(t)
	probe := execProbe("test", "-e", "/tmp/up")
	n.pod("exec", shell("c", "touch /tmp/up; exec sleep 100000",
		object{"readinessProbe": probe, "livenessProbe": probe}), nil)
	n.pod("http", webServer("http", object{"livenessProbe": httpProbe("/healthz")}), nil)
	n.kubectl("exec", "exec", "--", "rm", "/tmp/up")
	n.apply("v1", "Pod", "missing", object{"terminationGracePeriodSeconds": 2,
		"containers": []object{webServer("missing", object{"livenessProbe": httpProbe("/nowhere")})}})
	for _, pod := range []string{"exec", "missing"} {
		n.await("a restart of "+pod, func() (bool, string) {
			restarts := n.get("pod/"+pod, "{.status.containerStatuses[0].restartCount}")
			return restarts != "0" && restarts != "", restarts
		})
	}
	n.wait("condition=Ready", "pod/exec")
	if got := n.get("pod/http", "{.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("the container that answers was restarted %s times", got)
	}
}

// limitFiles are files of a container's cgroup, and of its pod's.
const limitFiles = "memory.max cpu.max memory.swap.max ../memory.max ../cpu.max"

// limited makes a pod with limits and returns what limitFiles have to say then.
func (n *namespace) limited(name string) string {
	n.Helper()
	n.pod(name, shell("c", "exec sleep 100000", object{"resources": object{
		"requests": object{"cpu": "100m", "memory": "32Mi"}, "limits": object{"cpu": "200m", "memory": "64Mi"}}}), nil)
	return "memory.max:67108864\ncpu.max:20000 100000\nmemory.swap.max:0\n../memory.max:67108864\n../cpu.max:20000 100000"
}

// TestKubeLimits looks for the limits of a pod in the files of its cgroups, before and after systemd
// has read its units again.
func TestKubeLimits(t *testing.T) {
	n := needKube(t)
	want := n.limited("limited")
	if got := n.cgroup("limited", limitFiles); got != want {
		t.Errorf("the limits are\n%s\nwant\n%s", got, want)
	}
	must(t, "systemctl daemon-reload")
	if got := n.cgroup("limited", limitFiles); got != want {
		t.Errorf("after a daemon-reload the limits are\n%s\nwant\n%s", got, want)
	}
}

// TestKubeResize changes the limits of a pod in place, and has systemd read its units again.
func TestKubeResize(t *testing.T) {
	n := needKube(t)
	want := n.limited("resized")
	n.kubectl("patch", "pod", "resized", "--subresource", "resize", "--patch", `{"spec": {"containers": [{"name": "c",
		"resources": {"requests": {"cpu": "300m", "memory": "48Mi"}, "limits": {"cpu": "400m", "memory": "96Mi"}}}]}}`)
	want = strings.NewReplacer("67108864", "100663296", "20000", "40000").Replace(want)
	n.await("the resize", func() (bool, string) {
		got := n.cgroup("resized", limitFiles)
		return got == want, fmt.Sprintf("the limits are\n%s\nwant\n%s", got, want)
	})
	must(t, "systemctl daemon-reload")
	if got := n.cgroup("resized", limitFiles); got != want {
		t.Errorf("after a resize and a daemon-reload the limits are\n%s\nwant\n%s", got, want)
	}
	n.await("the resize in the status", func() (bool, string) {
		got := n.get("pod/resized", "{.status.containerStatuses[0].resources.limits}")
		return strings.Contains(got, "96Mi") && strings.Contains(got, "400m"), got
	})
	if got := n.get("pod/resized", "{.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("the container was restarted %s times", got)
	}
}

// TestKubeMemoryQoS: a container that asks for memory is throttled before its limit, and what it asks
// for is kept for it.
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
	limits := object{"resources": object{"limits": object{"memory": "32Mi"}}}
	n.apply("v1", "Pod", "greedy", object{"restartPolicy": "Never",
		"containers": []object{shell("c", "exec dd if=/dev/zero of=/dev/null bs=256M", limits)}})
	n.wait("jsonpath={.status.phase}=Failed", "pod/greedy")
	ended := "{.status.containerStatuses[0].state.terminated"
	if got := n.get("pod/greedy", ended+".reason} "+ended+".exitCode}"); got != "OOMKilled 137" {
		t.Errorf("the container ended with %q, want OOMKilled 137", got)
	}
}

// TestKubeUserNamespaces: where the node offers them a pod has them, with its token and a volume; a
// node that does not offer them shows that in the API.
func TestKubeUserNamespaces(t *testing.T) {
	n := needKube(t)
	offered := must(t, `crictl info | grep -c '"user_namespaces": *true' || true`) != "0"
	said := n.get("node/node9", "{.status.runtimeHandlers[?(@.name=='runc')].features.userNamespaces}")
	if (said == "true") != offered {
		t.Fatalf("the node says %q of user namespaces, cribox %v", said, offered)
	}
	if !offered {
		t.Skip("this kernel has no tmpfs with mapped ids")
	}
	mounts := object{"volumeMounts": []object{{"name": "data", "mountPath": "/data"}}}
	n.pod("mapped", shell("c", "exec sleep 100000", mounts),
		object{"hostUsers": false, "volumes": []object{{"name": "data", "emptyDir": object{}}}})
	users := strings.Fields(n.kubectl("exec", "mapped", "--", "cat", "/proc/self/uid_map"))
	if len(users) != 3 || users[0] != "0" || users[1] == "0" {
		t.Fatalf("the users of the pod are mapped as %q", users)
	}
	if got := n.kubectl("exec", "mapped", "--", "sh", "-c", "touch /data/file; stat -c %u:%g /data/file "+
		"/var/run/secrets/kubernetes.io/serviceaccount/token"); got != "0:0\n0:0" {
		t.Errorf("inside, the owners of a new file in a volume and of the token are %q", got)
	}
	pid := "$(crictl inspect -o go-template --template '{{.info.pid}}' " + n.container("mapped") + ")"
	if got := must(t, "stat -c %u /proc/"+pid); got != users[1] {
		t.Errorf("on the node, the process of the pod's root is of user %s, want %s", got, users[1])
	}
	volume := "/var/lib/kubelet/pods/" + n.get("pod/mapped", "{.metadata.uid}") + "/volumes/kubernetes.io~empty-dir/data"
	if got := must(t, "stat -c %u:%g "+volume+"/file"); got != "0:0" {
		t.Errorf("on the node, the owner of the file in the volume is %s", got)
	}
}

// TestKubeSidecar: an init container that stays is up before the container, and ends after it.
func TestKubeSidecar(t *testing.T) {
	n := needKube(t)
	mounts := []object{{"name": "data", "mountPath": "/data"}}
	probe := execProbe("test", "-e", "/data/up")
	n.apply("v1", "Pod", "job", object{"restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
		"volumes": []object{{"name": "data", "emptyDir": object{}}},
		"initContainers": []object{shell("side", "touch /data/up; trap 'exit 0' TERM; while :; do sleep 1; done",
			object{"restartPolicy": "Always", "volumeMounts": mounts, "startupProbe": probe})},
		"containers": []object{shell("c", "test -e /data/up", object{"volumeMounts": mounts})}})
	n.wait("jsonpath={.status.phase}=Succeeded", "pod/job")
	main := n.get("pod/job", "{.status.containerStatuses[0].state.terminated.finishedAt}")
	side := n.get("pod/job", "{.status.initContainerStatuses[0].state.terminated.finishedAt}")
	if main == "" || side < main { // both are UTC, in whole seconds
		t.Errorf("the sidecar ended at %q, the container at %q", side, main)
	}
}

// TestKubeStreams: commands in a container with input and an exit code, and a connection through
// kubectl port-forward.
func TestKubeStreams(t *testing.T) {
	n := needKube(t)
	n.pod("web", webServer("forwarded", nil), nil)
	got, err := n.try("through a pipe\n", "exec", "-i", "web", "--", "cat")
	if err != nil || got != "through a pipe" {
		t.Errorf("exec of cat printed %q, %v", got, err)
	}
	_, err = n.try("", "exec", "web", "--", "sh", "-c", "exit 7")
	if err == nil || !strings.Contains(err.Error(), "exit code 7") {
		t.Errorf("exec of a command that fails with 7: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := n.command(ctx, "port-forward", "pod/web", ":8080")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	port := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(line)
	if err != nil || port == nil {
		t.Fatalf("kubectl port-forward: %q, %v", line, err)
	}
	for range 3 {
		if got, err := fetch(ctx, "http://127.0.0.1:"+port[1]+"/"); err != nil || got != "forwarded\n" {
			t.Errorf("the pod answers %q, %v", got, err)
		}
	}
}

func fetch(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// k3s is what k3s makes of a node that it tells to use another runtime: the configuration of its network and the plugins are in folders of
// its own, and so are the archives of images for a node without a registry. The plugin flannel leaves its work to bridge, with these values.
const k3s = `mkdir -p $k3s/agent/etc/cni/net.d $k3s/data/cni $k3s/agent/images
cp -a /opt/cni/bin/. $k3s/data/cni/
cat >$k3s/agent/etc/cni/net.d/10-flannel.conflist <<'END'
{"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
	{"type": "bridge", "bridge": "cni0", "mtu": 1450, "ipMasq": true, "hairpinMode": true, "forceAddress": true, "isGateway": true,
	 "isDefaultGateway": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.9.0/24"}]], "routes": [{"dst": "10.42.0.0/16"}]}},
	{"type": "portmap", "capabilities": {"portMappings": true}},
	{"type": "bandwidth", "capabilities": {"bandwidth": true}}]}
END
cat >/etc/cribox/config.toml.d/90-k3s.toml <<END
[network]
default = false
conf_dir = "$k3s/agent/etc/cni/net.d"
bin_dirs = ["$k3s/data/cni"]
[images]
import_dir = "$k3s/agent/images"
END
systemctl restart cribox`

// TestKubeFoldersOfK3s: cribox is told of k3s's folders, as the page on Kubernetes says, and a pod gets its image and its network from there.
func TestKubeFoldersOfK3s(t *testing.T) {
	n := needKube(t)
	const folder = "k3s=/var/lib/rancher/k3s\n"
	t.Cleanup(func() {
		must(t, folder+`rm -rf $k3s /etc/cribox/config.toml.d/90-k3s.toml /var/lib/cni/networks/cbr0
			systemctl restart cribox
			ip link del cni0 || true`) // the image stays with the container that the kubelet has not removed yet
	})
	must(t, folder+k3s)
	// No registry has the image, and the kubelet has never pulled it: then it would ask for it again.
	must(t, folder+`cd $(mktemp -d)
		cp /usr/local/bin/toolbox toolbox
		tar -cf layer.tar toolbox
		printf '{"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/toolbox"]},
			"rootfs": {"type": "layers", "diff_ids": ["sha256:%s"]}}' $(sha256sum <layer.tar | cut -d " " -f 1) >config.json
		echo '[{"Config": "config.json", "RepoTags": ["docker.io/library/air:1"], "Layers": ["layer.tar"]}]' >manifest.json
		tar -czf /root/air.tar.gz manifest.json config.json layer.tar
		rm -r $PWD
		mv /root/air.tar.gz $k3s/agent/images/`)
	n.await("the image of the archive", func() (bool, string) {
		out := must(t, "crictl images 2>&1")
		return strings.Contains(out, "library/air"), out
	})
	n.pod("air", webServer("from the archive", object{"image": "docker.io/library/air:1", "imagePullPolicy": "Never",
		"ports": []object{{"containerPort": 8080, "hostPort": 18080}}}), nil)
	if ip := n.get("pod/air", "{.status.podIP}"); !strings.HasPrefix(ip, "10.42.9.") {
		t.Errorf("the pod has the address %q", ip)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if got, err := fetch(ctx, "http://"+n.get("pod/air", "{.status.hostIP}")+":18080/"); err != nil || got != "from the archive\n" {
		t.Errorf("on the port of the node, the pod answers %q, %v", got, err)
	}
	n.kubectl("delete", "pod", "air", "--timeout="+patience.String())
}

// TestKubeKills ends daemon, shim and logger, one by one and together, restarts and stops their units,
// and has systemd read them again after each. The pod keeps its container, its log has every line, and
// it can be deleted.
func TestKubeKills(t *testing.T) {
	n := needKube(t)
	n.pod("steady", shell("c", "trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done", nil),
		object{"restartPolicy": "Never"})
	running := func() string {
		return n.container("steady") + " " + n.get("pod/steady", "{.status.containerStatuses[0].state.running.startedAt}")
	}
	started := running()
	for _, script := range []string{
		killed("cribox.service", "kill -KILL $old"),
		"systemctl restart cribox",
		"systemctl kill -s KILL cribox-logger.scope",
		"systemctl stop cribox-logger.scope",
		"systemctl kill -s KILL cribox-shim.scope",
		"systemctl stop cribox-shim.scope",
		killed("cribox.service", "systemctl kill -s KILL cribox cribox-shim.scope cribox-logger.scope"),
		"systemctl restart kubelet",
	} {
		before := strings.Count(n.kubectl("logs", "steady"), "\n")
		must(t, script+"\nsystemctl daemon-reload")
		n.await("a new line after "+script, func() (bool, string) {
			out, err := n.try("", "logs", "steady")
			return err == nil && strings.Count(out, "\n") > before, fmt.Sprint(len(out), " bytes, ", err)
		})
		n.await("an exec after "+script, func() (bool, string) {
			out, err := n.try("", "exec", "steady", "--", "echo", "inside")
			return err == nil && out == "inside", fmt.Sprint(out, err)
		})
	}
	if got := running(); got != started {
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
	n.deployment("web", 1, c, object{"terminationGracePeriodSeconds": 20,
		"volumes": []object{{"name": "host", "hostPath": object{"path": "/var/tmp/reboot"}}}})
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
