// Package telemetry lets every package report what it does, to whoever counts it. It counts nothing
// itself.
//
// A context carries the Sink. Contexts of background work and those made by context.WithoutCancel
// keep it. In a context without a Sink all functions do nothing.
package telemetry

import (
	"context"
	"time"
)

// Counter names a number that only grows. Each has one label.
type Counter int

// The counters, and what their label says.
const (
	Exits       Counter = iota // of containers; the reason that the kubelet is told
	Signals                    // sent to containers; the name of the signal
	Pulls                      // that ended; "ok" or why it failed
	PulledBytes                // of images; where from: registry, mirror or archive
	Starts                     // of shim and logger, by this daemon; which one
	SetAside                   // records that were damaged; of what: pod or image
	Counters                   // how many there are
)

// Sink receives the reports. Its methods may be called concurrently.
type Sink interface {
	Add(c Counter, label string, n float64)
	// Begin is called at the beginning of a part of a request, such as the network of a pod. The
	// returned context is that of the part, and the function is called with its result.
	Begin(ctx context.Context, part string) (context.Context, func(error))
	// Took reports a part that another process has done, after its end.
	Took(ctx context.Context, part string, began time.Time, took time.Duration)
}

type key struct{}

// With returns a context that carries a Sink.
func With(ctx context.Context, s Sink) context.Context { return context.WithValue(ctx, key{}, s) }

// Add adds n to a counter.
func Add(ctx context.Context, c Counter, label string, n float64) {
	if s, ok := ctx.Value(key{}).(Sink); ok {
		s.Add(c, label, n)
	}
}

// Part runs act as a part of a request, and returns its error.
func Part(ctx context.Context, name string, act func(context.Context) error) error {
	s, ok := ctx.Value(key{}).(Sink)
	if !ok {
		return act(ctx)
	}
	ctx, end := s.Begin(ctx, name)
	err := act(ctx)
	end(err)
	return err
}

// Took reports a part that another process has done, and how long it took there.
func Took(ctx context.Context, name string, began time.Time, took time.Duration) {
	if s, ok := ctx.Value(key{}).(Sink); ok {
		s.Took(ctx, name, began, took)
	}
}
