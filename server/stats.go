package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

func (s *runtimeService) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.pods().Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.containerStats(ctx, c)}, nil
}

// ListContainerStats leaves out what does not run: one container without figures must not cost the kubelet all others.
func (s *runtimeService) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	r := &runtimeapi.ListContainerStatsResponse{}
	f := req.GetFilter()
	for _, c := range s.pods().Containers() {
		if c.Running() && isID(f.GetId(), c.ID) && isID(f.GetPodSandboxId(), c.PodID) && hasLabels(f.GetLabelSelector(), c.Config.GetLabels()) {
			r.Stats = append(r.Stats, s.containerStats(ctx, c))
		}
	}
	return r, nil
}

func (s *runtimeService) containerStats(ctx context.Context, c sandbox.Container) *runtimeapi.ContainerStats {
	u := s.pods().Stats(ctx, c)
	at := u.At.UnixNano()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations()},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(u.CPU)},
		Memory: &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: number(u.WorkingSet), AvailableBytes: number(u.Available), UsageBytes: number(u.Usage),
			RssBytes: number(u.RSS), PageFaults: number(u.Faults), MajorPageFaults: number(u.MajorFaults)},
		WritableLayer: &runtimeapi.FilesystemUsage{Timestamp: u.Layer.At.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: u.Layer.Mountpoint},
			UsedBytes: number(u.Layer.Bytes), InodesUsed: number(u.Layer.Inodes)},
	}
}

func number(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
