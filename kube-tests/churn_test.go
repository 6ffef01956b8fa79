package kubetests

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	rounds = flag.Int("churn", len(deaths), "rounds of TestChurn")
	seed   = flag.Uint64("seed", 0, "what TestChurn draws from; 0 is another one each time")
)

// deaths are what a node's processes can suffer while pods come and go.
var deaths = [][]string{{"cribox"}, {"shim"}, {"logger"}, {"kubelet"}, {"cribox", "shim", "logger"}, {"cribox", "shim"}, {"cribox", "kubelet"}}

// TestChurn: pods of all kinds come and go while what a node consists of is killed, each at a moment that is drawn. A pod that stays notices
// nothing, exit codes are told as they were, whoever shall run runs, and when all is deleted the node is as it was.
func TestChurn(t *testing.T) {
	s := newSpaceAlone(t)
	last := *nodes
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("to see the same again: -seed %d -churn %d", *seed, *rounds)
	draw := rand.New(rand.NewPCG(*seed, 0))
	before := s.emptyLedger(last)
	s.apply(pod("steady", tools("idle", "wait")+", "+tools("counting", "print", "-lines", "0", "-every", "20ms"), onNode(last)))
	s.ready("steady")
	life := s.life("steady")
	_, pid := s.pids(last, "steady", "counting")
	var order []int
	for round := range *rounds {
		if len(order) == 0 {
			order = draw.Perm(len(deaths))
		}
		var victims []string
		for _, name := range deaths[order[0]] {
			victims = append(victims, fmt.Sprint(name, last))
		}
		order = order[1:]
		s.apply(crowd(round, last))
		if round > 0 {
			s.kubectl("delete", "pods", "-l", fmt.Sprint("round=", round-1), "--wait=false")
		}
		moment := time.Duration(draw.IntN(3000)) * time.Millisecond
		t.Logf("round %d: %s killed after %v", round, strings.Join(victims, ", "), moment)
		time.Sleep(moment) // not to wait for anything: when it comes is what is drawn
		s.kill(victims...)
		s.revive()
		s.ready(fmt.Sprint("serves-", round), fmt.Sprint("apart-", round), "steady")
		s.wantExit(fmt.Sprint("pod/ends-", round), slices.Contains(victims, fmt.Sprint("shim", last)))
		if after := s.life("steady"); after != life {
			t.Errorf("round %d: the pod that stays was %s and is %s", round, life, after)
		}
		if _, again := s.pids(last, "steady", "counting"); again != pid {
			t.Errorf("round %d: its process was %d and is %d", round, pid, again)
		}
	}
	s.wantCounting("steady", "counting")
	s.kubectl("delete", "pods", "--all", "--timeout=3m")
	s.awaitLedger(last, before)
}

// wantExit asserts that a pod ends with code 7. When the shim may have been killed while the runtime was at work for it, nobody knew the
// process yet, and an end before the next shim came is one that is said to be unknown.
func (s *space) wantExit(pod string, mayBeLost bool) {
	s.Helper()
	s.wait("jsonpath={.status.phase}=Failed", pod)
	end := s.get(pod, "{.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.reason}")
	if end != "7 Error" && (!mayBeLost || end != "255 Unknown") {
		s.Errorf("%s ended with %s", pod, end)
	}
}

// crowd is a manifest of pods that have something of each kind: addresses, probes, volumes, user namespaces, ends, and failures.
func crowd(round, node int) string {
	label := func(manifest string) string {
		return strings.Replace(manifest, "labels: {", fmt.Sprintf(`labels: {round: "%d", `, round), 1)
	}
	name := func(what string) string { return fmt.Sprint(what, "-", round) }
	probe := `{exec: {command: ["/toolbox", "exit", "0"]}, periodSeconds: 1, timeoutSeconds: 60}`
	server := strings.Replace(tools("c", "serve"), "}", ", readinessProbe: "+probe+", livenessProbe: "+probe+", volumeMounts: [{name: v, mountPath: /v}]}", 1)
	return strings.Join([]string{
		label(pod(name("serves"), server, onNode(node), "volumes: [{name: v, emptyDir: {medium: Memory}}]",
			"initContainers: ["+tools("first", "exit", "0")+"]")),
		label(pod(name("ends"), tools("c", "exit", "7"), onNode(node), "restartPolicy: Never")),
		label(pod(name("fails"), tools("c", "exit", "1"), onNode(node))),
		label(pod(name("apart"), tools("c", "wait")+", "+tools("d", "wait"), onNode(node), "hostUsers: false")),
	}, "---\n")
}
