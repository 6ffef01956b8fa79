package activity

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
)

const (
	keepSteps = 32  // ended steps of one subject
	keepGone  = 64  // stories of subjects that do not exist any more
	keepError = 500 // bytes of an error
	slowAfter = 10 * time.Second
)

// Subject is whom a step is about.
type Subject struct {
	Kind string // "pod", "container" or "image"; the field of its log lines
	ID   string
	Name string // what people call it: "namespace/name" of a pod, "namespace/pod/name" of a container
}

// Step is one part of some work.
type Step struct {
	Name  string
	Began time.Time
	Took  time.Duration // so far, for one that runs
	Err   string        // of one that failed
}

// Story is what is known of a subject.
type Story struct {
	Subject
	Ended   []Step // the last ones, the oldest first
	Dropped int    // steps that ended before those
	Running []Step // those that began first before the others
	Gone    bool   // it does not exist any more
}

// Table has the stories. A nil Table remembers nothing.
type Table struct {
	slow   time.Duration
	report func(ctx context.Context, name string, took time.Duration)

	mu      sync.Mutex // guards what follows, and the stories
	stories map[key]*story
	gone    []key // in their order
	debts   map[*Debt]bool
}

type key struct{ kind, id string }

type story struct {
	name    string
	ended   []ended
	dropped int
	running []*running
	gone    bool
}

// ended is a Step in few bytes.
type ended struct {
	name        string
	began, took int64
	err         string
}

// New returns an empty Table.
func New() *Table {
	return &Table{slow: slowAfter, report: warn, stories: map[key]*story{}, debts: map[*Debt]bool{}}
}

func warn(ctx context.Context, name string, took time.Duration) {
	log.G(ctx).WithFields(log.Fields{"step": name, "took": took.Round(time.Second).String()}).
		Warn("a step takes long; it goes on")
}

// scope is what a context says about the work that it belongs to.
type scope struct {
	table *Table
	key   key
	in    *running     // the step in which the work is
	moved func() int64 // bytes; a step does not hang while they grow
}

type scopeKey struct{}

func scopeOf(ctx context.Context) scope {
	s, _ := ctx.Value(scopeKey{}).(scope)
	return s
}

// About returns a context for work on a subject. Its log lines have the subject's ID.
func (t *Table) About(ctx context.Context, s Subject) context.Context {
	if t == nil {
		return ctx
	}
	k := key{s.Kind, s.ID}
	t.mu.Lock()
	one := t.stories[k]
	if one == nil {
		one = &story{}
		t.stories[k] = one
	}
	if s.Name != "" {
		one.name = s.Name
	}
	if one.gone {
		one.gone = false
		t.gone = slices.DeleteFunc(t.gone, func(g key) bool { return g == k })
	}
	t.mu.Unlock()
	ctx = log.WithLogger(ctx, log.G(ctx).WithField(s.Kind, s.ID))
	return context.WithValue(ctx, scopeKey{}, scope{table: t, key: k})
}

// Moving says that the steps of ctx do not hang while the number grows.
func Moving(ctx context.Context, moved func() int64) context.Context {
	s := scopeOf(ctx)
	s.moved = moved
	return context.WithValue(ctx, scopeKey{}, s)
}

// Forget says that the subject does not exist any more. Its story is kept for a while.
func (t *Table) Forget(kind, id string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{kind, id}
	one := t.stories[k]
	if one == nil || one.gone {
		return
	}
	one.gone = true
	t.gone = append(t.gone, k)
	for len(t.gone) > keepGone {
		delete(t.stories, t.gone[0])
		t.gone = t.gone[1:]
	}
}

// running is a step that has not ended.
type running struct {
	name     string
	began    time.Time
	children atomic.Int32 // steps within it that run
	changes  atomic.Int64 // how many have begun or ended
}

// Do runs a part of the work of ctx, which has this name. Its error is remembered and returned.
func Do(ctx context.Context, name string, act func(context.Context) error) error {
	return step(ctx, name, true, act)
}

// Wait is Do for what takes long as a rule, such as the end of a container. It is not logged.
func Wait(ctx context.Context, name string, act func(context.Context) error) error {
	return step(ctx, name, false, act)
}

