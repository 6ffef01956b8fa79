package kubetests

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestHundredPods: a hundred pods come and go, and the node is as it was.
func TestHundredPods(t *testing.T) {
	last := *nodes
	s := newSpaceAlone(t)
	before := s.emptyLedger(last)
	var all strings.Builder
	for i := range 100 {
		all.WriteString(pod(fmt.Sprint("p", i), tools("c", "wait"), onNode(last)) + "---\n")
	}
	s.apply(all.String())
	for _, what := range [][]string{{"wait", "--for=condition=Ready", "pods", "--all"}, {"delete", "pods", "--all"}} {
		s.awaitLong("a hundred pods: "+what[0], func() error {
			_, err := s.try(append(what, "--timeout=3m")...)
			return err
		})
	}
	s.awaitLedger(last, before)
}

// TestImageGarbage: images that nobody uses for a while go, those that are used or pinned stay, and what is reported as used is what the disk has.
func TestImageGarbage(t *testing.T) {
	s := newSpaceAlone(t)
	last := *nodes // its kubelet removes images that were unused for two minutes
	s.apply(pod("user", tools("c", "wait"), onNode(last)) + "---\n" +
		pod("passer-by", image("c", "docker.io/library/scratch:1", `command: ["/toolbox", "exit", "0"]`), onNode(last), "restartPolicy: Never") +
		"---\n" + pod("pinned", image("c", "docker.io/library/pause:1", `command: ["/toolbox", "exit", "0"]`), onNode(last), "restartPolicy: Never"))
	s.ready("user")
	s.wait("jsonpath={.status.phase}=Succeeded", "pod/passer-by", "pod/pinned")
	s.kubectl("delete", "pod", "passer-by", "pinned")
	used := s.imageBytes(last)
	t.Parallel() // the kubelet looks every five minutes: it does so while the tests run that have the cluster to themselves
	s.awaitLong("the unused image's removal", func() error {
		if images := s.crictl(last, "images"); strings.Contains(images, "library/scratch") {
			return fmt.Errorf("it is still there:\n%s", images)
		}
		return nil
	})
	s.contains("images of the node", s.crictl(last, "images"), "library/tools")
	s.contains("images of the node", s.crictl(last, "images"), "library/pause")
	t.Logf("imageFs: %d bytes before, %d after", used, s.imageBytes(last))
}

// emptyLedger returns the ledger of a node without pods, on which there was one: some things are made for the first and stay.
func (s *space) emptyLedger(node int) (ledgered string) {
	s.Helper()
	s.apply(pod("warm", tools("c", "wait"), onNode(node)))
	s.ready("warm")
	s.kubectl("delete", "pod", "warm")
	for _, id := range strings.Fields(s.crictl(node, "pods", "-q", "--namespace", s.name)) { // sooner than the kubelet's next minute
		_, _ = s.tryCrictl(node, "rmp", id) // unless that has just come
	}
	s.await("an empty node", func() error {
		if ledgered = ledger(s.T, node); occupied.MatchString(ledgered) {
			return fmt.Errorf("it has\n%s", ledgered)
		}
		return nil
	})
	return ledgered
}

// awaitLedger waits until a node has what it had before, and no more.
func (s *space) awaitLedger(node int, before string) {
	s.Helper()
	s.await("the ledger", func() error {
		if after := ledger(s.T, node); after != before {
			return fmt.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		return nil
	})
}

// occupied matches the ledger of a node that has pods, or something of one.
var occupied = regexp.MustCompile(`(shim|pods|rootfs|containers|addresses|cgroups) [1-9]`)

// ledger counts what pods have on a node, in each kind of thing that could be left.
func ledger(t *testing.T, node int) string {
	t.Helper()
	inside := func(command string) string {
		out, err := onHost(node, "sh", "-c", command)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	var b strings.Builder
	state, root := fmt.Sprintf("%s/n%d", stateDir, node), fmt.Sprintf("%s/node%d", clusterDir, node)
	fmt.Fprintln(&b, "mounts", inside("grep -c -e ' "+state+"/' -e ' "+root+"/' /proc/self/mountinfo || true"))
	fmt.Fprintln(&b, "namespaces", inside("ls /run/netns | wc -l"))
	fmt.Fprintln(&b, "links", inside("ip -o link show type veth | wc -l"))
	fmt.Fprintln(&b, "rules", inside("nft list ruleset | grep -c cribox || true"))
	fmt.Fprintln(&b, "addresses", inside("find "+state+"/cni/leases -name '[0-9]*' | wc -l"))
	for _, dir := range []string{state + "/shim", state + "/pods", state + "/rootfs", root + "/root/pods", root + "/root/containers", root + "/kubelet/pods"} {
		fmt.Fprintln(&b, filepath.Base(dir), countEntries(t, dir))
	}
	fmt.Fprintln(&b, "cgroups", countCgroups(nodeCgroup(node)))
	return b.String()
}

// countEntries counts what is in a folder and what waits in its .trash, which itself stays.
func countEntries(t *testing.T, dir string) (n int) {
	for _, folder := range []string{dir, filepath.Join(dir, ".trash")} {
		entries, err := os.ReadDir(folder)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != ".trash" {
				n++
			}
		}
	}
	return n
}

// nodeCgroup returns the parent of the cgroups of a node's pods.
func nodeCgroup(node int) string { return fmt.Sprintf("/%s/node%d", filepath.Base(clusterDir), node) }

// countCgroups counts the cgroups of pods and what is in them, in every hierarchy.
func countCgroups(parent string) (n int) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
	for _, root := range append(roots, "/sys/fs/cgroup"+parent) {
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() && strings.Contains(path, "/pod") {
				n++
			}
			return nil
		})
	}
	return n
}
