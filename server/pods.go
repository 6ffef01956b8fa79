package server

import (
	"context"
	"encoding/json"
	"math"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

func (s *runtimeService) RunPodSandbox(ctx context.Context,
	req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.pods().RunPod(ctx, req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (s *runtimeService) StopPodSandbox(ctx context.Context,
	req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.pods().StopPod(ctx, req.GetPodSandboxId())
}

func (s *runtimeService) RemovePodSandbox(ctx context.Context,
	req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, s.pods().RemovePod(ctx, req.GetPodSandboxId())
}

func (s *runtimeService) UpdatePodSandboxResources(_ context.Context,
	req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, s.pods().
		UpdatePod(req.GetPodSandboxId(), req.GetOverhead(), req.GetResources())
}

func (s *runtimeService) PodSandboxStatus(_ context.Context,
	req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	at := time.Now().UnixNano() // must not be later than the state that is returned
	p, err := s.pods().Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	r := &runtimeapi.PodSandboxStatusResponse{Status: podStatus(p),
		ContainersStatuses: s.containerStatuses(s.pods().ContainersOf(p)), Timestamp: at}
	if req.GetVerbose() {
		spec, err := s.pods().PodSpec(p)
		if err != nil {
			spec = []byte("null") // there is no file once the pod has ended, or if an older version created the pod
		}
		r.Info, err = info(map[string]any{"info": map[string]any{"pid": p.PausePID, "netns": p.NetNS, "cgroup": p.Cgroup,
			"state": p.State, "ips": p.IPs,
			"runtimeHandler": p.Handler, "pauseImage": p.PauseImage, "config": asJSON{p.Config},
			"overhead": asJSON{p.Overhead()}, "resources": asJSON{p.Resources()}, "runtimeSpec": json.RawMessage(spec)}})
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

func podState(p sandbox.Pod) runtimeapi.PodSandboxState {
	if p.Ready() {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// podStatus returns the CRI status of a pod. It returns the request's options unchanged, because
// the kubelet compares the network mode with the pod's, and a missing message also means a mode. A
// pod in the host's network has a network message without an address.
func podStatus(p sandbox.Pod) *runtimeapi.PodSandboxStatus {
	network := &runtimeapi.PodSandboxNetworkStatus{}
	if p.Ready() {
		for i, ip := range p.IPs {
			if i == 0 {
				network.Ip = ip
				continue
			}
			network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return &runtimeapi.PodSandboxStatus{
		Id: p.ID, Metadata: p.Config.GetMetadata(), State: podState(p), CreatedAt: p.Created, Network: network,
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
	}
}

func (s *runtimeService) ListPodSandbox(_ context.Context,
	req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return withItems(&runtimeapi.ListPodSandboxResponse{}, whole(s.podItems(req.GetFilter(), math.MaxInt))), nil
}

func (s *runtimeService) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest,
	to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return sendAll(s.Server, to, s.podItems(req.GetFilter(), pieceSize),
		func(items []byte) *runtimeapi.StreamPodSandboxesResponse {
			return withItems(&runtimeapi.StreamPodSandboxesResponse{}, items)
		})
}

// podItems returns the encoded pods that match the filter, in pieces of about size bytes.
func (s *runtimeService) podItems(f *runtimeapi.PodSandboxFilter, size int) [][]byte {
	var match func(sandbox.Pod) bool
	if f.GetId() != "" || f.GetState() != nil || len(f.GetLabelSelector()) > 0 {
		match = func(p sandbox.Pod) bool { return podMatches(f, p) }
	}
	return s.pods().ListPods(appendPod).Encoded(match, size)
}

func appendPod(b []byte, p sandbox.Pod) []byte { return appendItem(b, podItem(p)) }

func podItem(p sandbox.Pod) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{Id: p.ID, Metadata: p.Config.GetMetadata(), State: podState(p), CreatedAt: p.Created,
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler}
}

// podMatches reports whether the pod matches every part of the filter.
func podMatches(f *runtimeapi.PodSandboxFilter, p sandbox.Pod) bool {
	return isID(f.GetId(), p.ID) && (f.GetState() == nil || f.GetState().GetState() == podState(p)) &&
		hasLabels(f.GetLabelSelector(), p.Config.GetLabels())
}
