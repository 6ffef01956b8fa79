package server

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/sandbox"
)

// runtimeName is the scheme of every container ID in Kubernetes (cribox://<id>). It must never
// change.
const runtimeName = "cribox"

// noKnownFlaws is a condition of cribox's own, for people. The kubelet ignores it.
const noKnownFlaws = "RuntimeHasNoKnownFlaws"

// Version returns the kubelet API version, which must be 0.1.0, and the name, version and CRI
// version of cribox.
func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: runtimeName, RuntimeVersion: s.version,
		RuntimeApiVersion: "v1"}, nil
}

// Status reports whether containers can be started and pods can be connected now, and whether a
// runtime has a known flaw that lets containers escape.
func (s *runtimeService) Status(ctx context.Context,
	req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	s.pods().AskAgain()
	r := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", s.pods().Ready(ctx)),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", s.pods().NetworkReady()),
			condition(noKnownFlaws, "KnownFlaws", s.pods().Flaws()),
		}},
		RuntimeHandlers: s.handlers(),
		Features:        s.features(),
	}
	if !req.GetVerbose() {
		return r, nil
	}
	unknown, err := s.unknown.info()
	if err != nil {
		return nil, err
	}
	r.Info, err = info(map[string]any{
		"config": s.parts.Load().config(), "host": s.pods().HostOf(""), "runtimes": s.pods().Features(),
		"network":    s.pods().Network(ctx),
		"running":    runningOf(s.pods().Running()),
		"goroutines": runtime.NumGoroutine(), "unknownFields": json.RawMessage(unknown), "notes": s.pods().Notes()})
	return r, err
}

// runningStep is a step that has not ended, for people.
type runningStep struct {
	Of   string `json:"of"` // a kind and an ID
	Name string `json:"name,omitempty"`
	Step string `json:"step"`
	For  string `json:"for"`
}

// runningOf returns every step that runs now.
func runningOf(stories []sandbox.Story) []runningStep {
	all := []runningStep{}
	for _, s := range stories {
		for _, step := range s.Running {
			took := step.Took.Round(time.Millisecond).String()
			all = append(all, runningStep{Of: s.Kind + " " + s.ID, Name: s.Name, Step: step.Name, For: took})
		}
	}
	return all
}

// info returns the extra information of a verbose response. Each value is JSON, as the CRI
// requires.
func info(values map[string]any) (map[string]string, error) {
	all := make(map[string]string, len(values))
	for key, value := range values {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("verbose information %s: %w", key, err)
		}
		all[key] = string(b)
	}
	return all, nil
}

// asJSON encodes a CRI message as JSON within the extra information.
type asJSON struct{ proto.Message }

func (m asJSON) MarshalJSON() ([]byte, error) { return protojson.Marshal(m.Message) }

// features returns the features of the runtime as a whole. The kubelet takes them as those of the
// default handler.
func (s *runtimeService) features() *runtimeapi.RuntimeFeatures {
	h := s.pods().HostOf("")
	return &runtimeapi.RuntimeFeatures{
		SupplementalGroupsPolicy: true,
		// such a pod needs a read-only /sys, see spec.ValidatePod
		UserNamespacesHostNetwork: h.OffersUserNamespaces() && h.RecursiveReadOnly,
		MountOptions:              true,
	}
}

func condition(kind, reason string, err error) *runtimeapi.RuntimeCondition {
	if err == nil {
		return &runtimeapi.RuntimeCondition{Type: kind, Status: true}
	}
	return &runtimeapi.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
}

// handlers returns every handler by name, and the default one also under the empty name, which the
// kubelet uses for pods without a RuntimeClass.
func (s *runtimeService) handlers() []*runtimeapi.RuntimeHandler {
	names, _ := s.pods().Handlers()
	all := make([]*runtimeapi.RuntimeHandler, 0, len(names)+1)
	for _, name := range append([]string{""}, names...) {
		h := s.pods().HostOf(name)
		all = append(all, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.OffersUserNamespaces()}})
	}
	return all
}

// RuntimeConfig returns the cgroup driver that the kubelet must use.
func (s *runtimeService) RuntimeConfig(context.Context,
	*runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.pods().Host().SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig sets the range of addresses for this node's pods.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context,
	req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		if err := s.pods().SetPodCIDR(cidr); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
