package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/runtimeshim/client"
	"github.com/cribox/cribox/sandbox"
)

// shutdown ends the shim and the logger, and removes the default network and the parent cgroup. It
// returns an error while the daemon or any container runs.
func shutdown(ctx context.Context, c config.Config, out io.Writer) error {
	unlock, err := lockFolders(&c)
	if err != nil {
		return fmt.Errorf("stop the daemon first: %w", err)
	}
	defer unlock()
	helpers, err := connect(ctx, client.Config{State: c.State, LogLevel: c.LogLevel})
	if err != nil {
		return err
	}
	if err := errors.Join(helpers.Shutdown(ctx), helpers.Close()); err != nil {
		return err
	}
	network, err := openNetwork(ctx, c)
	if err != nil {
		return err
	}
	if err := errors.Join(network.RemoveDefault(ctx), sandbox.RemoveCgroupParent(ctx, c.Instance())); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "nothing of %s is running any more\n", c.State)
	return err
}
