package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

func newTask(d statedir.Task, rec statedir.Record) *task {
	return &task{dir: d, rec: rec, op: make(chan struct{}, 1), exited: make(chan struct{})}
}

func (t *task) unlock() { t.op <- struct{}{} }

// insert adds a task, locked for the caller. ErrAlreadyExists; ErrUnavailable when the shim is
// ending.
func (tab *table) insert(rec statedir.Record) (*task, error) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if tab.quitting {
		return nil, fmt.Errorf("task %s: the shim is shutting down: %w", rec.ID, errdefs.ErrUnavailable)
	}
	if t, ok := tab.tasks[rec.ID]; ok {
		return nil, fmt.Errorf("task %s is %s: %w", rec.ID, t.view().State, errdefs.ErrAlreadyExists)
	}
	t := newTask(tab.state.Task(rec.ID), rec)
	tab.tasks[rec.ID] = t
	return t, nil
}

// lock waits until no other operation has the task locked, and locks it; the caller must call
// t.unlock. ErrNotFound when the task does not exist or has been deleted meanwhile.
func (tab *table) lock(ctx context.Context, id string) (*task, error) {
	for {
		t, err := tab.find(id)
		if err != nil {
			return nil, err
		}
		select {
		case <-t.op:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the operation in flight on task %s: %w", id, context.Cause(ctx))
		}
		tab.mu.Lock()
		gone := t.deleted
		tab.mu.Unlock()
		if !gone {
			return t, nil
		}
		t.unlock()
	}
}

func (tab *table) find(id string) (*task, error) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if t, ok := tab.tasks[id]; ok {
		return t, nil
	}
	return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
}

// toKeep returns the descriptors that must survive the shim; requires table.mu.
func (t *task) toKeep() kept {
	it := kept{keptHead: keptHead{ID: t.rec.ID}}
	it.add("pidfd", t.pidfd)
	for _, f := range t.fifos {
		it.add("fifo", f)
	}
	it.add("tty", t.tty)
	if t.giving != nil {
		it.add("stdin", t.giving)
	} else {
		it.add("stdin", t.stdin)
	}
	return it
}

// view returns the task as callers see it; requires table.mu.
func (t *task) view() runtimeshim.Task {
	v := runtimeshim.Task{ID: t.rec.ID, Pod: t.rec.Pod, Pid: t.rec.Pid, StartedAt: t.rec.StartedAt, State: t.rec.State}
	if e := t.exit; e != nil {
		v.State = runtimeshim.StateExited
		v.Exit = &runtimeshim.Exit{Code: e.Code, Known: e.Known, OOMKilled: e.OOM, At: e.At}
	}
	return v
}

// list returns every task, sorted by id, and with state "created" everything else that has an id: a
// folder not started yet, a runtime's state without a folder.
func (tab *table) list() ([]runtimeshim.Task, error) {
	var entries []os.DirEntry
	for _, dir := range []string{tab.state.Tasks(), tab.state.RuncRoot()} {
		found, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list tasks: %v: %w", err, errdefs.ErrUnavailable)
		}
		entries = append(entries, found...)
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	all := []runtimeshim.Task{}
	for _, t := range tab.tasks {
		all = append(all, t.view())
	}
	seen := map[string]bool{}
	for _, e := range entries {
		if _, known := tab.tasks[e.Name()]; !known && !seen[e.Name()] && statedir.CheckID(e.Name()) == nil {
			seen[e.Name()] = true
			all = append(all, runtimeshim.Task{ID: e.Name(), State: runtimeshim.StateCreated})
		}
	}
	slices.SortFunc(all, func(a, b runtimeshim.Task) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// one returns one task as list does. ErrNotFound if list would not have it.
func (tab *table) one(id string) (runtimeshim.Task, error) {
	if t, ok := tab.known(id); ok {
		return t, nil
	}
	for _, dir := range []string{tab.state.Tasks(), tab.state.RuncRoot()} {
		_, err := os.Lstat(filepath.Join(dir, id))
		if err == nil {
			return runtimeshim.Task{ID: id, State: runtimeshim.StateCreated}, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return runtimeshim.Task{}, fmt.Errorf("look for task %s: %v: %w", id, err, errdefs.ErrUnavailable)
		}
	}
	if t, ok := tab.known(id); ok { // added since
		return t, nil
	}
	return runtimeshim.Task{}, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
}

func (tab *table) known(id string) (runtimeshim.Task, bool) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	t, ok := tab.tasks[id]
	if !ok {
		return runtimeshim.Task{}, false
	}
	return t.view(), true
}

// awaitStart waits for the operation in progress on a task and returns the task after it.
func (tab *table) awaitStart(ctx context.Context, id string) (any, error) {
	for {
		t, err := tab.lock(ctx, id)
		if err != nil {
			return nil, err
		}
		tab.mu.Lock()
		view, unknown := t.view(), t.unknown
		tab.mu.Unlock()
		t.unlock()
		if !unknown {
			return view, nil
		}
		helper.Pause(ctx, helper.LookAgain)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("task %s cannot be read now: %w", id, errdefs.ErrUnavailable)
		}
	}
}
