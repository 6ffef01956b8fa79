package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/runtimeshim/logger"
	"github.com/cribox/cribox/runtimeshim/shim"
)

// runShim runs the shim, the parent process of every container.
func runShim(ctx context.Context, c config.Config, _ io.Writer) error {
	return shim.Main(ctx, c.State, nil)
}

// runLogger runs the logger, which writes the containers' logs. It ignores SIGHUP: someone who
// sends the signal to every process named cribox means the daemon.
func runLogger(ctx context.Context, c config.Config, _ io.Writer) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	return logger.Main(ctx, c.State, nil)
}
