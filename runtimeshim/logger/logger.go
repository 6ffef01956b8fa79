package logger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// Main is the body of `cribox-helper logger --state DIR`: it reads what containers print from the FIFOs
// below state and writes it to their CRI logs, until ctx ends or it receives the verb quit. It may
// be killed at any instruction and restarted; no line is lost or written twice.
//
// step, unless nil, is called after every side effect: logger.created (the log), logger.spliced
// (output is in the spool), logger.intent, logger.written (to the log), logger.leftout (not to the
// log), logger.committed, spool.punched, spool.truncated, spool.reset, logger.reopened,
// logger.drained, logger.done.
//
// A second logger for the same state returns ErrAlreadyExists at once.
func Main(ctx context.Context, state string, step step.Hook) error {
	dir := statedir.Root(state)
	release, err := lockLogger(dir)
	if err != nil {
		return err
	}
	defer release()
	helper.BoundLog()
	runtime.GOMAXPROCS(2) // with more, the threads wake each other for every line
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	l, err := newLogger(ctx, dir, step)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.resumeAll(); err != nil {
		return err
	}
	return wire.Serve(ctx, dir.LoggerSock(), l.handlers(quit))
}

// lockLogger holds the logger's lock, with our pid in the file, until release is called.
// ErrAlreadyExists when another logger holds it.
func lockLogger(dir statedir.Root) (release func(), err error) {
	if err := os.MkdirAll(dir.LoggerHome(), 0o700); err != nil {
		return nil, fmt.Errorf("lock of the logger: %w", err)
	}
	release, err = helper.HoldLock(dir.LoggerLock(), dir.LoggerHome())
	if err != nil {
		return nil, fmt.Errorf("lock of the logger: %w", err)
	}
	if release == nil {
		pid, _ := os.ReadFile(dir.LoggerLock())
		return nil, fmt.Errorf("a logger (pid %s) already serves %s: %w",
			strings.TrimSpace(string(pid)), dir, errdefs.ErrAlreadyExists)
	}
	return release, nil
}

// logger owns one logTask per container whose log is not finished.
type logger struct {
	ctx     context.Context
	dir     statedir.Root
	step    step.Hook
	poll    *poller
	devnull int
	buffers buffers
	build   string         // of this program
	work    sync.WaitGroup // goroutines that belong to no task

	mu    sync.Mutex
	tasks map[string]*logTask
	fifos map[int]fifoOwner
}

type fifoOwner struct {
	task   *logTask
	stream int
}

func newLogger(ctx context.Context, dir statedir.Root, step step.Hook) (*logger, error) {
	poll, err := newPoller()
	if err != nil {
		return nil, fmt.Errorf("poll FIFOs: %w", err)
	}
	devnull, err := unixfd.Open(os.DevNull, unix.O_WRONLY, 0)
	if err != nil {
		poll.close()
		return nil, err
	}
	l := &logger{
		ctx: ctx, dir: dir, step: step, poll: poll, devnull: devnull, build: helper.OwnBuild(),
		tasks: map[string]*logTask{}, fifos: map[int]fifoOwner{},
	}
	l.work.Go(func() { poll.run(l.readable) })
	return l, nil
}

// resumeAll continues every task that an earlier logger has left. It does so one at a time, to need
// few threads, but does not wait long for a task whose disk hangs.
func (l *logger) resumeAll() error {
	entries, err := os.ReadDir(l.dir.Tasks())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for tasks: %w", err)
	}
	l.work.Go(func() {
		for _, e := range entries {
			if e.IsDir() && statedir.CheckID(e.Name()) == nil && l.ctx.Err() == nil {
				ctx, cancel := context.WithTimeout(l.ctx, slowDisk)
				_ = l.on(ctx, e.Name(), func(t *logTask) error { t.resume(); return nil })
				cancel()
			}
		}
	})
	return nil
}

const slowDisk = 50 * time.Millisecond

