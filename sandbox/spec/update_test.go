package spec

import (
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type figures = runtimeapi.LinuxContainerResources

func TestUpdateSpec(t *testing.T) {
	c := aContainer()
	c.Config.Linux.Resources = &figures{CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 100}
	s := mustContainer(t, aHost(), aPod(), c)
	before := clone(s)
	now, notes, err := Update(aHost(), s, &figures{MemoryLimitInBytes: 96 << 20})
	if err != nil || len(notes) > 0 || *now.Linux.Resources.Memory.Limit != 96<<20 || *now.Process.OOMScoreAdj != 100 {
		t.Errorf("%+v, %v, %v", now.Linux.Resources, notes, err)
	}
	if !reflect.DeepEqual(s, before) {
		t.Error("the spec that was given has changed")
	}
	h := aHost()
	h.OOMScoreAdjMin = -5
	if now, notes, err = Update(h, s, &figures{OomScoreAdj: -900}); err != nil || len(notes) != 1 || *now.Process.OOMScoreAdj != -5 {
		t.Errorf("%v, %v, %v", now, notes, err)
	}
	_, _, err = Update(h, s, &figures{OomScoreAdj: 1001})
	wantInvalid(t, err, "oom_score_adj")
	h.CgroupV2 = false
	if _, _, err = Update(h, s, &figures{Unified: map[string]string{"memory.high": "max"}}); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	for _, none := range []*specs.Spec{nil, {}, {Process: &specs.Process{}}} {
		if _, _, err = Update(h, none, nil); err == nil {
			t.Errorf("%v can be updated", none)
		}
	}
}

func TestPodFigures(t *testing.T) {
	for _, bad := range []*figures{{CpuShares: -1}, {CpuPeriod: -1}, {CpuQuota: -2}, {MemoryLimitInBytes: -2}, {MemorySwapLimitInBytes: -2}} {
		wantInvalid(t, ValidatePodResources(bad, nil), "overhead")
		wantInvalid(t, ValidatePodResources(nil, bad), "resources")
	}
	// What only a machine could refuse is the kubelet's to know: it has made the cgroup.
	if err := ValidatePodResources(nil, &figures{CpuQuota: -1, MemoryLimitInBytes: 1, CpusetCpus: "4000"}); err != nil {
		t.Error(err)
	}
}
