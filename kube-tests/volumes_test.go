package kubetests

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVolumes: what each kind of volume shows inside.
func TestVolumes(t *testing.T) {
	s := newSpace(t)
	s.kubectl("create", "configmap", "settings", "--from-literal=color=blue", "--from-literal=size=large")
	s.kubectl("create", "secret", "generic", "keys", "--from-literal=key=opensesame")
	s.apply(pod("full", image("c", "docker.io/library/busybox:1", `command: ["sleep", "1000000"]`, `volumeMounts: [
		{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}, {name: config, mountPath: /config}, {name: secret, mountPath: /secret, readOnly: true},
		{name: all, mountPath: /all}, {name: about, mountPath: /about}, {name: host, mountPath: /host}, {name: config, mountPath: /only/color, subPath: color},
		{name: image, mountPath: /image}, {name: image, mountPath: /image-part, subPath: bin},
		{name: disk, mountPath: /mine, subPathExpr: of-$(ME)}]`, `env: [{name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}},
		{name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}, {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}]`,
		"resources: {limits: {cpu: 250m, memory: 64Mi}}"),
		`volumes: [{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}, {name: config, configMap: {name: settings}},
		{name: secret, secret: {secretName: keys, defaultMode: 256}}, {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}},
			{path: memory, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}]}},
		{name: all, projected: {sources: [{configMap: {name: settings, items: [{key: size, path: sub/size}]}}, {secret: {name: keys}},
			{serviceAccountToken: {path: token, expirationSeconds: 3600}}]}},
		{name: host, hostPath: {path: /etc/hostname, type: File}}, {name: image, image: {reference: "docker.io/library/busybox:1"}}]`))
	s.ready("full")
	for command, want := range map[string]string{
		"cat /config/color":                             "blue",
		"cat /only/color":                               "blue",
		"cat /secret/key":                               "opensesame",
		"stat -L -c %a /secret/key":                     "400",
		"touch /secret/x 2>&1 || true":                  "touch: /secret/x: Read-only file system",
		"cat /all/sub/size":                             "large",
		"cat /all/key":                                  "opensesame",
		"test -s /all/token && echo there":              "there",
		"grep ' /secret ' /proc/mounts | cut -d' ' -f3": "tmpfs",
		"cat /about/labels":                             `app="full"`,
		"cat /about/memory":                             "64",
		"echo b >/mine/g && cat /disk/of-full/g":        "b",
		"echo $ME $COLOR $CPU":                          "full blue 250",
		"grep ' /memory ' /proc/mounts | cut -d' ' -f3": "tmpfs",
		"df -k /memory | tail -1 | awk '{print $2}'":    "16384",
		"echo a >/disk/f && cat /disk/f":                "a",
		"touch /image/x 2>&1 || true":                   "touch: /image/x: Read-only file system",
		"test -x /image/bin/sh && echo program":         "program",
		"test -x /image-part/sh && echo program":        "program",
	} {
		if got := strings.TrimSpace(s.exec("full", "c", "sh", "-c", command)); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	s.kubectl("patch", "configmap", "settings", "--patch", `{"data": {"color": "green"}}`)
	s.await("the changed config map inside", func() error {
		out, err := s.try("exec", "full", "--", "grep", "-q", "green", "/config/color")
		_ = out
		return err
	})
}

// TestHostPaths: each type of host path is what it says, and a pod whose path is not there waits.
func TestHostPaths(t *testing.T) {
	s := newSpace(t)
	dir := t.TempDir()
	socket, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := os.WriteFile(dir+"/file", []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var mounts, volumes []string
	for name, c := range map[string][2]string{
		"made": {"/new/folder", "DirectoryOrCreate"}, "file": {"/file", "File"}, "new-file": {"/new-file", "FileOrCreate"},
		"folder": {"", "Directory"}, "socket": {"/socket", "Socket"},
	} {
		mounts = append(mounts, "{name: "+name+", mountPath: /"+name+"}")
		volumes = append(volumes, fmt.Sprintf("{name: %s, hostPath: {path: %s, type: %s}}", name, dir+c[0], c[1]))
	}
	s.apply(pod("guest", sleeper("c", "volumeMounts: ["+strings.Join(append(mounts, "{name: null-device, mountPath: /null}"), ", ")+"]"), onNode(1),
		"volumes: ["+strings.Join(append(volumes, "{name: null-device, hostPath: {path: /dev/null, type: CharDevice}}"), ", ")+"]"))
	s.apply(pod("lost", sleeper("c", "volumeMounts: [{name: nowhere, mountPath: /nowhere}]"), onNode(1),
		"volumes: [{name: nowhere, hostPath: {path: "+dir+"/nowhere, type: Directory}}]"))
	s.ready("guest")
	s.exec("guest", "c", "sh", "-ec", "grep -q 'of the host' /file; test -S /socket; test -c /null; echo a >/made/a; echo b >/new-file; grep -q 'of the host' /folder/file")
	for file, want := range map[string]string{"/new/folder/a": "a\n", "/new-file": "b\n"} {
		if got, err := os.ReadFile(dir + file); err != nil || string(got) != want {
			t.Errorf("the host finds %q in %s, %v", got, file, err)
		}
	}
	s.awaitEvent("lost", `FailedMount: MountVolume.SetUp failed for volume "nowhere" : hostPath type check failed, `+dir+"/nowhere is not a directory")
}

// TestMountPropagation: a mount made by a privileged pod is seen by the host with Bidirectional, and by another pod with HostToContainer,
// but not by one without.
func TestMountPropagation(t *testing.T) {
	s := newSpace(t)
	dir := filepath.Join(clusterDir, "node1", "shared-"+s.name) // a place whose mounts all see that share the node's
	volume := "volumes: [{name: v, hostPath: {path: " + dir + ", type: DirectoryOrCreate}}]"
	mount := func(how string) string {
		return "volumeMounts: [{name: v, mountPath: /v" + how + "}]"
	}
	s.apply(pod("maker", sleeper("c", mount(", mountPropagation: Bidirectional"), "securityContext: {privileged: true}"), volume, onNode(1)) + "---\n" +
		pod("seer", sleeper("c", mount(", mountPropagation: HostToContainer")), volume, onNode(1)) + "---\n" + pod("blind", sleeper("c", mount("")), volume, onNode(1)))
	t.Cleanup(func() { _, _ = onHost(1, "sh", "-c", "umount -l "+dir+"/m; rm -rf "+dir) })
	s.ready("maker", "seer", "blind")
	s.exec("maker", "c", "sh", "-ec", "mkdir /v/m; mount -t tmpfs tmpfs /v/m; echo hello >/v/m/f")
	if got := s.exec("seer", "c", "cat", "/v/m/f"); got != "hello\n" {
		t.Errorf("HostToContainer: the other pod finds %q", got)
	}
	if got, err := onHost(1, "cat", dir+"/m/f"); err != nil || got != "hello\n" {
		t.Errorf("Bidirectional: the host finds %q, %v", got, err)
	}
	if got := s.exec("blind", "c", "ls", "-A", "/v/m"); got != "" { // the folder is there, what is mounted on it is not
		t.Errorf("without propagation the other pod finds %q", got)
	}
	s.exec("maker", "c", "umount", "/v/m")
}
