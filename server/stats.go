package server

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// ContainerStats returns the statistics of one container. If it is not running, they contain only
// its writable layer.
func (s *runtimeService) ContainerStats(_ context.Context,
	req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.pods().Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	u, err := s.pods().Stats(c)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.containerStats(u)}, nil
}

// ListContainerStats omits containers that are not running, because the kubelet would discard the
// whole list because of one container without statistics.
func (s *runtimeService) ListContainerStats(_ context.Context,
	req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	items, err := s.containerStatsItems(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: items}, nil
}

func (s *runtimeService) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest,
	to grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	all, err := s.containerStatsItems(req.GetFilter())
	if err != nil {
		return err
	}
	return sendPieces(s.Server, to, all, func(
		items []*runtimeapi.ContainerStats,
	) *runtimeapi.StreamContainerStatsResponse {
		return &runtimeapi.StreamContainerStatsResponse{ContainerStats: items}
	})
}

func (s *runtimeService) containerStatsItems(f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	var asked []sandbox.Container
	for _, c := range s.pods().Containers() {
		if isID(f.GetId(), c.ID) && isID(f.GetPodSandboxId(), c.PodID) &&
			hasLabels(f.GetLabelSelector(), c.Config.GetLabels()) {
			asked = append(asked, c)
		}
	}
	all, err := s.pods().ListStats(asked)
	return s.allContainerStats(all), err
}

// PodSandboxStats returns the statistics of one pod. They are empty if nothing runs in it.
func (s *runtimeService) PodSandboxStats(_ context.Context,
	req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.pods().Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	u, err := s.pods().PodStats(p)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(u)}, nil
}

// ListPodSandboxStats omits pods in which nothing runs.
func (s *runtimeService) ListPodSandboxStats(_ context.Context,
	req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	items, err := s.podStatsItems(req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: items}, nil
}

func (s *runtimeService) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest,
	to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	all, err := s.podStatsItems(req.GetFilter())
	if err != nil {
		return err
	}
	return sendPieces(s.Server, to, all, func(
		items []*runtimeapi.PodSandboxStats,
	) *runtimeapi.StreamPodSandboxStatsResponse {
		return &runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: items}
	})
}

func (s *runtimeService) podStatsItems(f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	var asked []sandbox.Pod
	for _, p := range s.pods().Pods() {
		if isID(f.GetId(), p.ID) && hasLabels(f.GetLabelSelector(), p.Config.GetLabels()) {
			asked = append(asked, p)
		}
	}
	all, err := s.pods().ListPodStats(asked)
	if err != nil {
		return nil, err
	}
	var items []*runtimeapi.PodSandboxStats
	for _, p := range all {
		items = append(items, s.podStats(p))
	}
	return items, nil
}

func (s *runtimeService) allContainerStats(all []sandbox.Stats) []*runtimeapi.ContainerStats {
	var items []*runtimeapi.ContainerStats
	for _, c := range all {
		items = append(items, s.containerStats(c))
	}
	return items
}

func (s *runtimeService) containerStats(u sandbox.Stats) *runtimeapi.ContainerStats {
	r := &runtimeapi.ContainerStats{
		Attributes: containerAttributes(u.Container),
		Cpu:        cpuUsage(u.Usage, u.NanoCores), Memory: memoryUsage(u.Usage), Swap: swapUsage(u.Usage),
		Io: ioUsage(u.Usage),
	}
	if l := u.Layer; l.Bytes != nil {
		r.WritableLayer = &runtimeapi.FilesystemUsage{Timestamp: l.At.UnixNano(),
			FsId:      &runtimeapi.FilesystemIdentifier{Mountpoint: s.pods().Filesystem()},
			UsedBytes: number(l.Bytes), InodesUsed: number(l.Inodes)}
	}
	return r
}

