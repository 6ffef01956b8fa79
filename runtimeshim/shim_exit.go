package runtimeshim

import (
	"context"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// unknownExit is the end of a task that nobody could see.
var unknownExit = exitRecord{Code: 255}

func exitOf(ws unix.WaitStatus) exitRecord { return exitRecord{Code: exitCode(ws), Known: true} }

// ended writes down how a task ended, then tells everybody, once.
func (s *shim) ended(t *task, e exitRecord) {
	defer survive()
	s.step("shim.exit.seen")
	s.mu.Lock()
	rec, told := t.rec, t.exit != nil
	s.mu.Unlock()
	if told {
		return
	}
	e.Format, e.At = recordFormat, time.Now()
	kills, err := s.kills.value(rec.OOMFile)
	if err != nil {
		log.L.WithError(err).WithField("container", rec.ID).Error("whether the kernel killed the task for want of memory is not known")
	}
	e.OOM = kills > rec.OOMBase
	s.kills.drop(rec.OOMFile)
	if err := writeJSON(t.dir.exit(), e); err != nil {
		// Whoever watches still learns it; only a second fault would lose it.
		log.L.WithError(err).WithField("container", rec.ID).Error("exit of task is not written")
	}
	s.step("shim.exit.written")
	s.liftQuota(t.dir)
	s.finishTerminal(t)
	s.tell(t, e)
}

// tell tells everybody how a task ended, once: who adopts a task may find the exit that was just
// written for it.
func (s *shim) tell(t *task, e exitRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.exit != nil {
		return
	}
	t.exit = &e
	close(t.exited)
	if t.deleted {
		return // its start has failed after all, and was answered so
	}
	for w := range s.watchers {
		w.add(t.view())
	}
}

// finishTerminal moves what a task's terminal still has to where the logger finds it.
func (s *shim) finishTerminal(t *task) {
	s.mu.Lock()
	pump := t.pump
	s.mu.Unlock()
	if pump != nil && !pump.finish(lastOutput) {
		log.L.WithField("container", t.dir.id()).Error("the end of the output of a terminal is lost: nobody has read what came before")
	}
}

// watcher is one open watch: the exits that its reader has not been sent yet.
type watcher struct {
	exits []Task // under shim.mu
	more  chan struct{}
}

// add is called under shim.mu.
func (w *watcher) add(t Task) {
	w.exits = append(w.exits, t)
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// watchReply is one message of the verb watch: first all tasks, then exits.
type watchReply struct {
	Snapshot bool   `json:"snapshot,omitempty"`
	Tasks    []Task `json:"tasks"`
}

// watch sends a snapshot of all tasks and then each exit, until the caller
// goes. A caller that does not read is dropped, and finds all exits in the
// snapshot of its next watch.
func (s *shim) watch(ctx context.Context, in *inbound) (any, error) {
	w := &watcher{more: make(chan struct{}, 1)}
	s.mu.Lock()
	all := []Task{}
	for _, t := range s.tasks {
		all = append(all, t.view())
	}
	s.watchers[w] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
	}()
	if err := in.send(watchReply{Snapshot: true, Tasks: all}); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.more:
		}
		s.mu.Lock()
		exits := w.exits
		w.exits = nil
		s.mu.Unlock()
		if err := in.send(watchReply{Tasks: exits}); err != nil {
			return nil, err
		}
	}
}
