// Package guard keeps a panic in one operation from ending the process.
//
// It does not start goroutines, and does not clean up after the operation.
package guard

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Call runs act and returns its error. It logs a panic and returns it as an error of class
// ErrInternal, so that only this operation fails. Every goroutine that does the work of a request,
// or of recovery, begins with Call or Run.
func Call(ctx context.Context, what string, act func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).Errorf("panic in %s: %v\n%s", what, p, debug.Stack())
			err = fmt.Errorf("panic in %s: %v: %w", what, p, errdefs.ErrInternal)
		}
	}()
	return act()
}

// Run is Call for an act that returns no error. A panic is only logged.
func Run(ctx context.Context, what string, act func()) {
	_ = Call(ctx, what, func() error { act(); return nil })
}
