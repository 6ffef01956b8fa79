package client

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
)

func TestExitCodes(t *testing.T) {
	h := newHost(t)
	for id, c := range map[string]struct {
		args []string
		code int32
	}{
		"zero":    {[]string{"/bin/true"}, 0},
		"seven":   {sh("exit 7"), 7},
		"biggest": {sh("exit 255"), 255},
	} {
		h.start(h.params(id, c.args))
		h.wantExit(id, c.code)
	}
}

func TestOutputIsInTheLogBeforeTheExitIsTold(t *testing.T) {
	h := newHost(t)
	h.start(h.params("talker", sh("seq 1 5000; exit 3")))
	h.wantExit("talker", 3)
	h.wantCounted("talker", 5000)
}

func TestSignals(t *testing.T) {
	h := newHost(t)
	for i, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGUSR1} {
		id := fmt.Sprintf("s%d", i)
		h.start(h.params(id, sh("trap 'exit 33' USR1; trap 'exit 44' TERM; echo ready; while :; do sleep 0.05; done")))
		h.eventually("traps are set", func() bool { return len(h.logLines(id)) == 1 })
		if err := h.client.Kill(context.Background(), id, sig, false); err != nil {
			t.Fatal(err)
		}
		h.wantExit(id, map[unix.Signal]int32{unix.SIGTERM: 44, unix.SIGKILL: 137, unix.SIGUSR1: 33}[sig])
		if err := h.client.Kill(context.Background(), id, sig, false); !errdefs.IsNotFound(err) {
			t.Errorf("signal to a dead task: %v", err)
		}
	}
	if err := h.client.Kill(context.Background(), "nobody", unix.SIGTERM, true); !errdefs.IsNotFound(err) {
		t.Errorf("signal to no task: %v", err)
	}
}

func TestManyShortTasks(t *testing.T) {
	lasting(t, &finishLimit, testWait)
	h := newHost(t)
	// Starting all at once would exceed the limit of a start on a slow machine.
	const n, atATime = 200, 50
	turns := make(chan struct{}, atATime)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			id := fmt.Sprintf("t%d", i)
			if _, err := h.client.Start(context.Background(), h.params(id, sh(fmt.Sprintf("echo %d; exit %d", i, i)))); err != nil {
				t.Errorf("start %s: %v", id, err)
				return
			}
			h.wantExit(id, int32(i))
			if lines := h.logLines(id); len(lines) != 1 || lines[0] != fmt.Sprint(i) {
				t.Errorf("%s printed %q", id, lines)
			}
			if err := h.client.Release(context.Background(), id); err != nil {
				t.Error(err)
			}
			if err := h.client.Delete(context.Background(), id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, got := range h.exits {
		if len(got) != 1 {
			t.Errorf("exit of %s was told %d times", id, len(got))
		}
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	h := newHost(t)
	st := h.params("nope", []string{"/bin/nope"})
	_, err := h.client.Start(context.Background(), st)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "nope") {
		t.Errorf("start of a missing program: %v", err)
	}
	if got := h.task("nope"); got.State != runtimeshim.StateCreated {
		t.Errorf("after a failed start the task is %+v", got)
	}
	// Remove what the runtime printed during the first start.
	if err := os.Truncate(st.LogPath, 0); err != nil {
		t.Fatal(err)
	}
	st.Spec = h.spec("nope", sh("seq 1 20000")) // more than the pipe holds, in case nobody reads
	h.start(st)
	h.wantExit("nope", 0)
	h.wantCounted("nope", 20000)
	if _, err := h.client.Start(context.Background(), st); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second start: %v", err)
	}
	bad := h.params("norun", []string{"/bin/true"})
	bad.Runtime = "/no/such/runtime"
	if _, err := h.client.Start(context.Background(), bad); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("missing runtime: %v", err)
	}
}
