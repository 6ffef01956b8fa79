package kubetests

import (
	"encoding/json"
	"fmt"
	"regexp"
	"testing"
)

// TestStats: the kubelet's figures come from cribox, with the names that dashboards look for.
func TestStats(t *testing.T) {
	s := newSpace(t)
	s.apply(pod("busy", image("c", "docker.io/library/busybox:1", `command: ["sh", "-c", "dd if=/dev/zero of=/file bs=1M count=8; while true; do :; done"]`,
		"resources: {limits: {cpu: 200m, memory: 64Mi}}"), onNode(1)))
	s.ready("busy")
	node := "/api/v1/nodes/node1/proxy"
	s.await("stats/summary", func() error {
		summary, err := s.try("get", "--raw", node+"/stats/summary")
		if err != nil {
			return err
		}
		return s.summaryHas(summary, "busy", "c")
	})
	labels := `container="c"[^}]*namespace="` + s.name + `"[^}]*pod="busy"`
	s.awaitMetrics(node+"/metrics/resource",
		`container_cpu_usage_seconds_total\{`+labels, `container_memory_working_set_bytes\{`+labels,
		`pod_cpu_usage_seconds_total\{namespace="`+s.name+`",pod="busy"\}`, `pod_memory_working_set_bytes\{namespace="`+s.name+`",pod="busy"\}`,
		`container_start_time_seconds\{`+labels)
	s.awaitMetrics(node+"/metrics/cadvisor",
		`container_cpu_usage_seconds_total\{[^}]*`+labels, `container_memory_working_set_bytes\{[^}]*`+labels, `container_memory_rss\{[^}]*`+labels,
		`container_fs_usage_bytes\{[^}]*`+labels, `container_network_receive_bytes_total\{[^}]*namespace="`+s.name+`"[^}]*pod="busy"`,
		`container_spec_memory_limit_bytes\{[^}]*`+labels)
}

// summaryHas says what the summary lacks of a pod that burns a fifth of a processor.
func (s *space) summaryHas(summary, pod, container string) error {
	type usage struct{ UsageNanoCores, WorkingSetBytes, UsedBytes, RxBytes *uint64 }
	var all struct {
		Node struct {
			Runtime struct{ ImageFs, ContainerFs *usage }
		}
		Pods []struct {
			PodRef       struct{ Name, Namespace string }
			CPU, Memory  *usage
			Network      *usage
			ProcessStats *struct {
				Count *uint64 `json:"process_count"`
			} `json:"process_stats"`
			Containers []struct {
				Name        string
				CPU, Memory *usage
				Rootfs      *usage
			}
		}
	}
	if err := json.Unmarshal([]byte(summary), &all); err != nil {
		return err
	}
	if all.Node.Runtime.ImageFs == nil || all.Node.Runtime.ImageFs.UsedBytes == nil || *all.Node.Runtime.ImageFs.UsedBytes == 0 {
		return fmt.Errorf("imageFs is not there")
	}
	for _, p := range all.Pods {
		if p.PodRef.Name != pod || p.PodRef.Namespace != s.name {
			continue
		}
		switch {
		case p.CPU == nil || p.CPU.UsageNanoCores == nil || *p.CPU.UsageNanoCores < 10_000_000:
			return fmt.Errorf("the pod's CPU is %+v", p.CPU)
		case p.Memory == nil || p.Memory.WorkingSetBytes == nil || *p.Memory.WorkingSetBytes == 0:
			return fmt.Errorf("the pod's memory is %+v", p.Memory)
		case p.Network == nil || p.Network.RxBytes == nil:
			return fmt.Errorf("the pod's network is %+v", p.Network)
		case p.ProcessStats == nil || p.ProcessStats.Count == nil || *p.ProcessStats.Count < 2:
			return fmt.Errorf("the pod's processes are %+v", p.ProcessStats)
		}
		for _, c := range p.Containers {
			if c.Name != container {
				continue
			}
			switch {
			case c.CPU == nil || c.CPU.UsageNanoCores == nil || *c.CPU.UsageNanoCores < 50_000_000:
				return fmt.Errorf("the container's CPU is %+v", c.CPU)
			case c.Memory == nil || c.Memory.WorkingSetBytes == nil || *c.Memory.WorkingSetBytes == 0:
				return fmt.Errorf("the container's memory is %+v", c.Memory)
			case c.Rootfs == nil || c.Rootfs.UsedBytes == nil || *c.Rootfs.UsedBytes < 8<<20:
				return fmt.Errorf("the container has written 8 MiB, its layer is %+v", c.Rootfs)
			}
			return nil
		}
		return fmt.Errorf("the pod has no container %s", container)
	}
	return fmt.Errorf("the pod is not there")
}

// awaitMetrics waits until a page of metrics has a line for each pattern.
func (s *space) awaitMetrics(page string, patterns ...string) {
	s.Helper()
	for _, pattern := range patterns {
		line := regexp.MustCompile(`(?m)^` + pattern)
		s.await(page, func() error {
			text, err := s.try("get", "--raw", page)
			if err == nil && !line.MatchString(text) {
				err = fmt.Errorf("has no %s", pattern)
			}
			return err
		})
	}
}
