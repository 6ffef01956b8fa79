package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errNoCheckpoints says why, and what to do instead. The kubelet returns its text with status 500
// to the client of its /checkpoint endpoint, and does nothing else.
var errNoCheckpoints = fmt.Errorf("cribox does not support checkpoint and restore: "+
	"it cannot freeze a process into files; "+
	"nothing was changed. "+
	"Keep data that must outlive a container in a volume, or use a node whose runtime supports checkpoints: %w",
	errdefs.ErrNotImplemented)

// CheckpointContainer returns ErrNotImplemented.
func (s *runtimeService) CheckpointContainer(context.Context,
	*runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, errNoCheckpoints
}

// CheckpointPod returns ErrNotImplemented.
func (s *runtimeService) CheckpointPod(context.Context,
	*runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, errNoCheckpoints
}

// RestorePod returns ErrNotImplemented.
func (s *runtimeService) RestorePod(context.Context,
	*runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, errNoCheckpoints
}
