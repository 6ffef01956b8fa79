package kubetests

import (
	"fmt"
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
	wantLimits(t, pid, 64<<20, 50000)
	if !unifiedCgroups() { // version 2 has weights, and no agreed way from shares to them
		if got := cgroupFile(t, pid, "cpu.shares"); got != "102" {
			t.Errorf("cpu.shares is %s, want 102", got)
		}
	}
}

// wantLimits asserts a process's limits of memory in bytes, and of processor time in microseconds of each 100000.
func wantLimits(t *testing.T, pid, memory, quota int) {
	t.Helper()
	want := map[string]string{"memory.limit_in_bytes": strconv.Itoa(memory), "cpu.cfs_quota_us": strconv.Itoa(quota), "cpu.cfs_period_us": "100000"}
	if unifiedCgroups() {
		want = map[string]string{"memory.max": strconv.Itoa(memory), "cpu.max": strconv.Itoa(quota) + " 100000"}
	}
	for file, value := range want {
		if got := cgroupFile(t, pid, file); got != value {
			t.Errorf("%s is %s, want %s", file, got, value)
		}
	}
}

// TestQoS: each class of pods has a cgroup of its own, and a place in the order in which the kernel kills.
func TestQoS(t *testing.T) {
	s := newSpace(t)
	with := func(resources string) string { return sleeper("c", "resources: {"+resources+"}") }
	s.apply(pod("guaranteed", with("limits: {cpu: 50m, memory: 16Mi}"), onNode(1)) + "---\n" + pod("burstable", with("requests: {cpu: 50m, memory: 16Mi}"), onNode(1)) +
		"---\n" + pod("best-effort", with(""), onNode(1)))
	s.ready("guaranteed", "burstable", "best-effort")
	lowest := -997
	if !mayLowerScores(t) {
		lowest = 0
	}
	for name, c := range map[string]struct {
		class, cgroup string
		least, most   int
	}{
		"guaranteed":  {"Guaranteed", "kubepods/pod", lowest, lowest},
		"burstable":   {"Burstable", "kubepods/burstable/pod", 2, 999},
		"best-effort": {"BestEffort", "kubepods/besteffort/pod", 1000, 1000},
	} {
		if class := s.get("pod/"+name, "{.status.qosClass}"); class != c.class {
			t.Errorf("%s is of class %s", name, class)
		}
		_, pid := s.pids(1, name, "c")
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			t.Fatal(err)
		}
		s.contains("cgroups of "+name, string(table), nodeCgroup(1)+"/"+c.cgroup+s.get("pod/"+name, "{.metadata.uid}")+"/")
		if score, err := strconv.Atoi(strings.TrimSpace(s.exec(name, "c", "cat", "/proc/1/oom_score_adj"))); err != nil || score < c.least || score > c.most {
			t.Errorf("oom_score_adj of %s is %d, %v, want %d to %d", name, score, err, c.least, c.most)
		}
	}
}

// mayLowerScores tells whether this machine lets root lower an oom_score_adj: capability 24 (CAP_SYS_RESOURCE).
func mayLowerScores(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapEff:\t")
	mask, err := strconv.ParseUint(strings.SplitN(rest, "\n", 2)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask>>24&1 == 1
}

// cgroupFile reads a file of a process's cgroup.
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
			if c != controller && (c != "" || !unifiedCgroups()) {
				continue
			}
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

// TestOOMKilledChild: a child that takes more than the limit is killed. With cgroups of version 2 its container ends with it, which
// is what the kubelet asks for; with version 1 only the child does, and the container sees it.
func TestOOMKilledChild(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("parent", image("c", "docker.io/library/tools:1", `command: ["sh", "-c", "/toolbox eat 200; echo child ended with $?; exec sleep 1000000"]`,
		"resources: {limits: {memory: 48Mi}}"), "restartPolicy: Never"))
	if unifiedCgroups() {
		s.wait("jsonpath={.status.phase}=Failed", "pod/parent")
		s.awaitValue("pod/parent", "{.status.containerStatuses[0].state.terminated.reason}", "OOMKilled")
		return
	}
	s.awaitLog("parent", "c", "child ended with 137")
	if phase := s.get("pod/parent", "{.status.phase}"); phase != "Running" {
		t.Errorf("the parent's phase is %s", phase)
	}
}

// TestResize: resources change in place, the container is not restarted, and the status has the new ones. One that wants to be restarted
// for less is, and nothing is refused meanwhile.
func TestResize(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("elastic", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`,
		"resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}"), onNode(1)))
	s.ready("elastic")
	_, pid := s.pids(1, "elastic", "c")
	s.kubectl("patch", "pod", "elastic", "--subresource", "resize", "--patch",
		`{"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "300m", "memory": "48Mi"}, "limits": {"cpu": "400m", "memory": "96Mi"}}}]}}`)
	s.awaitValue("pod/elastic", "{.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].resources.limits.cpu}", "96Mi 400m")
	wantLimits(t, pid, 96<<20, 40000)
	if n := s.get("pod/elastic", "{.status.containerStatuses[0].restartCount}"); n != "0" {
		t.Errorf("the container was restarted %s times", n)
	}
	s.apply(pod("again", image("c", "docker.io/library/tools:1", `command: ["/toolbox", "wait"]`,
		"resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}]", "resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {cpu: 300m, memory: 64Mi}}"),
		onNode(1)))
	s.ready("again")
	s.kubectl("patch", "pod", "again", "--subresource", "resize", "--patch", `{"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}}}]}}`)
	s.awaitValue("pod/again", "{.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].restartCount}", "100m 1")
	s.ready("again")
	s.awaitEvent("again", "ResizeCompleted")
	if events := s.get("events", `{.items[?(@.reason=="ResizeError")].message}`); events != "" {
		t.Errorf("the resize was refused: %s", events)
	}
}
