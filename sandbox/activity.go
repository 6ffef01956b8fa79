package sandbox

import (
	"context"

	"github.com/containerd/log"

	"github.com/cribox/cribox/internal/activity"
	"github.com/cribox/cribox/sandbox/table"
)

// What pods, containers and pulls are doing, by names that other packages can say.
type (
	Story   = activity.Story
	Subject = activity.Subject
	Step    = activity.Step
)

// Running returns what is being done now: for pods, containers and pulls.
func (m *Manager) Running() []Story { return m.pods.activity.Running() }

// Stories returns what was done of late for the subjects that match.
func (m *Manager) Stories(match func(Subject) bool) []Story { return m.pods.activity.Stories(match) }

// Kinds of subjects of package activity. They are fields of log lines, too.
const (
	podKind       = "pod"
	containerKind = "container"
)

// about returns a context for work on the pod.
func (ps *pods) about(ctx context.Context, p *table.PodEntry) context.Context {
	return aboutPod(ctx, ps.activity, p)
}

func aboutPod(ctx context.Context, t *activity.Table, p *table.PodEntry) context.Context {
	ctx = log.WithLogger(ctx, log.G(ctx).WithField(podKind, p.ID))
	d := p.Config.GetMetadata()
	return t.About(ctx, activity.Subject{Kind: podKind, ID: p.ID, Name: d.GetNamespace() + "/" + d.GetName()})
}

// aboutContainer returns a context for work on the container.
func aboutContainer(ctx context.Context, cs *containers, c *table.ContainerEntry) context.Context {
	ctx = log.WithLogger(ctx, log.G(ctx).WithFields(log.Fields{podKind: c.PodID, containerKind: c.ID}))
	if cs.activity == nil {
		return ctx
	}
	name := c.Config.GetMetadata().GetName()
	if p, _ := cs.table.ByID(c.PodID); p != nil {
		d := p.Config.GetMetadata()
		name = d.GetNamespace() + "/" + d.GetName() + "/" + name
	}
	return cs.activity.About(ctx, activity.Subject{Kind: containerKind, ID: c.ID, Name: name})
}

// do gives a part of the work a name, see activity.Do.
func do(ctx context.Context, name string, act func() error) error {
	return activity.Do(ctx, name, func(context.Context) error { return act() })
}

// turnOf waits for the turn of the caller among the operations on the container.
func turnOf(ctx context.Context, cs *containers, c *table.ContainerEntry) (done func(), err error) {
	if done, ok := cs.turns.Try(c.ID); ok {
		return done, nil
	}
	err = activity.Do(ctx, "another operation on the container", func(ctx context.Context) error {
		done, err = cs.turns.Take(ctx, c.ID)
		return err
	})
	return done, err
}
