package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/containerd/errdefs"
)

// pipeOf returns a pipe whose reading end can be waited for, and the other for Attach.
func pipeOf(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// attach returns when output is being copied, and how Attach ends.
func (h *host) attach(id string, out, errs *os.File) <-chan error {
	h.t.Helper()
	attached, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	h.t.Cleanup(cancel)
	go func() { ended <- h.client.Attach(ctx, nil, id, out, errs, func() { close(attached) }) }()
	select {
	case <-attached:
	case err := <-ended:
		h.t.Fatalf("attach to %s: %v", id, err)
	}
	return ended
}

// send is what a client types.
func (h *host) send(id, text string) {
	h.t.Helper()
	s, err := h.client.Streams(context.Background(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s.Stdin, text); err != nil {
		h.t.Fatal(err)
	}
}

// A client that does not read makes the task wait, and is cut off: the task goes on, and its log has every line.
func TestAttachedButNotReading(t *testing.T) {
	t.Setenv("CRIBOX_TEST_TAP_PATIENCE", "1s")
	h := newHost(t)
	st := h.params("a", sh("read go; exec seq 100000"))
	st.Stdin = true
	h.start(st)
	_, w := pipeOf(t)
	ended := h.attach("a", w, nil)
	h.send("a", "go\n")
	if err := <-ended; !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("attach ended: %v", err)
	}
	h.wantExit("a", 0)
	h.eventually("the whole log", func() bool { return len(h.logLines("a")) == 100000 })
	h.wantCounted("a", 100000)
}

// A client that reads one of its two streams is cut off for the other, and told at once: not when the task has ended.
func TestAttachedHalfReading(t *testing.T) {
	t.Setenv("CRIBOX_TEST_TAP_PATIENCE", "1s")
	h := newHost(t)
	st := h.params("a", sh("read go; seq 100000 >&2; echo over; read go"))
	st.Stdin = true
	h.start(st)
	r, out := pipeOf(t)
	_, errs := pipeOf(t)
	ended := h.attach("a", out, errs)
	out.Close()
	h.send("a", "go\n")
	if err := <-ended; !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("attach ended: %v", err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // the stream that was read has ended too
		t.Error(err)
	}
	h.send("a", "go\n")
	h.wantExit("a", 0)
}

// Two clients of one stream get the same, each at its own pace; one that leaves does not disturb the other.
func TestAttachedTwice(t *testing.T) {
	h := newHost(t)
	st := h.params("a", sh("read go; exec seq 30000"))
	st.Stdin = true
	h.start(st)
	first, w1 := pipeOf(t)
	second, w2 := pipeOf(t)
	third, w3 := pipeOf(t)
	ended := h.attach("a", w1, nil)
	h.attach("a", w2, nil)
	h.attach("a", w3, nil)
	third.Close()
	w1.Close()
	w2.Close()
	h.send("a", "go\n")
	counts := make(chan int, 2)
	for _, r := range []*os.File{first, second} {
		go func() {
			n := 0
			for lines := bufio.NewScanner(r); lines.Scan(); n++ {
			}
			counts <- n
		}()
	}
	for range 2 {
		if n := <-counts; n != 30000 {
			t.Errorf("%d lines of 30000", n)
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("attach ended: %v", err)
	}
	h.wantExit("a", 0)
	if err := h.client.Attach(context.Background(), nil, "a", w3, nil, func() {}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("attach to an ended task: %v", err)
	}
}
