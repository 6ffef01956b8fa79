// Package guard keeps the panic of one piece of work from ending the process.
//
// What it will not do: begin goroutines, or decide what becomes of the work.
package guard

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Call runs act and returns its error. A panic becomes an error of class ErrInternal: it costs what
// act was about and not the daemon. Every goroutine that does the work of a request, or of
// recovery, begins with Call or Run.
func Call(ctx context.Context, what string, act func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).Errorf("panic in %s: %v\n%s", what, p, debug.Stack())
			err = fmt.Errorf("panic in %s: %v: %w", what, p, errdefs.ErrInternal)
		}
	}()
	return act()
}

// Run is Call for an act whose error nobody waits for; that of a panic is in the log.
func Run(ctx context.Context, what string, act func()) {
	_ = Call(ctx, what, func() error { act(); return nil })
}
