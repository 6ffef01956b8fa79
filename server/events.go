package server

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// GetContainerEvents sends every change of a container or pod until the client leaves or the daemon
// ends (Unavailable). It sends the header after it has subscribed: a client that lists after it has
// received the header cannot miss an event. A client that reads too slowly gets ResourceExhausted,
// and must list again.
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
		return nil // a client may leave at any time
	}
	return err
}

// eventMessage returns the CRI message of an event. It omits the containers if they would make the
// message larger than a client accepts.
func (s *runtimeService) eventMessage(e *sandbox.Event) *runtimeapi.ContainerEventResponse {
	r := &runtimeapi.ContainerEventResponse{ContainerId: e.ID, ContainerEventType: e.Type, CreatedAt: e.At,
		PodSandboxStatus:   podStatus(e.Pod),
		ContainersStatuses: s.containerStatuses(e.Containers)}
	if proto.Size(r) > maxMessage {
		r.ContainersStatuses = nil
	}
	return r
}
