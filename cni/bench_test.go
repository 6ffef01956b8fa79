package cni

import (
	"fmt"
	"testing"

	"github.com/cribox/cribox/cni/namespace"
)

// BenchmarkDefaultPod connects one pod to the default network and disconnects it: the time that the
// start and the end of a pod wait for.
func BenchmarkDefaultPod(b *testing.B) {
	h := newHost(b, withDefault(b))
	first := h.pod("first") // creates the bridge
	h.setup(first)
	defer h.teardown(first)
	for i := 0; b.Loop(); i++ {
		p := h.pod(fmt.Sprint("p", i))
		h.setup(p)
		h.teardown(p)
		if err := namespace.Remove(p.NetNS); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReady measures what each Status call of the kubelet costs.
func BenchmarkReady(b *testing.B) {
	h := newHost(b, withDefault(b))
	for b.Loop() {
		if err := h.n.Ready(); err != nil {
			b.Fatal(err)
		}
	}
}
