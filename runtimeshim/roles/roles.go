// Package roles is what a program does that the daemon has started as its shim or its logger. It links
// nothing that only the daemon needs, so that cribox-helper, which has no other work, stays small.
package roles

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/runtimeshim/logger"
	"github.com/cribox/cribox/runtimeshim/shim"
)

var roles = map[string]func(ctx context.Context, state string, step step.Hook) error{
	"shim": shim.Main, "logger": runLogger,
}

// Asked reports whether args, the arguments of a program, are the command of a role:
// `shim --state DIR` or `logger --state DIR`.
func Asked(args []string) bool { return len(args) > 0 && roles[args[0]] != nil }

// Run plays the role that args ask for until ctx ends or the daemon says so. step is nil except in
// crash tests. It reads no configuration file, because shim and logger must start even if the files
// are now invalid.
func Run(ctx context.Context, args []string, step step.Hook) error {
	if !Asked(args) {
		return errors.New("neither shim nor logger is asked for; `cribox serve` starts both")
	}
	name := args[0]
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	state := flags.String("state", "", "")
	err := flags.Parse(args[1:])
	switch {
	case err != nil:
		return fmt.Errorf("%s is started by `cribox serve` with --state DIR: %w", name, err)
	case *state == "":
		return fmt.Errorf("%s is started by `cribox serve` with --state DIR", name)
	case flags.NArg() > 0:
		return fmt.Errorf("%s takes no argument %q", name, flags.Arg(0))
	}
	return roles[name](ctx, *state, step)
}

// runLogger runs the logger, which writes the containers' logs. It ignores SIGHUP: someone who
// sends the signal to every process named cribox means the daemon.
func runLogger(ctx context.Context, state string, step step.Hook) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	return logger.Main(ctx, state, step)
}
