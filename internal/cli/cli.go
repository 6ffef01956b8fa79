// Package cli is the command line that people and systemd use: the commands, their flags and their
// help. It runs none of them itself, and decides nothing about pods.
//
// The commands `shim` and `logger` are not part of it: the daemon starts both,
// and they must start fast and stay small.
package cli

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cribox/cribox/config"
)

// Run is what a command does, with the configuration that its flags and files give.
type Run func(context.Context, config.Config, io.Writer) error

// Commands are what the commands do.
type Commands struct {
	Serve, Check, Config, Shutdown Run
	Image                          ImageCommands
	Why, Debt, Top                 PodRun
	Migrate                        MigrateRun
}

// New returns the command line of cribox.
func New(version string, run Commands) *cobra.Command {
	root := &cobra.Command{
		Use:   "cribox",
		Short: "container runtime for Kubernetes nodes",
		Long: `cribox runs the containers of a Kubernetes node: it serves the Container Runtime
Interface (CRI v1) on a Unix socket, for a kubelet or crictl.

"cribox serve" is the daemon. It starts a shim and a logger by itself, from the program
"cribox-helper" beside it; they outlive it, and so do all containers.`,
		Example: `  cribox check      what this machine lacks to run pods
  cribox config     every key of the configuration, as it is now
  cribox serve      the daemon, which systemd usually starts`,
		Version:                    version,
		SilenceErrors:              true, // main prints the error
		SuggestionsMinimumDistance: 2,
		SilenceUsage:               true,
		Args:                       noArguments,
		RunE:                       func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetVersionTemplate(versionLine(version))
	root.SetFlagErrorFunc(explainFlag)
	root.CompletionOptions.HiddenDefaultCmd = true // packages install the completions
	root.AddCommand(serveCommand(run.Serve), checkCommand(run.Check), configCommand(run.Config), imageCommand(run.Image),
		topCommand(run.Top), whyCommand(run.Why), debtCommand(run.Debt), migrateCommand(run.Migrate),
		shutdownCommand(run.Shutdown), versionCommand(version))
	return root
}

func serveCommand(run Run) *cobra.Command {
	return withConfig(run, &cobra.Command{
		Use:   "serve",
		Short: "run the daemon",
		Long: `Run the daemon in the foreground until SIGTERM. Containers, their logs and their exit codes
do not depend on it: they go on while it is stopped, and it finds them when it starts again.

SIGHUP reads the configuration again. The log names the changed keys that need a restart.`,
		Example: `  cribox serve
  cribox serve --config /etc/cribox/test.toml
  cribox serve --state /run/cribox-test --root /var/lib/cribox-test    a second daemon`,
	})
}

func checkCommand(run Run) *cobra.Command {
	return withConfig(run, &cobra.Command{
		Use:   "check",
		Short: "say what this machine lacks to run pods, and how to get it",
		Long: `Look at this machine and print one line for each thing that pods need. "ok" is fine. "notice"
comes with a remedy; pods run without it. "MISSING" means that no pod can run, and the exit
code is then 1. Nothing is changed.`,
		Example: `  cribox check
  cribox check --config /etc/cribox/test.toml`,
	})
}

func configCommand(run Run) *cobra.Command {
	return withConfig(run, &cobra.Command{
		Use:   "config",
		Short: "print the configuration in effect, with the documentation of each key",
		Long: `Print the configuration that "cribox serve" with the same flags would use: the defaults, the
files over them, and the flags over the files. The output is a configuration file itself.`,
		Example: `  cribox config
  cribox config --config /dev/null    the defaults`,
	})
}

func shutdownCommand(run Run) *cobra.Command {
	return withConfig(run, &cobra.Command{
		Use:   "shutdown",
		Short: "end the shim and the logger when nothing runs",
		Long: `End the two processes that outlive the daemon, and remove the default network. It is the last
step before cribox is taken off a node. It fails, and ends nothing, while the daemon runs or
a container is left.`,
		Example: `  crictl rmp -af && systemctl stop cribox && cribox shutdown`,
	})
}

func versionCommand(version string) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "print the version",
		Example: `  cribox version`,
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), versionLine(version))
			return err
		},
	}
}

func versionLine(version string) string {
	return fmt.Sprintf("cribox %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// withConfig gives the command the flags of the configuration, and makes it read the configuration
// and call run.
func withConfig(run Run, c *cobra.Command) *cobra.Command {
	var f config.Flags
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.File, "config", config.DefaultFile, "configuration `FILE` in TOML; over it are read FILE.d/*.toml")
	flags.StringVar(&f.Listen, "listen", "", "socket to serve on, as `unix:///PATH`")
	flags.StringVar(&f.Root, "root", "", "`FOLDER` that survives a reboot: images, writable layers, records")
	flags.StringVar(&f.State, "state", "", "`FOLDER` of what runs: sockets, pipes, mounts")
	must(c.MarkFlagFilename("config", "toml"))
	must(c.MarkFlagDirname("root"))
	must(c.MarkFlagDirname("state"))
	c.Args = noArguments
	c.ValidArgsFunction = cobra.NoFileCompletions
	c.RunE = func(c *cobra.Command, _ []string) error {
		read, err := config.Read(f)
		if err != nil {
			return err
		}
		return run(c.Context(), read, c.OutOrStdout())
	}
	return c
}

// must panics when this package names a flag that it does not define.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// noArguments returns an error that says what to do about an argument or an unknown command.
func noArguments(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case c.HasParent():
		return fmt.Errorf("%s takes no argument %q; `%s --help` lists its flags", c.Name(), args[0], c.CommandPath())
	case len(c.SuggestionsFor(args[0])) > 0:
		return fmt.Errorf("unknown command %q; did you mean %s?", args[0], strings.Join(c.SuggestionsFor(args[0]), " or "))
	}
	return fmt.Errorf("unknown command %q; `cribox help` lists them", args[0])
}

// explainFlag adds to the error of a wrong flag what to do about it.
func explainFlag(c *cobra.Command, err error) error {
	if strings.HasPrefix(err.Error(), "unknown shorthand flag") {
		return fmt.Errorf("%w: flags have two dashes; `%s --help` lists them", err, c.CommandPath())
	}
	return fmt.Errorf("%w; `%s --help` lists the flags", err, c.CommandPath())
}
