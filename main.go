// cribox is a container runtime for Kubernetes nodes. Package main only reads flags and connects
// the other packages; it has no logic of its own.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/internal/imagecmd"
	"github.com/cribox/cribox/internal/migratecmd"
	"github.com/cribox/cribox/internal/podcmd"
	"github.com/cribox/cribox/internal/step"
	release "github.com/cribox/cribox/internal/version"
	"github.com/cribox/cribox/runtimeshim/roles"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// version is set by the build.
var version = ""

// steps is called after every side effect of this process; it is nil except in crash tests.
var steps = step.FromEnv()

func main() {
	unixfd.CloseInherited()
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cribox:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if roles.Asked(args) { // they must start fast and stay small, so not by way of package cli
		return roles.Run(ctx, args, nil)
	}
	root := cli.New(versionString(), cli.Commands{
		Serve: withLogLevel(serve), Check: withLogLevel(check), Config: withLogLevel(printConfig),
		Shutdown: withLogLevel(shutdown),
		Image:    imagecmd.Commands(),
		Why:      podcmd.Why, Debt: podcmd.Debt, Top: podcmd.Top,
		Migrate: migratecmd.Command(steps),
	})
	root.SetArgs(args)
	root.SetOut(out)
	return root.ExecuteContext(ctx)
}

// withLogLevel sets the log level of the configuration before command runs.
func withLogLevel(command cli.Run) cli.Run {
	return func(ctx context.Context, c config.Config, out io.Writer) error {
		if err := log.SetLevel(c.LogLevel); err != nil {
			return err
		}
		return command(ctx, c, out)
	}
}

// versionString returns the version of this program.
func versionString() string { return release.Of(version) }
