package sandbox

import (
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/sandbox/store"
)

// TestHostOfPod: a container is made with the settings of its pod's handler, or not at all: those
// of none would give it the host's devices.
func TestHostOfPod(t *testing.T) {
	n := &Node{}
	n.handlers.Store(&handlers{byName: map[string]Handler{"bare": {NoHostDevices: true}}, byDefault: "bare", can: &abilities{}})
	for _, name := range []string{"bare", ""} {
		if h, _, err := n.inPod(&store.Pod{Handler: name}); err != nil || !h.NoHostDevices {
			t.Errorf("handler %q: %v, %v", name, h.NoHostDevices, err)
		}
	}
	if _, _, err := n.inPod(&store.Pod{Handler: "gone"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a handler that is gone: %v", err)
	}
}