func (s *runtimeService) podStats(p sandbox.PodStats) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{
		Cpu: cpuUsage(p.Usage, p.NanoCores), Memory: memoryUsage(p.Usage), Io: ioUsage(p.Usage),
		Network: networkUsage(p), Containers: s.allContainerStats(p.Containers),
	}
	if p.Threads != nil {
		linux.Process = &runtimeapi.ProcessUsage{Timestamp: p.At.UnixNano(), ProcessCount: number(p.Threads)}
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: podAttributes(p.Pod),
		Linux:      linux,
	}
}

func podAttributes(p sandbox.Pod) *runtimeapi.PodSandboxAttributes {
	return withEncoded(&runtimeapi.PodSandboxAttributes{Id: p.ID}, &p.Encodings.Attributes,
		func() *runtimeapi.PodSandboxAttributes {
			return &runtimeapi.PodSandboxAttributes{Metadata: p.Config.GetMetadata(), Labels: p.Config.GetLabels(),
				Annotations: p.Config.GetAnnotations()}
		})
}

func containerAttributes(c sandbox.Container) *runtimeapi.ContainerAttributes {
	return withEncoded(&runtimeapi.ContainerAttributes{Id: c.ID}, &c.Encodings.Attributes,
		func() *runtimeapi.ContainerAttributes {
			return &runtimeapi.ContainerAttributes{Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(),
				Annotations: c.Config.GetAnnotations()}
		})
}

// The functions below omit unknown values and messages, because a zero would look like a
// measurement.

func cpuUsage(u sandbox.Usage, nanoCores *uint64) *runtimeapi.CpuUsage {
	if u.CPU == nil {
		return nil
	}
	return &runtimeapi.CpuUsage{Timestamp: u.At.UnixNano(), UsageCoreNanoSeconds: number(u.CPU),
		UsageNanoCores: number(nanoCores), Psi: pressure(u.CPUPressure)}
}

func memoryUsage(u sandbox.Usage) *runtimeapi.MemoryUsage {
	m := u.Memory
	if m.Usage == nil {
		return nil
	}
	return &runtimeapi.MemoryUsage{Timestamp: u.At.UnixNano(), WorkingSetBytes: number(m.WorkingSet),
		AvailableBytes: number(m.Available),
		UsageBytes:     number(m.Usage), RssBytes: number(m.RSS), PageFaults: number(m.Faults),
		MajorPageFaults: number(m.MajorFaults),
		Psi:             pressure(u.MemoryPressure)}
}

func swapUsage(u sandbox.Usage) *runtimeapi.SwapUsage {
	if u.Swap.Usage == nil {
		return nil
	}
	return &runtimeapi.SwapUsage{Timestamp: u.At.UnixNano(), SwapAvailableBytes: number(u.Swap.Available),
		SwapUsageBytes: number(u.Swap.Usage)}
}

func ioUsage(u sandbox.Usage) *runtimeapi.IoUsage {
	if u.IOPressure == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: u.At.UnixNano(), Psi: pressure(u.IOPressure)}
}

func pressure(p *sandbox.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	return &runtimeapi.PsiStats{Full: stall(p.Full), Some: stall(p.Some)}
}

func stall(s *sandbox.Stall) *runtimeapi.PsiData {
	if s == nil {
		return nil
	}
	return &runtimeapi.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}

// networkUsage returns the statistics of the default interface, and separately of all others.
func networkUsage(p sandbox.PodStats) *runtimeapi.NetworkUsage {
	if len(p.Interfaces) == 0 {
		return nil
	}
	r := &runtimeapi.NetworkUsage{Timestamp: p.InterfacesAt.UnixNano()}
	for n, i := range p.Interfaces {
		u := &runtimeapi.NetworkInterfaceUsage{Name: i.Name, RxBytes: number(&i.Rx.Bytes), RxErrors: number(&i.Rx.Errors),
			TxBytes: number(&i.Tx.Bytes), TxErrors: number(&i.Tx.Errors)}
		if n == 0 {
			r.DefaultInterface = u
			continue
		}
		r.Interfaces = append(r.Interfaces, u)
	}
	return r
}

// number returns nil for an unknown value.
func number(n *uint64) *runtimeapi.UInt64Value {
	if n == nil {
		return nil
	}
	return &runtimeapi.UInt64Value{Value: *n}
}
