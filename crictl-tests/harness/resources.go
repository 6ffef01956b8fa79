package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Stats is what the daemon says that the container uses.
func (c *Container) Stats() *cri.ContainerStats {
	c.Helper()
	r, err := c.Runtime.ContainerStats(context.Background(), &cri.ContainerStatsRequest{ContainerId: c.ID})
	c.Must(err)
	return r.Stats
}

// TryUpdate asks for other resources.
func (c *Container) TryUpdate(r *cri.LinuxContainerResources) error {
	_, err := c.Runtime.UpdateContainerResources(context.Background(), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
	return err
}

// Enforced is what can be compared between the status, the spec, and the kernel's own files.
type Enforced struct {
	Shares, Memory, OOM int64
}

// Resources is what the status says of the resources.
func (c *Container) Resources() *cri.LinuxContainerResources {
	c.Helper()
	return c.Status().GetResources().GetLinux()
}

// Limits takes the limits from the status.
func (c *Container) Limits() Enforced {
	c.Helper()
	r := c.Resources()
	return Enforced{r.GetCpuShares(), r.GetMemoryLimitInBytes(), r.GetOomScoreAdj()}
}

// SpecLimits takes the limits from the OCI spec that the verbose status has.
func (c *Container) SpecLimits() Enforced {
	c.Helper()
	var info struct {
		RuntimeSpec struct {
			Process struct{ OOMScoreAdj int64 }
			Linux   struct {
				Resources struct {
					CPU    struct{ Shares int64 }
					Memory struct{ Limit int64 }
				}
			}
		}
	}
	r, err := c.Runtime.ContainerStatus(context.Background(), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	c.Must(err)
	c.Must(json.Unmarshal([]byte(r.Info["info"]), &info))
	return Enforced{info.RuntimeSpec.Linux.Resources.CPU.Shares, info.RuntimeSpec.Linux.Resources.Memory.Limit, info.RuntimeSpec.Process.OOMScoreAdj}
}

// Enforced asks the kernel.
func (c *Container) Enforced() Enforced {
	c.Helper()
	number := func(s string) int64 {
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		c.Must(err)
		return n
	}
	e := Enforced{OOM: number(HostFile(c, fmt.Sprintf("/proc/%d/oom_score_adj", c.PID())))}
	if OnUnified() {
		e.Memory = number(c.CgroupFile("", "memory.max"))
		for _, shares := range []int64{512, 1024, 2048} { // a weight does not tell the shares; these are what the tests use
			if weight := number(c.CgroupFile("", "cpu.weight")); weight == weightOf[shares] {
				e.Shares = shares
			}
		}
		return e
	}
	e.Shares, e.Memory = number(c.CgroupFile("cpu", "cpu.shares")), number(c.CgroupFile("memory", "memory.limit_in_bytes"))
	return e
}

// weightOf is how runc turns shares into a weight.
var weightOf = map[int64]int64{512: 59, 1024: 100, 2048: 174}
