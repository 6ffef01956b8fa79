package cni

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/cni/namespace"
)

// BenchmarkDefaultPod connects one pod to the default network and disconnects it: the time that the
// start and the end of a pod wait for, and the processor time of this process and its programs.
func BenchmarkDefaultPod(b *testing.B) {
	h := newHost(b, withDefault(b))
	first := h.pod("first") // creates the bridge
	h.setup(first)
	defer h.teardown(first)
	for _, ports := range [][]Port{nil, {{HostPort: 18080, ContainerPort: 80}}} {
		b.Run(fmt.Sprintf("ports=%d", len(ports)), func(b *testing.B) {
			var spent time.Duration
			n := 0
			for ; b.Loop(); n++ {
				p := h.pod(fmt.Sprint("p", n))
				p.Ports = ports
				began := processorTime(b)
				h.setup(p)
				h.teardown(p)
				spent += processorTime(b) - began
				if err := namespace.Remove(p.NetNS); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(spent.Microseconds())/float64(n), "cpu-us/op")
		})
	}
}

// processorTime returns what this process and its children that have ended have used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var total time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var used unix.Rusage
		if err := unix.Getrusage(who, &used); err != nil {
			b.Fatal(err)
		}
		total += time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	return total
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
