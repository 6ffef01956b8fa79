package server

import (
	"context"
	"encoding/json"
	"runtime"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtimeName becomes the scheme of every container id in Kubernetes (cribox://<id>) and must never change.
const runtimeName = "cribox"

// Version returns what the kubelet insists on: its own version 0.1.0, and cribox's name, version and CRI version.
func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: runtimeName, RuntimeVersion: s.version, RuntimeApiVersion: "v1"}, nil
}

// Status tells whether containers can be started and pods connected, now.
func (s *runtimeService) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	r := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", s.pods().Ready(ctx)),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", s.pods().NetworkReady()),
		}},
		RuntimeHandlers: s.handlers(),
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true},
	}
	if req.GetVerbose() {
		host, err := json.Marshal(s.pods().Host())
		if err != nil {
			return nil, err
		}
		unknown, err := s.unknown.info()
		if err != nil {
			return nil, err
		}
		notes, err := json.Marshal(s.pods().Notes())
		if err != nil {
			return nil, err
		}
		r.Info = map[string]string{"host": string(host), "goroutines": strconv.Itoa(runtime.NumGoroutine()), "unknownFields": unknown,
			"notes": string(notes)}
	}
	return r, nil
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err == nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// handlers lists every handler by name, and the default one under the empty name too: the kubelet looks there for a pod without a class.
func (s *runtimeService) handlers() []*runtimeapi.RuntimeHandler {
	names, _ := s.pods().Handlers()
	all := make([]*runtimeapi.RuntimeHandler, 0, len(names)+1)
	for _, name := range append([]string{""}, names...) {
		all = append(all, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: s.pods().Host().RecursiveReadOnly, UserNamespaces: s.pods().HostOf(name).NoUserNamespaces == ""}})
	}
	return all
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *runtimeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.pods().Host().SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the range of addresses of this node's pods.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.pods().SetPodCIDR(cidr); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
