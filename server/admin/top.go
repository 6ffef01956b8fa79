package admin

import (
	"net/http"
	"time"

	"github.com/cribox/cribox/sandbox"
)

// Use is what a container of a pod has used so far, or uses now.
type Use struct {
	Pod       string    `json:"pod"` // "namespace/name"
	PodID     string    `json:"podID"`
	Container string    `json:"container"`
	ID        string    `json:"id"`
	At        time.Time `json:"at"`
	CPU       uint64    `json:"cpu"`     // nanoseconds so far
	Memory    uint64    `json:"memory"`  // bytes of the working set
	Read      uint64    `json:"read"`    // bytes from disks so far
	Written   uint64    `json:"written"` // bytes to disks so far
	// Percent of the last ten seconds in which some process of it waited; nil where the kernel does
	// not tell.
	CPUStall    *float64 `json:"cpuStall,omitempty"`
	MemoryStall *float64 `json:"memoryStall,omitempty"`
	IOStall     *float64 `json:"ioStall,omitempty"`
}

// top returns what every container that runs uses.
func (s *Server) top(pods *sandbox.Manager, w http.ResponseWriter, _ *http.Request) error {
	metrics, err := pods.Metrics()
	if err != nil {
		return err
	}
	all := []Use{}
	for _, p := range metrics {
		for _, c := range p.Containers {
			all = append(all, useOf(podName(p.Pod), c))
		}
	}
	return send(w, all)
}

func useOf(pod string, c sandbox.Metrics) Use {
	u := Use{Pod: pod, PodID: c.PodID, Container: c.Config.GetMetadata().GetName(), ID: c.ID, At: c.At,
		CPU: valueOf(c.CPU), Memory: valueOf(c.Memory.WorkingSet),
		CPUStall: stallOf(c.CPUPressure), MemoryStall: stallOf(c.MemoryPressure), IOStall: stallOf(c.IOPressure)}
	for _, d := range c.Devices {
		u.Read += d.ReadBytes
		u.Written += d.WriteBytes
	}
	return u
}

func valueOf(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}

func stallOf(p *sandbox.Pressure) *float64 {
	if p == nil || p.Some == nil {
		return nil
	}
	return &p.Some.Avg10
}
