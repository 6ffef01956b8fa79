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

// runShim is the parent of every container.
func runShim(ctx context.Context, c config.Config, _ io.Writer) error {
	return shim.Main(ctx, c.State, nil)
}

// runLogger writes the containers' logs. A SIGHUP to every process named cribox is meant for the
// daemon.
func runLogger(ctx context.Context, c config.Config, _ io.Writer) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	return logger.Main(ctx, c.State, nil)
}
