package streams

import (
	"bytes"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/sandbox/spec"
)

// TestLastWordsOfATerminal: what a terminal still has when its process ends is shown to a client
// that was slow before, and took longer than a terminal may for the last of it.
func TestLastWordsOfATerminal(t *testing.T) {
	tty, program, err := os.Pipe() // it ends as a terminal does, when nobody has its other end
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	defer program.Close()
	var ended atomic.Bool
	var shown bytes.Buffer
	busy, again, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		show(tty, func(b []byte) {
			if shown.Len() == 0 {
				close(busy)
				<-again
			}
			shown.Write(b)
		}, &ended)
	}()
	say := func(text string) {
		if _, err := program.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	say("first, ")
	<-busy
	say("last")
	program.Close()
	ended.Store(true)
	tty.SetReadDeadline(time.Now()) // the time that the last output has is over
	close(again)
	<-over
	if shown.String() != "first, last" {
		t.Errorf("the client was shown %q", shown.String())
	}
}

// What a command wrote before it ended is returned whole; a child that keeps the pipe is not waited
// for (I12).
func TestCaptureDoesNotWaitForAChild(t *testing.T) {
	c, err := newCapture(spec.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	child, err := unix.Dup(int(c.w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	want := strings.Repeat("x", 60000)
	if _, err := c.w.WriteString(want); err != nil {
		t.Fatal(err)
	}
	if got := c.finish(); string(got) != want {
		t.Fatalf("%d of %d bytes", len(got), len(want))
	}
}

func TestCaptureIsBounded(t *testing.T) {
	c, err := newCapture(spec.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	chunk := make([]byte, 1<<20)
	for range 20 { // blocks for ever if nobody reads on after the cap
		if _, err := c.w.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.finish(); len(got) != maxExecOutput {
		t.Fatalf("%d bytes, want %d", len(got), maxExecOutput)
	}
}

// TestSEC77OutputsTogether: what many commands print at once is kept up to a bound for all of them,
// and the room is given back.
func TestSEC77OutputsTogether(t *testing.T) {
	before := outputs.Load()
	chunk := make([]byte, maxExecOutput)
	var kept int
	var all []*capture
	for range maxOutputs/maxExecOutput + 3 {
		c, err := newCapture(spec.Owner{})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
		if _, err := c.w.Write(chunk); err != nil {
			t.Fatal(err)
		}
		kept += len(c.finish())
	}
	if kept > maxOutputs || kept < maxOutputs-maxExecOutput {
		t.Errorf("%d bytes are kept, want about %d", kept, maxOutputs)
	}
	for _, c := range all {
		c.close()
	}
	if after := outputs.Load(); after != before {
		t.Errorf("%d bytes are taken for nobody", after-before)
	}
}
