package main

import (
	"context"
	"os"
	"strings"
	"sync/atomic"

	"github.com/containerd/log"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox"
)

// reloads reads the configuration again at each hangup, applies the keys that can change without a
// restart, and stores the result in inEffect. The returned channel is closed when ctx ends.
func reloads(ctx context.Context, hangup <-chan os.Signal, manager notifier, inEffect *atomic.Pointer[config.Config],
	pods *sandbox.Manager, images *imageservice.Images) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
				manager.reloading(ctx)
				c := reload(ctx, *inEffect.Load(), pods, images)
				inEffect.Store(&c)
				manager.ready(ctx)
			}
		}
	}()
	return done
}

// reload reads the configuration files, applies what can change without a restart, and returns the
// configuration that is now in effect. If the new configuration is invalid, it logs the error and
// changes nothing. It logs the names of changed keys that need a restart.
func reload(ctx context.Context, old config.Config, pods *sandbox.Manager, images *imageservice.Images) config.Config {
	next, err := old.Reread()
	if err != nil {
		log.G(ctx).WithError(err).Error("cannot reload the configuration; keeping the current one")
		return old
	}
	now, late := config.Reload(old, next)
	if err := log.SetLevel(now.LogLevel); err != nil {
		// cannot happen: the level was checked
		log.G(ctx).WithError(err).Error("cannot change the log level; keeping the current one")
	}
	pods.SetHandlers(ctx, handlers(now), now.DefaultRuntime)
	images.SetPinned(now.PinnedImages())
	if len(late) > 0 {
		log.G(ctx).Warnf("changes of %s take effect after a restart", strings.Join(late, ", "))
	}
	log.G(ctx).Info("configuration reloaded")
	return now
}
