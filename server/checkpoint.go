package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errNoCheckpoints says why, and what can be done. A kubelet hands it on to whoever asked at its
// /checkpoint, as a 500, and does nothing else.
var errNoCheckpoints = fmt.Errorf("cribox takes and restores no checkpoints: it has no way to freeze a process into files; "+
	"nothing was changed. "+
	"Keep what must outlive a container in a volume, or use a node whose runtime checkpoints: %w", errdefs.ErrNotImplemented)

// CheckpointContainer refuses: ErrNotImplemented.
func (s *runtimeService) CheckpointContainer(context.Context,
	*runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, errNoCheckpoints
}

// CheckpointPod refuses: ErrNotImplemented.
func (s *runtimeService) CheckpointPod(context.Context,
	*runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, errNoCheckpoints
}

// RestorePod refuses: ErrNotImplemented.
func (s *runtimeService) RestorePod(context.Context,
	*runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, errNoCheckpoints
}
