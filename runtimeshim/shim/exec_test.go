package shim

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// TestTooManySessions fills a task with sessions: the next one is refused until one has ended. What the kubelet runs in it, and
// sessions of another task, go on.
func TestTooManySessions(t *testing.T) {
	s := partsOf("/x")
	full, other := newTask(statedir.Task(t.TempDir()), statedir.Record{State: runtimeshim.StateRunning}), newTask("/x/other", statedir.Record{})
	s.table.tasks["full"] = full
	var leave func()
	for range mostSessions {
		var err error
		if leave, err = s.table.enterSession(full); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // an exec that is not refused ends for another reason
	for session, refused := range map[bool]bool{true: true, false: false} {
		_, err := s.execs.exec(ctx, wire.NewInbound("exec", wire.Exec{ID: "full", Runtime: "/no/runtime", Session: session}))
		if err == nil || errdefs.IsResourceExhausted(err) != refused {
			t.Errorf("one more, session %v: %v", session, err)
		}
	}
	if _, err := s.table.enterSession(other); err != nil {
		t.Errorf("in another task: %v", err)
	}
	leave()
	if _, err := s.table.enterSession(full); err != nil {
		t.Errorf("when one has ended: %v", err)
	}
}
