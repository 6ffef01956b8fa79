package kubetests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// nodeOf returns the number of the node that a pod is on.
func (s *space) nodeOf(pod string) int {
	s.Helper()
	name := s.get("pod/"+pod, "{.spec.nodeName}")
	n, err := strconv.Atoi(strings.TrimPrefix(name, "node"))
	if err != nil {
		s.Fatalf("pod %s is on node %q", pod, name)
	}
	return n
}

// crictl asks a node's cribox.
func (s *space) crictl(node int, args ...string) string {
	s.Helper()
	out, err := s.tryCrictl(node, args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// tryCrictl returns what crictl prints; an error has what it says.
func (s *space) tryCrictl(node int, args ...string) (string, error) {
	socket := fmt.Sprintf("unix://%s/n%d/cribox.sock", stateDir, node)
	cmd := exec.Command(filepath.Join(binFolder, "crictl"), append([]string{"--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", "60s"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), err
}

// pids returns the host's ids of a pod's pause process and of a container's first process.
func (s *space) pids(node int, pod, container string) (pause, process int) {
	s.Helper()
	podID := s.crictl(node, "pods", "-q", "--namespace", s.name, "--name", "^"+pod+"$", "--state", "Ready")
	id := s.crictl(node, "ps", "-q", "--pod", podID, "--name", "^"+container+"$")
	return s.pid(s.crictl(node, "inspectp", podID)), s.pid(s.crictl(node, "inspect", id))
}

func (s *space) pid(inspected string) int {
	s.Helper()
	var r struct{ Info struct{ Pid int } }
	if err := json.Unmarshal([]byte(inspected), &r); err != nil || r.Info.Pid == 0 {
		s.Fatalf("no pid (%v) in %s", err, inspected)
	}
	return r.Info.Pid
}

// wantPodAddress asserts that the network namespace of a process has the address on eth0.
func (s *space) wantPodAddress(pid int, ip string) {
	s.Helper()
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-n", "ip", "-o", "addr", "show", "dev", "eth0").Output()
	if err != nil {
		s.Fatal(err)
	}
	s.contains("eth0 of the pause process", string(out), " "+ip+"/")
}

// imageBytes is what the kubelet reports of a node's images, once it agrees with the disk within two percent.
func (s *space) imageBytes(node int) (reported uint64) {
	s.Helper()
	s.await("imageFs.usedBytes", func() error {
		summary, err := s.try("get", "--raw", fmt.Sprintf("/api/v1/nodes/node%d/proxy/stats/summary", node))
		if err != nil {
			return err
		}
		var r struct {
			Node struct {
				Runtime struct{ ImageFs struct{ UsedBytes uint64 } }
			}
		}
		if err := json.Unmarshal([]byte(summary), &r); err != nil {
			return err
		}
		reported = r.Node.Runtime.ImageFs.UsedBytes
		root := filepath.Join(clusterDir, fmt.Sprintf("node%d", node), "root")
		out, err := exec.Command("sh", "-c", "du -c -B1 -s "+root+"/content "+root+"/layers "+root+"/images | tail -1 | cut -f1").Output()
		if err != nil {
			return err
		}
		disk, err := strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
		if err != nil {
			return err
		}
		if d := float64(reported) - float64(disk); d > 0.02*float64(disk) || -d > 0.02*float64(disk) {
			return fmt.Errorf("%d are reported, the disk has %d", reported, disk)
		}
		return nil
	})
	return reported
}
