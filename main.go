// cribox is a container runtime for Kubernetes nodes. The root of the program is the only place where its rooms meet; it decides nothing.
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
)

// version is set by the build.
var version = ""

const usage = `cribox runs the containers of a Kubernetes node: it serves CRI v1 on a unix socket.

Usage: cribox COMMAND [FLAGS]

  serve      run the daemon until SIGTERM; containers go on without it; SIGHUP reads the configuration again
  check      say what this host lacks, and how to get it
  config     print the configuration in effect, with each key's documentation
  shutdown   end the shim and the logger when nothing runs, and take the default network away
  version    print the version

  shim, logger   parts of cribox that serve starts by itself

Flags of serve, check, config and shutdown:
  --config FILE          configuration, a TOML file (default ` + defaultConfigFile + `), and over it FILE.d/*.toml
  --listen unix:///PATH  socket to serve on
  --root DIR             folder that survives a reboot
  --state DIR            folder of what runs
`

var commands = map[string]func(context.Context, Config, io.Writer) error{
	"serve":    serve,
	"check":    checkHost,
	"config":   printConfig,
	"shutdown": shutdown,
	"shim":     shim,
	"logger":   logger,
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

// configure reads the flags, the file that they name, and then lets the flags win.
func configure(command string, args []string) (Config, error) {
	flags := flag.NewFlagSet("cribox "+command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("config", defaultConfigFile, "")
	listen, root, state := flags.String("listen", "", ""), flags.String("root", "", ""), flags.String("state", "", "")
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	if flags.NArg() > 0 {
		return Config{}, fmt.Errorf("%s takes no argument %q", command, flags.Arg(0))
	}
	c := defaultConfig()
	if command != "shim" && command != "logger" { // they are told all they need, and must start whatever the file has become
		var err error
		if c, err = loadConfig(*file); err != nil {
			return c, err
		}
	}
	if *state != "" {
		if *listen == "" && c.Listen == defaultConfig().Listen {
			c.Listen = "unix://" + *state + "/cribox.sock"
		}
		c.State = *state
	}
	if *listen != "" {
		c.Listen = *listen
	}
	if *root != "" {
		c.Root = *root
	}
	c.reread = func() (Config, error) { return configure(command, args) }
	return c, c.validate(*file)
}

func printConfig(_ context.Context, c Config, out io.Writer) error {
	b, err := c.print()
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// versionString is what the build said, or the version control's word for it.
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
