package cni

import (
	"fmt"
	"testing"
)

// One pod of the default network, set up and torn down: what a pod's start and end wait for.
func BenchmarkDefaultPod(b *testing.B) {
	h := newHost(b, withDefault(b))
	first := h.pod("first") // the bridge is there
	h.setup(first)
	defer h.teardown(first)
	for i := 0; b.Loop(); i++ {
		p := h.pod(fmt.Sprint("p", i))
		h.setup(p)
		h.teardown(p)
		if err := RemoveNetNS(p.NetNS); err != nil {
			b.Fatal(err)
		}
	}
}

// What every Status call of the kubelet costs.
func BenchmarkReady(b *testing.B) {
	h := newHost(b, withDefault(b))
	for b.Loop() {
		if err := h.n.Ready(); err != nil {
			b.Fatal(err)
		}
	}
}
