package main

import (
	"context"
	"errors"
	"slices"
	"time"
)

const (
	singlePods = 10 // one after the other
	execs      = 20
	lists      = 40
	statsCalls = 10
	probes     = 200

	probesPerSecond = 20
)

// measure is one round, or the part of it that is asked for.
func (r *runtime) measure(ctx context.Context, o options, images pulled) error {
	for _, part := range []struct {
		name string
		do   func() error
	}{
		{"pod", func() error { return r.measureOneByOne(ctx) }},
		{"pods", func() error { return r.measureTogether(ctx, o.pods) }},
		{"pulls", func() error { return r.measurePulls(ctx, images) }},
		{"files", func() error { return r.measureFiles(ctx, images.many) }},
		{"logs", func() error { return r.measureLogs(ctx) }},
	} {
		if o.only != "" && o.only != part.name {
			continue
		}
		if err := part.do(); err != nil {
			return err
		}
	}
	return nil
}

// measureOneByOne has one pod at a time, and runs commands in the last one.
func (r *runtime) measureOneByOne(ctx context.Context) error {
	for i := range singlePods {
		if err := r.measurePod(ctx, i == singlePods-1); err != nil {
			return err
		}
	}
	return nil
}

// measurePod starts and removes one pod, and runs commands in it meanwhile.
func (r *runtime) measurePod(ctx context.Context, commands bool) error {
	programs, err := tracePrograms()
	if err != nil {
		return err
	}
	defer programs.end()
	p := r.newPod()
	if err := r.figures.time(podStart, func() error { return p.up(ctx) }); err != nil {
		return err
	}
	executed := programs.count()
	m, err := r.memoryNow(nil)
	if err != nil {
		return err
	}
	r.figures.add(memoryFirst, float64(m.helpers)/1024)
	if commands {
		if err := r.measureExec(ctx, p); err != nil {
			return err
		}
	}
	programs.count() // what has run since is nobody's
	if err := r.figures.time(podDown, func() error { return p.down(ctx) }); err != nil {
		return err
	}
	r.figures.add(podPrograms, executed+programs.count()-1) // one is the container's
	return p.removeCgroup()
}

// measureExec runs commands one after the other, and then some at a time.
func (r *runtime) measureExec(ctx context.Context, p *pod) error {
	before, err := r.cpu()
	if err != nil {
		return err
	}
	for range execs {
		if err := r.figures.time(execTime, func() error { return p.exec(ctx) }); err != nil {
			return err
		}
	}
	after, err := r.cpu()
	if err != nil {
		return err
	}
	r.figures.add(execCPU, milliseconds(after-before)/execs)
	const many = 4 * execs
	_, err = r.rate(execRate, many, func() error { return each(ctx, slices.Repeat([]*pod{p}, many), (*pod).exec) })
	return err
}

// measureProbes executes commands at the pace of a kubelet's probes, which do not wait for each other. Where
// so many are too much for the machine they come later, and what each one costs tells what all would.
func (r *runtime) measureProbes(ctx context.Context, pods []*pod) error {
	before, err := r.cpu()
	if err != nil {
		return err
	}
	pace := time.NewTicker(time.Second / probesPerSecond)
	defer pace.Stop()
	all := make([]*pod, probes)
	for i := range all {
		all[i] = pods[i%len(pods)]
	}
	err = each(ctx, all, func(p *pod, ctx context.Context) error {
		<-pace.C
		return p.exec(ctx)
	})
	if err != nil {
		return err
	}
	after, err := r.cpu()
	r.figures.add(probeCPU, 100*(after-before).Seconds()/probes*probesPerSecond)
	return err
}

// measureTogether has all pods at once.
func (r *runtime) measureTogether(ctx context.Context, n int) error {
	pods := make([]*pod, n)
	for i := range pods {
		pods[i] = r.newPod()
	}
	idle, err := r.processes()
	if err != nil {
		return err
	}
	started, err := r.rate(startRate, n, func() error { return each(ctx, pods, (*pod).up) })
	if err != nil {
		return err
	}
	if err := r.measureLists(ctx, n); err != nil {
		return err
	}
	if err := r.measureProbes(ctx, pods); err != nil {
		return err
	}
	full, err := r.memoryNow(idle) // after the lists: what starting the pods has left to do is done
	if err != nil {
		return err
	}
	r.figures.add(memoryIdle, float64(sum(idle))/1024)
	r.figures.add(memoryFull, float64(full.daemon+full.helpers)/1024)
	r.figures.add(memoryPod, float64(full.added)/float64(n))
	if err := r.kill(); err != nil {
		return err
	}
	if err := r.figures.time(restart, func() error { return r.start(ctx, n) }); err != nil {
		return err
	}
	removed, err := r.rate(downRate, n, func() error { return each(ctx, pods, (*pod).down) })
	if err != nil {
		return err
	}
	r.figures.add(podCPU, milliseconds(started+removed)/float64(n))
	var errs []error
	for _, p := range pods {
		errs = append(errs, p.removeCgroup())
	}
	return errors.Join(errs...)
}

// rate adds how many of these were done in a second, and returns the processor time that it took.
func (r *runtime) rate(row *figure, n int, what func() error) (time.Duration, error) {
	before, err := r.cpu()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := what(); err != nil {
		return 0, err
	}
	r.figures.add(row, float64(n)/time.Since(began).Seconds())
	after, err := r.cpu()
	return after - before, err
}
