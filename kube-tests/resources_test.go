package kubetests

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestLimits: requests and limits are in the container's cgroup.
func TestLimits(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("limited", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`,
		"resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}"), onNode(1)))
	s.ready("limited")
	_, pid := s.pids(1, "limited", "c")
	for file, want := range map[string]string{"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "cpu.shares": "102"} {
		if got := cgroupFile(t, pid, file); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
}

// cgroupFile reads a file of a process's cgroup (v1).
func cgroupFile(t *testing.T, pid int, file string) string {
	t.Helper()
	controller, _, _ := strings.Cut(file, ".")
	table, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for c := range strings.SplitSeq(parts[1], ",") {
			if c == controller {
				b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", parts[1], parts[2], file))
				if os.IsNotExist(err) {
					b, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", c, parts[2], file))
				}
				if err != nil {
					t.Fatal(err)
				}
				return strings.TrimSpace(string(b))
			}
		}
	}
	t.Fatalf("process %d is in no %s cgroup: %s", pid, controller, table)
	return ""
}

// TestOOMKilled: a container that takes more memory than its limit is killed, and the status says why.
func TestOOMKilled(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("greedy", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "eat", "200"]`, "resources: {limits: {memory: 48Mi}}"), "restartPolicy: Never"))
	s.wait("jsonpath={.status.phase}=Failed", "pod/greedy")
	if got := s.get("pod/greedy", "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}"); got != "OOMKilled 137" {
		t.Errorf("the container ended with %q, want OOMKilled 137", got)
	}
}

// TestResize: resources change in place, the container is not restarted, and the status has the new ones.
func TestResize(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("elastic", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`,
		"resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}"), onNode(1)))
	s.ready("elastic")
	_, pid := s.pids(1, "elastic", "c")
	s.kubectl("patch", "pod", "elastic", "--subresource", "resize", "--patch",
		`{"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m", "memory": "48Mi"}, "limits": {"cpu": "400m", "memory": "96Mi"}}}]}}`)
	s.awaitValue("pod/elastic", "{.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].resources.limits.cpu}", "96Mi 400m")
	if got := cgroupFile(t, pid, "memory.limit_in_bytes"); got != "100663296" {
		t.Errorf("memory.limit_in_bytes is %s after the resize", got)
	}
	if got := cgroupFile(t, pid, "cpu.cfs_quota_us"); got != "40000" {
		t.Errorf("cpu.cfs_quota_us is %s after the resize", got)
	}
	if n := s.get("pod/elastic", "{.status.containerStatuses[0].restartCount}"); n != "0" {
		t.Errorf("the container was restarted %s times", n)
	}
}
