package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/spec/limits"
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

// TestSlowRuntime: a runtime that was too slow for the first question is asked again at once.
func TestSlowRuntime(t *testing.T) {
	asked := make(chan bool, 2)
	n := &Node{background: t.Context()}
	n.conf.State, n.conf.CheckIDMap = "/", func(*os.File) error { return nil }
	n.conf.Features = func(ctx context.Context, _ string) (runtimeshim.Features, error) {
		_, first := ctx.Deadline()
		asked <- first
		if first {
			return runtimeshim.Features{}, fmt.Errorf("no answer: %w: %w", context.DeadlineExceeded, errdefs.ErrUnavailable)
		}
		return runtimeshim.Features{UserNamespaces: true, IDMappedMounts: true}, nil
	}
	n.SetHandlers(t.Context(), map[string]Handler{"runc": {Path: "/runc"}}, "runc")
	for _, want := range []bool{true, false} {
		select {
		case first := <-asked:
			if first != want {
				t.Errorf("asked with a limit of the start: %t, want %t", first, want)
			}
		case <-t.Context().Done():
			t.Fatal("not asked again")
		case <-time.After(time.Minute):
			t.Fatal("not asked again within a minute")
		}
	}
}

// TestOffersUserNamespaces: without a mapped tmpfs they are not offered, and not refused.
func TestOffersUserNamespaces(t *testing.T) {
	can := &abilities{byName: map[string]ability{"runc": {Features: runtimeshim.Features{UserNamespaces: true, IDMappedMounts: true}}}}
	n := &Node{}
	n.handlers.Store(&handlers{byName: map[string]Handler{"runc": {}}, byDefault: "runc", can: can})
	if h := n.HostOf(""); !h.OffersUserNamespaces() {
		t.Errorf("not offered: %q, %q", h.NoUserNamespaces, h.NoMappedTmpfs)
	}
	can.noTmpfs = errdefs.ErrFailedPrecondition
	if h := n.HostOf(""); h.OffersUserNamespaces() || h.NoUserNamespaces != "" || !can.complete() {
		t.Errorf("without a mapped tmpfs: offered %t, refused: %q", h.OffersUserNamespaces(), h.NoUserNamespaces)
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
	h := withHardware(spec.Host{Controllers: limits.Controllers{CPUs: "77", Mems: "77", HugePageSizes: []string{"77MB"}}})
	if h.CPUs == "77" || h.Mems == "77" || slices.Contains(h.HugePageSizes, "77MB") {
		t.Errorf("what was read before stays: %v", h)
	}
	if want := readString("/sys/devices/system/cpu/possible"); h.CPUs != want {
		t.Errorf("the processors are %q, want %q", h.CPUs, want)
	}
}
