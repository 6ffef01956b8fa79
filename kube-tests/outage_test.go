package kubetests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// kill ends processes of the cluster at once: "cribox2", "kubelet1", and what cribox itself starts, "shim2", "logger2". It returns when
// they are gone.
func (s *space) kill(names ...string) {
	s.Helper()
	pids := map[string]int{}
	for _, name := range names {
		pids[name] = s.daemon(name)
	}
	s.Cleanup(s.revive)
	for name, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			s.Fatalf("kill %s: %v", name, err)
		}
	}
	for name, pid := range pids {
		s.await("the end of "+name, func() error {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !strings.Contains(string(status), ") Z ") {
				return fmt.Errorf("process %d is there", pid)
			}
			return nil
		})
		// Its number may soon be somebody else's, and whoever revives the daemon would think that it runs.
		if err := os.Remove(filepath.Join(stateDir, name+".pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.Fatal(err)
		}
	}
}

// daemon returns the process of a name that kill takes.
func (s *space) daemon(name string) (pid int) {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(stateDir, name+".pid"))
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	} else {
		i := strings.IndexAny(name, "0123456789")
		pid, err = helper(name[:i], filepath.Join(stateDir, "n"+name[i:]))
	}
	if err != nil {
		s.Fatalf("process of %s: %v", name, err)
	}
	return pid
}

