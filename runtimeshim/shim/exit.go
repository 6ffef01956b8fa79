package shim

import (
	"context"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/cgroup"
	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/procfd"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// unknownExit is the exit of a task that nobody could observe.
var unknownExit = statedir.ExitRecord{Code: 255}

func exitOf(ws unix.WaitStatus) statedir.ExitRecord {
	return statedir.ExitRecord{Code: procfd.ExitCode(ws), Known: true}
}

// reporter records the exits of tasks and reports them to all watchers.
type reporter struct {
	env
	table   *table
	holder  *holder
	cgroups *cgroup.Finder
	kills   *cgroup.CounterWatch
}

// ended writes the exit of a task to its file, then reports it, once.
func (p *reporter) ended(t *task, e statedir.ExitRecord) {
	defer helper.Survive()
	p.step.Pass("shim.exit.seen")
	p.table.mu.Lock()
	rec, told := t.rec, t.exit != nil
	p.table.mu.Unlock()
	if told {
		return
	}
	e.Format, e.At = statedir.Format, time.Now()
	kills, err := p.kills.Value(rec.OOMFile)
	if err != nil {
		log.L.WithError(err).WithField("container", rec.ID).Error("cannot tell whether the OOM killer ended the task")
	}
	e.OOM = kills > rec.OOMBase
	p.kills.Drop(rec.OOMFile)
	if err := statedir.WriteJSON(t.dir.Exit(), e); err != nil {
		// Watchers still receive it; it is lost only if the shim also dies.
		log.L.WithError(err).WithField("container", rec.ID).Error("cannot record the exit of a task")
	}
	p.step.Pass("shim.exit.written")
	p.cgroups.LiftQuota(t.dir)
	p.holder.finishTerminal(t)
	p.tell(t, e)
}

// tell reports the exit of a task to all watchers, once: a task that is adopted may already have
// been reported by ended.
func (p *reporter) tell(t *task, e statedir.ExitRecord) {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if t.exit != nil {
		return
	}
	t.exit = &e
	close(t.exited)
	if t.deleted {
		return // its start failed in the end, and the caller has that error
	}
	for w := range p.table.watchers {
		w.add(t.view())
	}
}

// watcher is one open watch: the exits not yet sent to its reader.
type watcher struct {
	exits []runtimeshim.Task // under table.mu
	more  chan struct{}
}

// add requires table.mu.
func (w *watcher) add(t runtimeshim.Task) {
	w.exits = append(w.exits, t)
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// watch sends a snapshot of all tasks and then each exit, until the caller disconnects. A caller
// that does not read is disconnected; the snapshot of its next watch has all exits.
func (p *reporter) watch(ctx context.Context, in *wire.Inbound) (any, error) {
	w := &watcher{more: make(chan struct{}, 1)}
	p.table.mu.Lock()
	all := []runtimeshim.Task{}
	for _, t := range p.table.tasks {
		all = append(all, t.view())
	}
	p.table.watchers[w] = true
	p.table.mu.Unlock()
	defer func() {
		p.table.mu.Lock()
		defer p.table.mu.Unlock()
		delete(p.table.watchers, w)
	}()
	if err := in.Send(wire.Watched{Snapshot: true, Tasks: all}); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.more:
		}
		p.table.mu.Lock()
		exits := w.exits
		w.exits = nil
		p.table.mu.Unlock()
		if err := in.Send(wire.Watched{Tasks: exits}); err != nil {
			return nil, err
		}
	}
}
