// cribox is a container runtime for Kubernetes nodes. Package main only reads flags and connects
// the other packages; it has no logic of its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/containerd/log"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/step"
)

// version is set by the build.
var version = ""

// steps is called after every side effect of this process; it is nil except in crash tests.
var steps = step.FromEnv()

const usage = `cribox runs the containers of a Kubernetes node: it serves CRI v1 on a unix socket.

Usage: cribox COMMAND [FLAGS]

  serve      run the daemon until SIGTERM; containers go on without it; SIGHUP reads the configuration again
  check      say what this host lacks, and how to get it
  config     print the configuration in effect, with each key's documentation
  shutdown   end the shim and the logger when nothing runs, and take the default network away
  version    print the version

  shim, logger   parts of cribox that serve starts by itself

Flags of serve, check, config and shutdown:
  --config FILE          configuration, a TOML file (default ` + config.DefaultFile + `), and over it FILE.d/*.toml
  --listen unix:///PATH  socket to serve on
  --root DIR             folder that survives a reboot
  --state DIR            folder of what runs
`

var commands = map[string]func(context.Context, config.Config, io.Writer) error{
	"serve":    serve,
	"check":    check,
	"config":   printConfig,
	"shutdown": shutdown,
	"shim":     runShim,
	"logger":   runLogger,
}

func main() {
	closeInherited()
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cribox:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		_, err := io.WriteString(out, usage)
		return err
	}
	if args[0] == "version" || args[0] == "--version" {
		_, err := fmt.Fprintf(out, "cribox %s %s %s/%s\n", versionString(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	command, ok := commands[args[0]]
	if !ok {
		return fmt.Errorf("unknown command %q; `cribox help` lists them", args[0])
	}
	c, err := configure(args[0], args[1:])
	if err == flag.ErrHelp {
		_, err := io.WriteString(out, usage)
		return err
	}
	if err != nil {
		return err
	}
	if err := log.SetLevel(c.LogLevel); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return command(ctx, c, out)
}

// configure parses the flags and, except for shim and logger, reads the configuration files.
func configure(command string, args []string) (config.Config, error) {
	var f config.Flags
	flags := flag.NewFlagSet("cribox "+command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&f.File, "config", config.DefaultFile, "")
	flags.StringVar(&f.Listen, "listen", "", "")
	flags.StringVar(&f.Root, "root", "", "")
	flags.StringVar(&f.State, "state", "", "")
	if err := flags.Parse(args); err != nil {
		return config.Config{}, err
	}
	if flags.NArg() > 0 {
		return config.Config{}, fmt.Errorf("%s takes no argument %q", command, flags.Arg(0))
	}
	if command == "shim" || command == "logger" {
		f.File = "" // the shim and the logger need only their flags, and must start even if the files are now invalid
	}
	return config.Read(f)
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
