package client

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// TestOneTask asks about one task: a shim of this version is asked for that task only, and one of an
// earlier version, which does not know the verb, for all of them.
func TestOneTask(t *testing.T) {
	a, b := runtimeshim.Task{ID: "a", Pid: 1}, runtimeshim.Task{ID: "b", Pid: 2}
	var mu sync.Mutex // guards asked: each call has a goroutine of the shim's
	var asked []string
	ask := func(verb string) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, verb)
	}
	old := map[string]wire.Handler{
		"version": func(context.Context, *wire.Inbound) (any, error) { return wire.Version{Format: 1}, nil },
		"tasks": func(context.Context, *wire.Inbound) (any, error) {
			ask("tasks")
			return []runtimeshim.Task{a, b}, nil
		},
	}
	this := map[string]wire.Handler{"version": old["version"], "task": func(_ context.Context, in *wire.Inbound) (any, error) {
		ask("task")
		var id wire.Task
		if err := in.Decode(&id); err != nil {
			return nil, err
		}
		if id.ID != b.ID {
			return nil, fmt.Errorf("task %s: %w", id.ID, errdefs.ErrNotFound)
		}
		return b, nil
	}}
	for name, c := range map[string]struct {
		handlers map[string]wire.Handler
		want     string
	}{"earlier": {old, "[tasks tasks]"}, "this": {this, "[task task]"}} {
		t.Run(name, func(t *testing.T) {
			k := fakeClient(t, c.handlers)
			mu.Lock()
			asked = nil
			mu.Unlock()
			if got, err := k.Task(t.Context(), "b"); err != nil || got.Pid != b.Pid {
				t.Errorf("the task is %+v, %v", got, err)
			}
			if got, err := k.Task(t.Context(), "c"); !errdefs.IsNotFound(err) {
				t.Errorf("a task that is not there is %+v, %v", got, err)
			}
			if _, err := k.Task(t.Context(), "../b"); !errdefs.IsInvalidArgument(err) {
				t.Errorf("the task of a path: %v", err)
			}
			if err := k.Ping(t.Context()); err != nil {
				t.Errorf("ping: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if got := fmt.Sprint(asked); got != c.want {
				t.Errorf("asked for %s, want %s", got, c.want)
			}
		})
	}
}

// fakeClient returns a client of a shim with these handlers.
func fakeClient(t *testing.T, handlers map[string]wire.Handler) *Client {
	path := filepath.Join(t.TempDir(), "s")
	ctx, end := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- wire.Serve(ctx, path, handlers) }()
	t.Cleanup(func() {
		end()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &Client{ctx: ctx, shim: newPeer("shim", Config{}, path, "", "", "")}
}
