package main

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// measureLists asks what a kubelet asks all the time.
func (r *runtime) measureLists(ctx context.Context, pods int) error {
	for _, call := range []struct {
		row   *figure
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

// answer asks, and complains of a list that lacks something.
func answer(ctx context.Context, row *figure, want int, ask func(context.Context) (int, error)) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	got, err := ask(ctx)
	if err == nil && got != want {
		err = fmt.Errorf("%s has %d entries, not %d", row.text, got, want)
	}
	return err
}
