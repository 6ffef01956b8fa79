package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/runtimeshim/logger"
	"github.com/cribox/cribox/runtimeshim/shim"
)

// helpers are the processes that the daemon starts. They do not go through the command line of
// package cli, because they must start fast and stay small.
var helpers = map[string]func(ctx context.Context, state string) error{"shim": runShim, "logger": runLogger}

// runHelper runs a helper. It reads no configuration file, because helpers must start even if the
// files are now invalid.
func runHelper(ctx context.Context, name string, args []string) error {
	flags := flag.NewFlagSet("cribox "+name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var f config.Flags
	flags.StringVar(&f.State, "state", "", "")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%s is started by `cribox serve` with --state DIR: %w", name, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s takes no argument %q", name, flags.Arg(0))
	}
	c, err := config.Read(f)
	if err != nil {
		return err
	}
	if err := log.SetLevel(c.LogLevel); err != nil {
		return err
	}
	return helpers[name](ctx, c.State)
}

// runShim runs the shim, the parent process of every container.
func runShim(ctx context.Context, state string) error { return shim.Main(ctx, state, nil) }

// runLogger runs the logger, which writes the containers' logs. It ignores SIGHUP: someone who
// sends the signal to every process named cribox means the daemon.
func runLogger(ctx context.Context, state string) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	return logger.Main(ctx, state, nil)
}
