package kubetests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecurityContexts: each setting as the container sees it.
func TestSecurityContexts(t *testing.T) {
	s := newSpace(t)
	profiles := filepath.Join(clusterDir, "node1", "kubelet", "seccomp")
	if err := os.MkdirAll(profiles, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(profiles, "no-mkdir.json"),
		[]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct{ name, context, command, want string }{
		{"plain", "", "id -u; touch /x && echo writes; grep -E 'NoNewPrivs' /proc/self/status", "0\nwrites\nNoNewPrivs:\t0"},
		{"read-only", "readOnlyRootFilesystem: true", "touch /x 2>&1; echo a >/data/ro && echo volume", "touch: /x: Read-only file system\nvolume"},
		{"user", "runAsUser: 1000, runAsGroup: 900", "id -u; id -g; id -G; touch /data/user; stat -c %g /data/user", "1000\n900\n900 2000 3000\n2000"},
		{"no-root", "runAsNonRoot: true, runAsUser: 65534", "id -u", "65534"},
		{"dropped", "capabilities: {drop: [ALL]}", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000"},
		{"one", "capabilities: {drop: [ALL], add: [NET_ADMIN]}", "grep CapEff /proc/self/status", "CapEff:\t0000000000001000"},
		{"more", "capabilities: {add: [SYS_TIME]}", "grep CapEff /proc/self/status", "CapEff:\t00000000aa0425fb"},
		{"no-gain", "allowPrivilegeEscalation: false", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"},
		{"default-filter", "seccompProfile: {type: RuntimeDefault}",
			"grep Seccomp: /proc/self/status; unshare -U true 2>&1",
			"Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted"},
		{"own-filter", "seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}", "mkdir /x 2>&1", "mkdir: can't create directory '/x': Operation not permitted"},
		{"no-filter", "seccompProfile: {type: Unconfined}", "grep Seccomp: /proc/self/status", "Seccomp:\t0"},
		{"privileged", "privileged: true",
			"grep Seccomp: /proc/self/status; test -e /dev/loop-control -o -e /dev/kmsg && echo devices; mkdir /m && mount -t tmpfs tmpfs /m && echo mounts",
			"Seccomp:\t0\ndevices\nmounts"},
		{"masked", "", "wc -c </proc/keys; echo 1 2>&1 >/proc/sys/vm/swappiness", "0\nsh: can't create /proc/sys/vm/swappiness: Read-only file system"},
	}
	var containers []string
	for _, c := range cases {
		containers = append(containers, sleeper(c.name, "securityContext: {"+c.context+"}", "volumeMounts: [{name: data, mountPath: /data}]"))
	}
	s.apply(pod("all", strings.Join(containers, ", "), onNode(1), "securityContext: {fsGroup: 2000, supplementalGroups: [3000]}", "volumes: [{name: data, emptyDir: {}}]"))
	s.ready("all")
	for _, c := range cases {
		got := strings.TrimSpace(s.exec("all", c.name, "sh", "-c", c.command+"; true"))
		if got != c.want {
			t.Errorf("%s (%s): %q, want %q", c.name, c.context, got, c.want)
		}
	}
}

// TestSysctls: a safe one is set in the pod alone, one that the kubelet does not allow keeps the pod out.
func TestSysctls(t *testing.T) {
	s := newSpace(t)
	sysctl := func(name, value string) string { return fmt.Sprintf("{name: %s, value: %q}", name, value) }
	s.apply(pod("tuned", sleeper("c"), "securityContext: {sysctls: ["+sysctl("net.ipv4.ip_unprivileged_port_start", "80")+", "+
		sysctl("kernel.shm_rmid_forced", "1")+"]}", onNode(1)) +
		"---\n" + pod("daring", sleeper("c"), "securityContext: {sysctls: ["+sysctl("kernel.msgmax", "65536")+"]}", onNode(1)))
	s.ready("tuned")
	if got := s.exec("tuned", "c", "sh", "-c", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"); got != "80\n1\n" {
		t.Errorf("the pod has %q", got)
	}
	s.wait("jsonpath={.status.phase}=Failed", "pod/daring")
	s.awaitValue("pod/daring", "{.status.reason}", "SysctlForbidden")
}
