package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containerd/log"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox"
)

// handlers returns the ways to run containers that the configuration describes.
func handlers(c Config) map[string]sandbox.Handler {
	all := map[string]sandbox.Handler{}
	for name, r := range c.Runtimes {
		all[name] = sandbox.Handler{Path: program(r.Path), Rlimits: c.ulimits(r), PidsLimit: c.Containers.PidsLimit,
			LogLimit: int64(c.Containers.LogSizeMax),
			ShmSize:  int64(cmp.Or(r.ShmSize, c.Containers.ShmSize)),
			Ports:    c.Containers.UnprivilegedPorts, Ping: c.Containers.UnprivilegedPing,
			MissingPaths:  sandbox.MissingPaths{Refuse: c.Containers.HostPathMissing == pathRefuse, Never: c.Containers.HostPathNever},
			NoHostDevices: r.PrivilegedWithoutHostDevices}
	}
	return all
}

// applied are the keys and tables that a running daemon takes over.
var applied = []string{"log_level", "default_runtime", "containers", "runtimes", "images.pinned"}

// reloads reads the configuration again at each hangup, takes over what can be, and stores what is in effect then. The channel that it returns
// is closed when ctx ends.
func reloads(ctx context.Context, hangup <-chan os.Signal, manager notifier, inEffect *atomic.Pointer[Config], pods *sandbox.Manager, images *imageservice.Images) <-chan struct{} {
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

// reload returns the configuration that is in effect now. One that cannot be read or is wrong changes nothing. What needs a restart keeps its
// old value, and is named in the log.
func reload(ctx context.Context, old Config, pods *sandbox.Manager, images *imageservice.Images) Config {
	next, err := old.reread()
	if err != nil {
		log.G(ctx).WithError(err).Error("the configuration stays as it is")
		return old
	}
	now, late := old, changed(old, next)
	late = slices.DeleteFunc(late, func(key string) bool {
		table, _, _ := strings.Cut(key, ".")
		return slices.Contains(applied, table) || slices.Contains(applied, key)
	})
	now.LogLevel, now.DefaultRuntime, now.Containers, now.Runtimes = next.LogLevel, next.DefaultRuntime, next.Containers, next.Runtimes
	if err := log.SetLevel(now.LogLevel); err != nil {
		log.G(ctx).WithError(err).Error("the log level stays as it is") // it was checked
	}
	pods.SetHandlers(ctx, handlers(now), now.DefaultRuntime)
	now.Images.Pinned = next.Images.Pinned
	images.SetPinned(pinned(now))
	if len(late) > 0 {
		log.G(ctx).Warnf("of the configuration, what changed in %s needs a restart", strings.Join(late, ", "))
	}
	log.G(ctx).Info("the configuration was read again")
	return now
}

// changed returns the keys, or tables of tables, whose values differ.
func changed(a, b Config) []string {
	return differences("", reflect.ValueOf(a), reflect.ValueOf(b))
}

func differences(table string, a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		f := a.Type().Field(i)
		name := f.Tag.Get("toml")
		switch {
		case !f.IsExported():
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, differences(name+".", a.Field(i), b.Field(i))...)
		case !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			keys = append(keys, fmt.Sprint(table, name))
		}
	}
	return keys
}
