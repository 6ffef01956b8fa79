package sandbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cribox/cribox/internal/guard"
)

// exits records what has ended, pod by pod: in order within a pod. No pod waits for the record of
// another, whose write may hang with the disk. There is a goroutine for each pod with an exit that
// is not recorded yet.
type exits struct {
	mu      sync.Mutex
	waiting map[string][]func() // by pod; one that is in it has a goroutine
	work    sync.WaitGroup
}

// closeLimit is how long Close waits for exits that are being recorded.
const closeLimit = 5 * time.Second

// add has act done after what was added for the pod before, unless ctx ends first.
func (e *exits) add(ctx context.Context, pod string, act func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting == nil {
		e.waiting = map[string][]func(){}
	}
	before, running := e.waiting[pod]
	e.waiting[pod] = append(before, act)
	if !running {
		e.work.Go(func() { e.run(ctx, pod) })
	}
}

func (e *exits) run(ctx context.Context, pod string) {
	for act := e.next(pod); act != nil; act = e.next(pod) {
		if ctx.Err() == nil { // else the next daemon is told of it
			guard.Run(ctx, "the record of an exit", act)
		}
	}
}

// next takes the pod's next act, or ends its turn.
func (e *exits) next(pod string) func() {
	e.mu.Lock()
	defer e.mu.Unlock()
	acts := e.waiting[pod]
	if len(acts) == 0 {
		delete(e.waiting, pod)
		return nil
	}
	e.waiting[pod] = acts[1:]
	return acts[0]
}

// wait returns when nothing is being recorded, with an error when that takes too long. Nothing is
// added any more.
func (e *exits) wait() error {
	done := make(chan struct{})
	go func() { e.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(closeLimit):
		return errors.New("the record of an exit cannot be written, the disk does not answer; the next start records it")
	}
}
