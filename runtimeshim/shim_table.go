package runtimeshim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

func newTask(d taskDir, rec taskRecord) *task {
	return &task{dir: d, rec: rec, op: make(chan struct{}, 1), exited: make(chan struct{})}
}

func (t *task) unlock() { t.op <- struct{}{} }

// insert adds a task, locked by the caller. ErrAlreadyExists, ErrUnavailable.
func (s *shim) insert(rec taskRecord) (*task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quitting {
		return nil, fmt.Errorf("task %s: the shim is ending: %w", rec.ID, errdefs.ErrUnavailable)
	}
	if t, ok := s.tasks[rec.ID]; ok {
		return nil, fmt.Errorf("task %s is %s: %w", rec.ID, t.view().State, errdefs.ErrAlreadyExists)
	}
	t := newTask(s.state.task(rec.ID), rec)
	s.tasks[rec.ID] = t
	return t, nil
}

// lock waits until nobody else starts, releases or deletes the task; the
// caller ends with t.unlock. ErrNotFound when there is none (any more).
func (s *shim) lock(ctx context.Context, id string) (*task, error) {
	for {
		t, err := s.find(id)
		if err != nil {
			return nil, err
		}
		select {
		case <-t.op:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the operation in flight on task %s: %w", id, context.Cause(ctx))
		}
		s.mu.Lock()
		gone := t.deleted
		s.mu.Unlock()
		if !gone {
			return t, nil
		}
		t.unlock()
	}
}

func (s *shim) find(id string) (*task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tasks[id]; ok {
		return t, nil
	}
	return nil, fmt.Errorf("task %s: %w", id, errdefs.ErrNotFound)
}

// forget takes a task out of the table and closes what the shim holds of it.
// The caller holds op.
func (s *shim) forget(t *task) {
	s.mu.Lock()
	t.deleted = true
	delete(s.tasks, t.rec.ID)
	keeper := t.keeper
	t.keeper = nil
	s.mu.Unlock()
	s.letGo(t)
	s.mu.Lock()
	pidfd := t.pidfd
	t.pidfd = nil
	s.mu.Unlock()
	closeAll([]*os.File{pidfd})
	if keeper != nil {
		keeper.close()
	}
}

// letGo closes the task's streams. They leave its pod's keeper first, so that
// nothing sends a number that has become somebody else's.
func (s *shim) letGo(t *task) {
	s.mu.Lock()
	files := append(t.fifos, t.stdin, t.giving, t.tty)
	pump := t.pump
	t.fifos, t.stdin, t.giving, t.tty, t.pump = nil, nil, nil, nil, nil
	s.mu.Unlock()
	s.refreshKeeper(t.rec.Pod)
	if pump != nil {
		pump.close()
	}
	closeAll(files)
}

// refreshKeeper puts in flight what the pod's tasks need now. Best effort: it
// is a second net below the shim's own life. The lock makes the last to come
// the last to write.
func (s *shim) refreshKeeper(pod string) {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	s.mu.Lock()
	p := s.tasks[pod]
	if p == nil || p.keeper == nil {
		s.mu.Unlock()
		return
	}
	keeper := p.keeper
	var items []kept
	for _, t := range s.tasks {
		if t.keptBy == pod || t.unknown && t.rec.Pod == pod { // what is there of it must stay
			s.mu.Unlock()
			return
		}
		if t.rec.Pod == pod && t.rec.State == stateRunning && !t.rec.Released {
			items = append(items, t.toKeep())
		}
	}
	s.mu.Unlock()
	if err := keeper.keep(items); err != nil {
		log.L.WithError(err).WithField("pod", pod).Warn("descriptors would not survive the shim")
	}
}

// toKeep is what must survive the shim; under shim.mu.
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

// view is the task as callers see it; under shim.mu.
func (t *task) view() Task {
	v := Task{ID: t.rec.ID, Pod: t.rec.Pod, Pid: t.rec.Pid, StartedAt: t.rec.StartedAt, State: t.rec.State}
	if e := t.exit; e != nil {
		v.State = stateExited
		v.Exit = &Exit{Code: e.Code, Known: e.Known, OOMKilled: e.OOM, At: e.At}
	}
	return v
}

// list returns by id every task, and as "created" everything of that name which
// is none: a folder not started yet, a runtime's state without a folder.
func (s *shim) list() ([]Task, error) {
	var entries []os.DirEntry
	for _, dir := range []string{s.state.tasks(), s.state.runcRoot()} {
		found, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list tasks: %v: %w", err, errdefs.ErrUnavailable)
		}
		entries = append(entries, found...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []Task{}
	for _, t := range s.tasks {
		all = append(all, t.view())
	}
	seen := map[string]bool{}
	for _, e := range entries {
		if _, known := s.tasks[e.Name()]; !known && !seen[e.Name()] && checkID(e.Name()) == nil {
			seen[e.Name()] = true
			all = append(all, Task{ID: e.Name(), State: stateCreated})
		}
	}
	slices.SortFunc(all, func(a, b Task) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// settle waits for the operation in flight and returns what came of it.
func (s *shim) settle(ctx context.Context, id string) (any, error) {
	for {
		t, err := s.lock(ctx, id)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		view, unknown := t.view(), t.unknown
		s.mu.Unlock()
		t.unlock()
		if !unknown {
			return view, nil
		}
		pauseFor(ctx, lookAgain)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("task %s cannot be read now: %w", id, errdefs.ErrUnavailable)
		}
	}
}
