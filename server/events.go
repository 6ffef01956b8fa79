package server

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// GetContainerEvents sends every change of a container or pod until the client leaves or the daemon
// ends (Unavailable). The header comes first: whoever lists after it misses nothing. A client that
// is too slow is cut off with ResourceExhausted and has to list again.
func (s *runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest,
	to grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ctx, events := s.pods().Subscribe(to.Context())
	err := to.SendHeader(metadata.MD{})
	for err == nil {
		select {
		case e := <-events:
			err = s.push(ctx, to, s.eventMessage(e))
		case <-s.ending:
			err = errEnding
		case <-ctx.Done():
			err = slow(ctx)
		}
	}
	if to.Context().Err() != nil {
		return nil // the client left, as it may
	}
	return err
}

// eventMessage leaves the containers out where they would make the message larger than a client
// takes.
func (s *runtimeService) eventMessage(e *sandbox.Event) *runtimeapi.ContainerEventResponse {
	r := &runtimeapi.ContainerEventResponse{ContainerId: e.ID, ContainerEventType: e.Type, CreatedAt: e.At, PodSandboxStatus: podStatus(e.Pod),
		ContainersStatuses: s.containerStatuses(e.Containers)}
	if proto.Size(r) > maxMessage {
		r.ContainersStatuses = nil
	}
	return r
}