// close ends all work at the next safe point. After a second it gives up on tasks whose disk hangs;
// the process ends anyway.
func (l *logger) close() {
	l.mu.Lock()
	tasks := make([]*logTask, 0, len(l.tasks))
	for _, t := range l.tasks {
		tasks = append(tasks, t)
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all := true
	for _, t := range tasks {
		err := t.do(ctx, func() error { t.release(); return nil })
		all = all && (err == nil || errors.Is(err, errGone))
	}
	if !all {
		return
	}
	l.poll.close()
	l.work.Wait()
	unixfd.Close(&l.devnull)
	l.buffers.drop()
}

func (l *logger) task(id string) *logTask {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tasks[id]
	if t == nil {
		t = newLogTask(l, id)
		l.tasks[id] = t
	}
	return t
}

// forget removes t, so that the next caller gets a new logTask.
func (l *logger) forget(t *logTask) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tasks[t.id] == t {
		delete(l.tasks, t.id)
	}
}

func (l *logger) watch(t *logTask, stream, fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fifos[fd] = fifoOwner{t, stream}
}

func (l *logger) unwatch(fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.fifos, fd)
}

// handlers returns the handlers of the verbs.
//
//	version         -> wire.Version
//	open   {id}     the task folder exists: start reading. On success the log exists. Idempotent
//	reopen {id}     the log was renamed: continue in a new file. On error there is no new file
//	finish {id,start} the task has ended: returns when all its output is in the log. Idempotent
//	attach {id,have} copies what the task prints from now on to the pipes that come with the
//	                request. One empty reply when that has begun, one when the task has ended
//	quit            the logger ends
func (l *logger) handlers(quit func()) map[string]wire.Handler {
	verb := func(f func(context.Context, wire.LoggerTask) error) wire.Handler {
		return func(ctx context.Context, in *wire.Inbound) (any, error) {
			var body wire.LoggerTask
			if err := in.Decode(&body); err != nil {
				return nil, err
			}
			if err := statedir.CheckID(body.ID); err != nil {
				return nil, err
			}
			return nil, f(ctx, body)
		}
	}
	return map[string]wire.Handler{
		"version": func(context.Context, *wire.Inbound) (any, error) {
			return wire.Version{Format: wire.Format, Pid: os.Getpid(), Build: l.build, Goroutines: runtime.NumGoroutine()}, nil
		},
		"open":   verb(l.asked((*logTask).open)),
		"reopen": verb(l.asked((*logTask).reopen)),
		"finish": verb(l.finish),
		"attach": l.attach,
		"quit": func(context.Context, *wire.Inbound) (any, error) {
			quit()
			return nil, nil
		},
	}
}

// asked makes f a verb that is not started if its caller has already given up.
func (l *logger) asked(f func(*logTask) error) func(context.Context, wire.LoggerTask) error {
	return func(ctx context.Context, one wire.LoggerTask) error {
		return l.on(ctx, one.ID, func(t *logTask) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return f(t)
		})
	}
}

// on runs f as work of the task, even if ctx ends before its turn comes. It returns f's error, or
// earlier when ctx ends.
func (l *logger) on(ctx context.Context, id string, f func(*logTask) error) error {
	for {
		t := l.task(id)
		err := t.do(ctx, func() error { return f(t) })
		if !errors.Is(err, errGone) {
			return err
		}
		if l.ctx.Err() != nil {
			return fmt.Errorf("the logger is shutting down: %w", errdefs.ErrUnavailable)
		}
	}
}

// finish waits, as long as ctx allows, for a log that cannot be written at the moment. The work
// continues when the caller gives up.
func (l *logger) finish(ctx context.Context, one wire.LoggerTask) error {
	var finished chan struct{}
	err := l.on(ctx, one.ID, func(t *logTask) (err error) {
		finished, err = t.finish(one.Start)
		return err
	})
	if err != nil {
		return err
	}
	select {
	case <-finished:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("log of %s cannot be written now: %w", one.ID, errdefs.ErrUnavailable)
	}
}

func (l *logger) readable(fd int) {
	l.mu.Lock()
	o := l.fifos[fd]
	l.mu.Unlock()
	if o.task != nil {
		o.task.wake(1 << o.stream)
	}
}
