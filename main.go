// cribox is a container runtime for Kubernetes nodes. Package main only reads flags and connects
// the other packages; it has no logic of its own.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/containerd/log"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/internal/imagecmd"
	"github.com/cribox/cribox/internal/podcmd"
	"github.com/cribox/cribox/internal/step"
)

// version is set by the build.
var version = ""

// steps is called after every side effect of this process; it is nil except in crash tests.
var steps = step.FromEnv()

func main() {
	closeInherited()
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cribox:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(args) > 0 && helpers[args[0]] != nil {
		return runHelper(ctx, args[0], args[1:])
	}
	root := cli.New(versionString(), cli.Commands{
		Serve: withLogLevel(serve), Check: withLogLevel(check), Config: withLogLevel(printConfig),
		Shutdown: withLogLevel(shutdown),
		Image:    imagecmd.Commands(),
		Why:      podcmd.Why, Debt: podcmd.Debt, Top: podcmd.Top,
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

// versionString returns the version that the build set, or else the version of the Go module.
func versionString() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "0.1.0-dev"
}
