package cni

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// TestPanicCostsOneAnswer: a question that panics is one without an answer, which is not held
// against the network.
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

// TestPanicCostsOneDebt: who waits for a write that panics is told, and the next one is written.
func TestPanicCostsOneDebt(t *testing.T) {
	b, _, err := openBook(t.Context(), filepath.Join(t.TempDir(), "debts"))
	wantNil(t, err)
	bad := &entry{text: []byte("\n+none {}\n"), done: make(chan error, 1)} // without a line
	b.put(bad)
	if err := <-bad.done; !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("who waits is told %v", err)
	}
	l, err := b.add(t.Context(), "pod", []byte("{}"))
	wantNil(t, err)
	if l.at != 1 {
		t.Errorf("the next debt is at %d", l.at)
	}
}
