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

// TestPanicCostsOneDebt: the caller of a write that panics gets an error, and the next write
// succeeds.
func TestPanicCostsOneDebt(t *testing.T) {
	b, _, err := openBook(t.Context(), filepath.Join(t.TempDir(), "debts"))
	wantNil(t, err)
	// It has no line, which causes a panic.
	bad := &entry{text: []byte("\n+none {}\n"), done: make(chan error, 1)}
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
