package sandbox

import (
	"bytes"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// TestLastWordsOfATerminal: what a terminal still has when its process ends is shown to a client that was slow before, and took longer than a
// terminal may for the last of it.
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
