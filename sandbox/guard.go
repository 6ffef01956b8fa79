package sandbox

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// guard runs act and returns its error. A panic becomes an error of class ErrInternal: it costs what act was about and not the daemon. Every
// goroutine that does the work of a request, or of recovery, begins with it.
func guard(ctx context.Context, what string, act func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).Errorf("panic in %s: %v\n%s", what, p, debug.Stack())
			err = fmt.Errorf("panic in %s: %v: %w", what, p, errdefs.ErrInternal)
		}
	}()
	return act()
}

// guarded is guard for an act whose error nobody waits for; that of a panic is in the log.
func guarded(ctx context.Context, what string, act func()) {
	_ = guard(ctx, what, func() error { act(); return nil })
}
