package node

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/store"
)

// TestHostOfPod: a container is made with the settings of its pod's handler, or not at all: those
// of none would give it the host's devices.
func TestHostOfPod(t *testing.T) {
	n := &Node{}
	n.handlers.Store(&handlers{byName: map[string]Handler{"bare": {NoHostDevices: true}}, byDefault: "bare", can: &abilities{}})
	for _, name := range []string{"bare", ""} {
		if h, _, err := n.InPod(&store.Pod{Handler: name}); err != nil || !h.NoHostDevices {
			t.Errorf("handler %q: %v, %v", name, h.NoHostDevices, err)
		}
	}
	if _, _, err := n.InPod(&store.Pod{Handler: "gone"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a handler that is gone: %v", err)
	}
}

func TestCgroupPath(t *testing.T) {
	for spec, want := range map[string]string{
		"/kubepods/burstable/pod1/abc":             "/kubepods/burstable/pod1/abc",
		"/cribox/abc":                              "/cribox/abc",
		"kubepods-burstable-pod1.slice:cribox:abc": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cribox-abc.scope",
		"cribox_0a1b2c.slice:cribox:abc":           "/cribox_0a1b2c.slice/cribox-abc.scope",
	} {
		if by := MadeBySystemd(want); by != strings.Contains(spec, ":") {
			t.Errorf("%s is made by systemd: %t", want, by)
		}
		if got := CgroupPath(&specs.Spec{Linux: &specs.Linux{CgroupsPath: spec}}); got != want {
			t.Errorf("%s lies at %s, want %s", spec, got, want)
		}
	}
}

// TestCPUsThatCanBe: what is plugged in is read when it is asked for, and what the machine can have
// counts.
func TestCPUsThatCanBe(t *testing.T) {
	h := withHardware(spec.Host{CPUs: "77", Mems: "77", HugePageSizes: []string{"77MB"}})
	if h.CPUs == "77" || h.Mems == "77" || slices.Contains(h.HugePageSizes, "77MB") {
		t.Errorf("what was read before stays: %v", h)
	}
	if want := readString("/sys/devices/system/cpu/possible"); h.CPUs != want {
		t.Errorf("the processors are %q, want %q", h.CPUs, want)
	}
}
