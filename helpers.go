package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/runtimeshim"
)

// shim is the parent of every container.
func shim(ctx context.Context, c config.Config, _ io.Writer) error {
	return runtimeshim.ShimMain(ctx, c.State, nil)
}

// logger writes the containers' logs. A SIGHUP to every process named cribox is meant for the daemon.
func logger(ctx context.Context, c config.Config, _ io.Writer) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	return runtimeshim.LoggerMain(ctx, c.State, nil)
}
