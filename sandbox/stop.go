package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/internal/telemetry"
	"github.com/cribox/cribox/sandbox/store"
	"github.com/cribox/cribox/sandbox/table"
)

const (
	killLimit = 30 * time.Second           // for a process to go after SIGKILL; one in uninterruptible sleep does not
	maxGrace  = 100 * 365 * 24 * time.Hour // as good as for ever, and no overflow
)

// stop is a StopContainer under way. A second caller joins it and may shorten its grace, never
// lengthen it.
type stop struct {
	done chan struct{} // closed when err is set
	err  error

	mu      sync.Mutex // guards what follows
	by      time.Time  // when the grace ends
	shorter chan struct{}
}

// StopContainer sends the stop signal, waits for grace and then kills (CRI StopContainer). It
// returns when the exit is recorded. A container that does not run, or is unknown, is no error.
// ErrInvalidArgument for a negative grace, context.DeadlineExceeded when the process cannot be
// killed.
func (cs *containers) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	if grace < 0 {
		return fmt.Errorf("timeout %v is negative: %w", grace, errdefs.ErrInvalidArgument)
	}
	c, err := cs.table.FindContainer(id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return cs.stopContainer(ctx, c, min(grace, maxGrace))
}

func (cs *containers) stopContainer(ctx context.Context, c *table.ContainerEntry, grace time.Duration) error {
	if err := cs.awaitStart(ctx, c); err != nil {
		return err
	}
	r, ok := cs.states.Record(c)
	if !ok || r.State != store.ContainerRunning && r.State != store.ContainerStopping {
		return nil
	}
	s := cs.joinStop(ctx, c, time.Now().Add(grace))
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("container %s is still stopping: %w", c.ID, ctx.Err())
	}
}

// awaitStart returns when no start of the container is under way. After a restart the start may not
// have its turn yet: until recovery has found out what became of it, the container may have a
// process.
func (cs *containers) awaitStart(ctx context.Context, c *table.ContainerEntry) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		if r, ok := cs.states.Record(c); !ok || r.State != store.ContainerStarting {
			return nil
		}
		done, err := cs.turns.Take(ctx, c.ID)
		if err != nil {
			return err
		}
		done()
		select {
		case <-ctx.Done():
			return fmt.Errorf("container %s is still starting: %w", c.ID, ctx.Err())
		case <-again.C:
		}
	}
}

// joinStop returns the stop under way, made to end by the given time at the latest, or begins one.
func (cs *containers) joinStop(ctx context.Context, c *table.ContainerEntry, by time.Time) *stop {
	cs.mu.Lock()
	s, running := cs.stops[c.ID]
	if !running {
		s = &stop{done: make(chan struct{}), by: by, shorter: make(chan struct{}, 1)}
		cs.stops[c.ID] = s
	}
	cs.mu.Unlock()
	if running {
		s.shorten(by)
		return s
	}
	go func() {
		ctx := aboutContainer(context.WithoutCancel(ctx), cs, c)
		s.err = guard.Call(ctx, "stop of a container", func() error {
			return activity.Wait(ctx, "stop", func(ctx context.Context) error { return cs.runStop(ctx, c, s) })
		})
		cs.mu.Lock()
		delete(cs.stops, c.ID)
		cs.mu.Unlock()
		close(s.done)
	}()
	return s
}

func (s *stop) shorten(by time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if by.Before(s.by) {
		s.by = by
		select {
		case s.shorter <- struct{}{}:
		default:
		}
	}
}

func (s *stop) deadline() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by
}

func (cs *containers) runStop(ctx context.Context, c *table.ContainerEntry, s *stop) error {
	note := func() syscall.Signal {
		signal, err := cs.states.Stopping(c, s.deadline())
		if err != nil {
			log.G(ctx).WithError(err).Warn("cannot record a stop; stopping anyway")
		}
		return signal
	}
	signal := note()
	cs.step.Pass("container.stopping")
	if time.Until(s.deadline()) > 0 { // also when recovery goes on with a stop: a signal twice does less harm than none
		warn(ctx, cs.signal(ctx, c, signal, false))
	}
	for {
		left := time.Until(s.deadline())
		if left <= 0 {
			break
		}
		timer := time.NewTimer(left)
		select {
		case <-c.Exited:
			timer.Stop()
			return nil
		case <-s.shorter:
			note()
		case <-timer.C:
		}
		timer.Stop()
	}
	return cs.kill(ctx, c)
}

// kill ends every process of the container and waits until its exit is recorded.
func (cs *containers) kill(ctx context.Context, c *table.ContainerEntry) error {
	activity.Note(ctx, "SIGKILL")
	limit := time.NewTimer(killLimit)
	defer limit.Stop()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		warn(ctx, cs.signal(ctx, c, unix.SIGKILL, true))
		if cs.vanished(ctx, c) {
			cs.endings.lost(ctx, c)
			return nil
		}
		select {
		case <-c.Exited:
			return nil
		case <-again.C: // the shim may have been replaced meanwhile
		case <-limit.C:
			return fmt.Errorf("container %s still runs after SIGKILL: %w", c.ID, context.DeadlineExceeded)
		}
	}
}

// signal sends a signal to the container's first process, or to all. That there is none is no
// error.
func (cs *containers) signal(ctx context.Context, c *table.ContainerEntry, sig syscall.Signal, all bool) error {
	if sig == 0 {
		sig = unix.SIGTERM
	}
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	err := cs.shim.Kill(ctx, c.ID, sig, all)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %s to container %s: %w", unix.SignalName(sig), c.ID, err)
	}
	telemetry.Add(ctx, telemetry.Signals, unix.SignalName(sig), 1)
	return nil
}

// vanished says whether the shim, asked now, knows no process of the container and no exit of it
// either: then there will never be one.
func (cs *containers) vanished(ctx context.Context, c *table.ContainerEntry) bool {
	t, err := cs.shim.Task(ctx, c.ID)
	if err != nil {
		return errors.Is(err, errdefs.ErrNotFound)
	}
	return t.Exit == nil && t.Pid == 0 && t.State != "starting"
}