// helper returns the process that cribox has started as "cribox-helper ROLE --state DIR".
func helper(role, state string) (int, error) {
	want := role + "\x00--state\x00" + state + "\x00"
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range processes {
		line, err := os.ReadFile(dir + "/cmdline") // gone by now is no match
		if program, rest, _ := strings.Cut(string(line), "\x00"); err == nil && filepath.Base(program) == "cribox-helper" && rest == want {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no %s of %s runs", role, state)
}

// revive starts whatever daemon of the cluster does not run.
func (s *space) revive() {
	s.Helper()
	cmd := exec.Command("bash", filepath.Join("..", "hack", "kube", "up.sh"))
	cmd.Env = append(os.Environ(), fmt.Sprintf("NODES=%d", *nodes))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("start the cluster's daemons again: %v\n%s", err, out)
	}
}

// life is what must not change of a pod that has nothing to do with an outage.
func (s *space) life(pod string) string {
	s.Helper()
	return s.get("pod/"+pod, "{.metadata.uid} {.status.podIP} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}")
}

// TestDaemonKilled: cribox is killed while pods run, start and stop. Those that run notice nothing, the others come and go as they were asked to.
func TestDaemonKilled(t *testing.T) {
	s := newSpaceAlone(t)
	last := *nodes
	daemon := fmt.Sprint("cribox", last)
	s.apply(pod("steady", tools("idle", "wait")+", "+tools("counting", "print", "-lines", "0", "-every", "20ms"), onNode(last)))
	s.ready("steady")
	life := s.life("steady")
	_, pid := s.pids(last, "steady", "counting")
	appears := func(what string, args ...string) func() {
		return func() {
			s.await(what, func() error {
				if s.crictl(last, args...) == "" {
					return fmt.Errorf("there is none")
				}
				return nil
			})
		}
	}
	for i, moment := range []func(){
		appears("a pod that starts", "pods", "-q", "--namespace", s.name, "--name", "^new-0-"),
		appears("a container that starts", "ps", "-a", "-q", "--label", "io.kubernetes.pod.namespace="+s.name, "--name", "^c1$"),
		func() { s.awaitLog("leaving-2", "c", "told to end") },
	} {
		leaving := fmt.Sprint("leaving-", i)
		// Long enough to be caught in the act, the third time; but one that ends while the daemon is gone should be among them.
		ending := fmt.Sprintf("trap 'echo told to end; sleep %d; exit 0' TERM; echo listens; while true; do sleep 0.1; done", 3+12*i)
		s.apply(pod(leaving, shell("c", ending), onNode(last), "terminationGracePeriodSeconds: 60"))
		s.awaitLog(leaving, "c", "listens")
		var starting strings.Builder
		for k := range 3 {
			starting.WriteString(pod(fmt.Sprintf("new-%d-%d", i, k), tools(fmt.Sprint("c", i), "wait"), onNode(last)) + "---\n")
		}
		s.kubectl("delete", "pod", leaving, "--wait=false")
		s.apply(starting.String())
		moment()
		s.kill(daemon)
		meanwhile := fmt.Sprint("meanwhile-", i)
		s.apply(pod(meanwhile, tools("c", "wait"), onNode(last)))
		s.revive()
		s.ready(meanwhile, fmt.Sprintf("new-%d-0", i), fmt.Sprintf("new-%d-1", i), fmt.Sprintf("new-%d-2", i), "steady")
		s.wait("delete", "pod/"+leaving)
		if after := s.life("steady"); after != life {
			t.Errorf("kill %d: the pod that runs was %s and is %s", i, life, after)
		}
		if _, again := s.pids(last, "steady", "counting"); again != pid {
			t.Errorf("kill %d: its process was %d and is %d", i, pid, again)
		}
		if out := s.exec("steady", "idle", "echo", "well"); out != "well\n" {
			t.Errorf("kill %d: exec says %q", i, out)
		}
	}
	s.wantCounting("steady", "counting")
	for pod := range strings.Lines(s.get("pods", `{range .items[*]}{.metadata.name}={.status.containerStatuses[*].restartCount}{"\n"}{end}`)) {
		name, restarts, _ := strings.Cut(strings.TrimSpace(pod), "=")
		// A container that was made and whose maker got no answer is one start to the kubelet: it makes the next.
		if strings.Trim(restarts, "0 ") != "" && (restarts != "1" || !strings.HasPrefix(name, "new-")) {
			t.Errorf("containers of %s were restarted: %s", name, restarts)
		}
	}
}

// wantCounting asserts that no line of "toolbox print" is missing in a log or there twice, as far as the kubelet has not rotated it away.
func (s *space) wantCounting(pod, container string) {
	s.Helper()
	var log string
	s.await("a log that the kubelet has not just rotated", func() error {
		out, err := s.try("logs", pod, "-c", container)
		if log = strings.TrimSpace(out); err == nil && log == "" {
			err = fmt.Errorf("it has no line")
		}
		return err
	})
	next := 0
	for line := range strings.SplitSeq(log, "\n") {
		n, err := strconv.Atoi(strings.TrimLeft(strings.TrimSpace(line), "0"))
		if err != nil || next != 0 && n != next {
			s.Fatalf("the log has %q where line %d should be", line, next)
		}
		next = n + 1
	}
}

// TestNodeNotReady: a node whose cribox is gone says so, and is back when cribox is; its pods have not noticed.
func TestNodeNotReady(t *testing.T) {
	s := newSpaceAlone(t)
	last := *nodes
	node := fmt.Sprint("node/node", last)
	s.apply(pod("steady", tools("c", "wait"), onNode(last)))
	s.ready("steady")
	life := s.life("steady")
	s.kill(fmt.Sprint("cribox", last))
	s.wait("condition=Ready=false", node)
	s.contains("what the node says", s.get(node, `{.status.conditions[?(@.type=="Ready")].message}`), "container runtime is down")
	s.revive()
	s.wait("condition=Ready", node)
	s.ready("steady")
	if after := s.life("steady"); after != life {
		t.Errorf("the pod was %s and is %s", life, after)
	}
	s.exec("steady", "c", "true")
}

// TestKubeletRestarted: a kubelet that comes back leaves pods as they are, and does what it was asked to meanwhile.
func TestKubeletRestarted(t *testing.T) {
	s := newSpaceAlone(t)
	s.apply(pod("steady", tools("c", "wait"), onNode(1)) + "---\n" + pod("leaving", tools("c", "wait"), onNode(1)))
	s.ready("steady", "leaving")
	life := s.life("steady")
	s.kill("kubelet1")
	s.kubectl("delete", "pod", "leaving", "--wait=false")
	s.apply(pod("meanwhile", tools("c", "wait"), onNode(1)))
	s.revive()
	s.ready("meanwhile", "steady")
	s.wait("delete", "pod/leaving")
	if after := s.life("steady"); after != life {
		t.Errorf("the pod was %s and is %s", life, after)
	}
	s.exec("steady", "c", "true")
}

// TestDrain: a node is emptied, one pod of a set after another, and takes pods again afterwards.
func TestDrain(t *testing.T) {
	if *nodes < 2 {
		t.Skip("needs a second node")
	}
	s := newSpaceAlone(t)
	t.Cleanup(func() { s.kubectl("uncordon", "node1", "node2") })
	s.kubectl("cordon", "node2")
	s.apply(deployment("one", 2) + "---\n{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}}")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	s.kubectl("uncordon", "node2")
	for range 2 { // the first may list before the scheduler, who had not heard of it yet, puts a successor there
		s.kubectl("drain", "node1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=3m")
		s.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
	}
	if on := s.get("pods", "{.items[*].spec.nodeName}"); on != "node2 node2" {
		t.Errorf("after draining node1 the pods are on %q", on)
	}
	lives := strings.Split(strings.TrimSpace(s.get("pods", `{range .items[*]}{.metadata.creationTimestamp} {.status.conditions[?(@.type=="Ready")].lastTransitionTime}{"\n"}{end}`)), "\n")
	slices.Sort(lives)
	_, ready, _ := strings.Cut(lives[0], " ")
	if made, _, _ := strings.Cut(lives[len(lives)-1], " "); made < ready { // the budget lets the second pod go when the first has a successor
		t.Errorf("the last pod was made at %s, before the first one was ready at %s", made, ready)
	}
	if left := s.crictl(1, "pods", "-q", "--state", "Ready"); left != "" {
		t.Errorf("cribox of node1 still has %s", left)
	}
	s.apply(pod("back", tools("c", "wait"), "nodeSelector: {kubernetes.io/hostname: node1}"))
	s.kubectl("uncordon", "node1")
	s.ready("back")
}
