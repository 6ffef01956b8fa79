package server

import (
	"context"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
	"github.com/cribox/cribox/server/metrics"
)

// ListMetricDescriptors returns the descriptors of all metrics that may be sent.
func (s *runtimeService) ListMetricDescriptors(context.Context,
	*runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: metrics.Descriptors()}, nil
}

// ListPodSandboxMetrics returns the metrics of all pods with running containers.
func (s *runtimeService) ListPodSandboxMetrics(context.Context,
	*runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	items, err := s.metricsItems()
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: items}, nil
}

func (s *runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest,
	to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	all, err := s.metricsItems()
	if err != nil {
		return err
	}
	return sendPieces(s.Server, to, all, func(
		items []*runtimeapi.PodSandboxMetrics,
	) *runtimeapi.StreamPodSandboxMetricsResponse {
		return &runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: items}
	})
}

func (s *runtimeService) metricsItems() ([]*runtimeapi.PodSandboxMetrics, error) {
	all, err := s.pods().Metrics()
	if err != nil {
		return nil, err
	}
	items := make([]*runtimeapi.PodSandboxMetrics, 0, len(all))
	for _, p := range all {
		items = append(items, metrics.OfPod(p, s.imageName))
	}
	return items, nil
}

func (s *Server) imageName(c sandbox.Container) string { return s.imageOf(c).GetImage() }

// ContainerMetrics returns the metrics of ListPodSandboxMetrics for Prometheus. Before Open there
// are none.
func (s *Server) ContainerMetrics() ([]*dto.MetricFamily, error) {
	if s.parts.Load() == nil {
		return nil, errStarting
	}
	all, err := s.pods().Metrics()
	if err != nil {
		return nil, err
	}
	return metrics.Families(all, s.imageName), nil
}
