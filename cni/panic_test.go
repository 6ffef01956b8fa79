package cni

import (
	"context"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// TestPanicCostsOneAnswer: a request that panics counts as one without an answer; the network stays
// ready.
func TestPanicCostsOneAnswer(t *testing.T) {
	asked := make(chan struct{})
	a := &asker{ask: func(context.Context, *network) error { defer close(asked); panic("oh") }}
	w := &network{version: "1.1.0", chains: [4]*libcni.NetworkConfigList{{Bytes: []byte("{}")}}}
	if answered := a.start(w); answered != nil {
		<-asked
		<-answered
	}
	if got := a.last(w); !strings.HasPrefix(got, "no answer: panic") {
		t.Errorf("people are told %q", got)
	}
	wantNil(t, a.verdict(w))
}
