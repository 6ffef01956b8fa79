package main

import (
	"context"
	"errors"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// figure is one row of the table.
type figure struct{ text, unit string }

var (
	podStart    = figure{"pod start: run the pod, create and start a container", "ms"}
	podDown     = figure{"pod teardown: stop and remove both", "ms"}
	startRate   = figure{"pod starts, 10 at a time", "per s"}
	downRate    = figure{"pod teardowns, 10 at a time", "per s"}
	podCPU      = figure{"processor time per pod, start and teardown", "ms"}
	execTime    = figure{"`exec` of `true`", "ms"}
	execCPU     = figure{"processor time of that", "ms"}
	restart     = figure{"`kill -9` of the daemon and start, until it lists its pods", "ms"}
	memoryIdle  = figure{"memory of the runtime without pods", "MiB"}
	memoryFull  = figure{"memory of the runtime with pods", "MiB"}
	memoryPod   = figure{"memory of the processes that one more pod adds", "KiB"}
	listPods    = figure{"ListPodSandbox", "ms"}
	listAll     = figure{"ListContainers", "ms"}
	statsOfAll  = figure{"ListContainerStats", "ms"}
	statsOfPods = figure{"ListPodSandboxStats", "ms"}
)

// rows is the order of the table.
var rows = []figure{
	podStart, podDown, startRate, downRate, podCPU, execTime, execCPU, memoryPod, memoryIdle, memoryFull,
	restart, listPods, listAll, statsOfAll, statsOfPods,
}

// figures are everything that was measured, in the unit of the row.
type figures map[figure][]float64

func (f figures) add(row figure, value float64) { f[row] = append(f[row], value) }

// time adds how long something takes.
func (f figures) time(row figure, what func() error) error {
	began := time.Now()
	err := what()
	f.add(row, milliseconds(time.Since(began)))
	return err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

const (
	singlePods = 10 // one after the other
	execs      = 20
	lists      = 40
	statsCalls = 10
)

// measure is one round.
func (r *runtime) measure(ctx context.Context, pods int) error {
	if err := r.measureOneByOne(ctx); err != nil {
		return err
	}
	return r.measureTogether(ctx, pods)
}

// measureOneByOne has one pod at a time, and runs commands in the last one.
func (r *runtime) measureOneByOne(ctx context.Context) error {
	for i := range singlePods {
		p := r.newPod()
		if err := r.figures.time(podStart, func() error { return p.up(ctx) }); err != nil {
			return err
		}
		if i == singlePods-1 {
			if err := r.measureExec(ctx, p); err != nil {
				return err
			}
		}
		if err := r.figures.time(podDown, func() error { return p.down(ctx) }); err != nil {
			return err
		}
		if err := p.removeCgroup(); err != nil {
			return err
		}
	}
	return nil
}

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
	r.figures.add(execCPU, milliseconds(after-before)/execs)
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
	if err := r.measureMemory(idle, n); err != nil { // after the lists: what starting the pods has left to do is done
		return err
	}
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

// rate adds how many pods a second something is done to, and returns the processor time that it took.
func (r *runtime) rate(row figure, pods int, what func() error) (time.Duration, error) {
	before, err := r.cpu()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := what(); err != nil {
		return 0, err
	}
	r.figures.add(row, float64(pods)/time.Since(began).Seconds())
	after, err := r.cpu()
	return after - before, err
}

// measureMemory compares what runs now with what ran when there was no pod.
func (r *runtime) measureMemory(idle map[int]int, pods int) error {
	now, err := r.processes()
	if err != nil {
		return err
	}
	before, after, added := 0, 0, 0
	for _, kib := range idle {
		before += kib
	}
	for pid, kib := range now {
		after += kib
		if _, old := idle[pid]; !old {
			added += kib
		}
	}
	r.figures.add(memoryIdle, float64(before)/1024)
	r.figures.add(memoryFull, float64(after)/1024)
	r.figures.add(memoryPod, float64(added)/float64(pods))
	return nil
}

// measureLists asks what a kubelet asks all the time.
func (r *runtime) measureLists(ctx context.Context, pods int) error {
	for _, call := range []struct {
		row   figure
		times int
		ask   func(context.Context) (int, error)
	}{
		{listPods, lists, func(ctx context.Context) (int, error) {
			l, err := r.pods.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			return len(l.GetItems()), err
		}},
		{listAll, lists, func(ctx context.Context) (int, error) {
			l, err := r.pods.ListContainers(ctx, &cri.ListContainersRequest{})
			return len(l.GetContainers()), err
		}},
		{statsOfAll, statsCalls, func(ctx context.Context) (int, error) {
			l, err := r.pods.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return len(l.GetStats()), err
		}},
		{statsOfPods, statsCalls, func(ctx context.Context) (int, error) {
			l, err := r.pods.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return len(l.GetStats()), err
		}},
	} {
		for range call.times {
			if err := r.figures.time(call.row, func() error { return answer(ctx, call.row, pods, call.ask) }); err != nil {
				return err
			}
		}
	}
	return nil
}