// Note remembers something that has happened and took no time.
func Note(ctx context.Context, name string) {
	_ = step(ctx, name, false, func(context.Context) error { return nil })
}

func step(ctx context.Context, name string, logged bool, act func(context.Context) error) (err error) {
	s := scopeOf(ctx)
	if s.table == nil {
		return act(ctx)
	}
	r := &running{name: name, began: time.Now()}
	if s.in != nil {
		s.in.children.Add(1)
		s.in.changes.Add(1)
		defer func() {
			s.in.children.Add(-1)
			s.in.changes.Add(1)
		}()
	}
	s.table.begin(s.key, r)
	finished := false
	defer func() {
		if !finished {
			s.table.end(s.key, r, "it panicked")
			return
		}
		text := ""
		if err != nil {
			text = clip(err.Error())
		}
		s.table.end(s.key, r, text)
	}()
	if logged {
		w := &watch{ctx: ctx, scope: s, step: r}
		w.arm()
		defer w.stop()
	}
	inner := s
	inner.in = r
	err = act(context.WithValue(ctx, scopeKey{}, inner))
	finished = true
	return err
}

func clip(text string) string {
	if len(text) > keepError {
		return text[:keepError] + "..."
	}
	return text
}

// watch reports a step that takes long, once.
type watch struct {
	ctx   context.Context
	scope scope
	step  *running

	mu    sync.Mutex
	timer *time.Timer // nil when the step has ended
	ended bool
	moved int64
}

// moves is a number that changes while the step does not hang.
func (w *watch) moves() int64 {
	n := w.step.changes.Load()
	if w.scope.moved != nil {
		n += w.scope.moved()
	}
	return n
}

func (w *watch) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	w.moved = w.moves()
	w.timer = time.AfterFunc(w.scope.table.slow, w.look)
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.timer.Stop()
}

func (w *watch) look() {
	w.mu.Lock()
	before := w.moved
	w.mu.Unlock()
	if w.step.children.Load() > 0 || w.moves() != before {
		w.arm()
		return
	}
	w.scope.table.report(w.ctx, w.step.name, time.Since(w.step.began))
}

func (t *Table) begin(k key, r *running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.stories[k]
	if one == nil {
		one = &story{gone: true} // work on something that was forgotten meanwhile
		t.stories[k] = one
		t.gone = append(t.gone, k)
	}
	one.running = append(one.running, r)
}

func (t *Table) end(k key, r *running, err string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.stories[k]
	if one == nil {
		return
	}
	one.running = slices.DeleteFunc(one.running, func(other *running) bool { return other == r })
	if len(one.running) == 0 {
		one.running = nil
	}
	if len(one.ended) == keepSteps {
		copy(one.ended, one.ended[1:])
		one.ended = one.ended[:keepSteps-1]
		one.dropped++
	}
	one.ended = append(one.ended, ended{r.name, r.began.UnixNano(), int64(time.Since(r.began)), err})
}

// Stories returns the stories that match, the subjects that were heard of last behind the others.
func (t *Table) Stories(match func(Subject) bool) []Story {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Story
	for k, one := range t.stories {
		if s := (Subject{k.kind, k.id, one.name}); match(s) {
			all = append(all, one.story(s))
		}
	}
	slices.SortFunc(all, func(a, b Story) int { return a.first().Compare(b.first()) })
	return all
}

func (one *story) story(s Subject) Story {
	told := Story{Subject: s, Dropped: one.dropped, Gone: one.gone}
	for _, e := range one.ended {
		told.Ended = append(told.Ended, Step{e.name, time.Unix(0, e.began), time.Duration(e.took), e.err})
	}
	for _, r := range one.running {
		told.Running = append(told.Running, Step{Name: r.name, Began: r.began, Took: time.Since(r.began)})
	}
	return told
}

func (s Story) first() time.Time {
	for _, steps := range [][]Step{s.Ended, s.Running} {
		if len(steps) > 0 {
			return steps[0].Began
		}
	}
	return time.Time{}
}

// Running returns the stories of subjects for which a step runs now.
func (t *Table) Running() []Story {
	all := t.Stories(func(Subject) bool { return true })
	return slices.DeleteFunc(all, func(s Story) bool { return len(s.Running) == 0 })
}
