package server

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

func (s *runtimeService) CreateContainer(ctx context.Context,
	req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if req.GetSandboxConfig() == nil {
		return nil, fmt.Errorf("sandbox_config is missing: %w", errdefs.ErrInvalidArgument)
	}
	id, err := s.pods().CreateContainer(ctx, req.GetPodSandboxId(), req.GetConfig(), req.GetSandboxConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (s *runtimeService) StartContainer(ctx context.Context,
	req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, s.pods().StartContainer(ctx, req.GetContainerId())
}

func (s *runtimeService) StopContainer(ctx context.Context,
	req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return &runtimeapi.StopContainerResponse{},
		s.pods().StopContainer(ctx, req.GetContainerId(), seconds(req.GetTimeout()))
}

func (s *runtimeService) RemoveContainer(ctx context.Context,
	req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return &runtimeapi.RemoveContainerResponse{}, s.pods().RemoveContainer(ctx, req.GetContainerId())
}

func (s *runtimeService) UpdateContainerResources(ctx context.Context,
	req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if req.GetWindows() != nil {
		return nil, fmt.Errorf("windows: is set, but this machine runs Linux: %w", errdefs.ErrInvalidArgument)
	}
	if n := len(req.GetAnnotations()); n > 0 { // they are for experimental features, and cribox has none
		log.G(ctx).Warnf("ignored %d annotations of an update", n)
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, s.pods().
		UpdateContainer(ctx, req.GetContainerId(), req.GetLinux())
}

func (s *runtimeService) ReopenContainerLog(ctx context.Context,
	req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return &runtimeapi.ReopenContainerLogResponse{}, s.pods().ReopenLog(ctx, req.GetContainerId())
}

func (s *runtimeService) ExecSync(ctx context.Context,
	req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	r, err := s.pods().ExecSync(ctx, req.GetContainerId(), req.GetCmd(), seconds(req.GetTimeout()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: r.Stdout, Stderr: r.Stderr, ExitCode: r.ExitCode}, nil
}

// seconds converts seconds to a duration. It limits values that would overflow.
func seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(max(n, -most), most)) * time.Second
}

func (s *runtimeService) ListContainers(_ context.Context,
	req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return withItems(&runtimeapi.ListContainersResponse{}, whole(s.containerItems(req.GetFilter(), math.MaxInt))), nil
}

func (s *runtimeService) StreamContainers(req *runtimeapi.StreamContainersRequest,
	to grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return sendAll(s.Server, to, s.containerItems(req.GetFilter(), pieceSize),
		func(items []byte) *runtimeapi.StreamContainersResponse {
			return withItems(&runtimeapi.StreamContainersResponse{}, items)
		})
}

// containerItems returns the encoded containers that match the filter, in pieces of about size
// bytes.
func (s *runtimeService) containerItems(f *runtimeapi.ContainerFilter, size int) [][]byte {
	var match func(sandbox.Container) bool
	if f.GetId() != "" || f.GetPodSandboxId() != "" || f.GetState() != nil || len(f.GetLabelSelector()) > 0 {
		match = func(c sandbox.Container) bool { return containerMatches(f, c) }
	}
	return s.pods().ListContainers(appendContainer).Encoded(match, size)
}

func appendContainer(b []byte, c sandbox.Container) []byte { return appendItem(b, containerItem(c)) }

func containerItem(c sandbox.Container) *runtimeapi.Container {
	return &runtimeapi.Container{Id: c.ID, PodSandboxId: c.PodID, Metadata: c.Config.GetMetadata(),
		Image:    c.Config.GetImage(),
		ImageRef: c.ImageRef, ImageId: c.ImageID, State: c.CRIState(), CreatedAt: c.Created, Labels: c.Config.GetLabels(),
		Annotations: c.Config.GetAnnotations()}
}

func containerMatches(f *runtimeapi.ContainerFilter, c sandbox.Container) bool {
	return isID(f.GetId(), c.ID) && isID(f.GetPodSandboxId(), c.PodID) &&
		(f.GetState() == nil || f.GetState().GetState() == c.CRIState()) &&
		hasLabels(f.GetLabelSelector(), c.Config.GetLabels())
}

func (s *runtimeService) ContainerStatus(_ context.Context,
	req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.pods().Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	r := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(c)}
	if req.GetVerbose() {
		spec, err := s.pods().Spec(c)
		if err != nil {
			spec = []byte("null") // the file is gone once the container or its pod has ended
		}
		r.Info, err = info(map[string]any{"info": map[string]any{"pid": c.PID, "sandboxID": c.PodID, "cgroup": c.Cgroup,
			"state":  c.State,
			"config": asJSON{c.Config}, "runtimeSpec": json.RawMessage(spec)}})
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (s *runtimeService) containerStatuses(all []sandbox.Container) []*runtimeapi.ContainerStatus {
	statuses := make([]*runtimeapi.ContainerStatus, 0, len(all))
	for _, c := range all {
		statuses = append(statuses, s.containerStatus(c))
	}
	return statuses
}

func (s *runtimeService) containerStatus(c sandbox.Container) *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: c.Config.GetMetadata(), State: c.CRIState(), CreatedAt: c.Created,
		Image: s.imageOf(c), ImageRef: c.ImageRef, ImageId: c.ImageID,
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(), Mounts: c.Mounts(), LogPath: c.LogPath,
		Resources:  &runtimeapi.ContainerResources{Linux: c.Resources()},
		StopSignal: c.StopSignal(),
		User:       &runtimeapi.ContainerUser{Linux: linuxUser(c)},
	}
	switch st.State {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		st.StartedAt = c.Started
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		st.StartedAt, st.FinishedAt, st.ExitCode, st.Reason, st.Message = c.Started, c.Finished, c.ExitCode, c.Reason,
			c.Message
	}
	return st
}

func (s *Server) imageOf(c sandbox.Container) *runtimeapi.ImageSpec {
	img, _ := s.images().Lookup(c.ImageID) // no tags if the image was removed
	return named(c.Config.GetImage(), img.RepoTags)
}

// named returns the image spec of the request, with the image's first tag as the name if it has
// one. asked is nil for a container whose files are damaged.
func named(asked *runtimeapi.ImageSpec, tags []string) *runtimeapi.ImageSpec {
	spec := &runtimeapi.ImageSpec{}
	proto.Merge(spec, asked)
	if len(tags) > 0 {
		spec.Image = tags[0]
	}
	return spec
}

func linuxUser(c sandbox.Container) *runtimeapi.LinuxContainerUser {
	u := &runtimeapi.LinuxContainerUser{Uid: int64(c.UID), Gid: int64(c.GID)}
	for _, g := range c.Groups {
		u.SupplementalGroups = append(u.SupplementalGroups, int64(g))
	}
	return u
}
