package cli

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cribox/cribox/config"
)

// MigrateOptions are the flags and arguments of `cribox migrate`.
type MigrateOptions struct {
	From       string // "containerd" or "crio"
	File       string // configuration of the cribox that is written to
	FromConfig string // configuration of the other runtime, "" for its default
	FromRoot   string // folder with containerd's images, "" for the one that its file names
	Host       string // folder below which the files of the other runtime are, "" for the host's root
	DryRun     bool
	Undo       bool
	ConfigOnly bool
	ImagesOnly bool
	JSON       bool
	Err        io.Writer // for progress
}

// MigrateRun is what `cribox migrate` does.
type MigrateRun func(context.Context, config.Config, MigrateOptions, io.Writer) error

func migrateCommand(run MigrateRun) *cobra.Command {
	o := &MigrateOptions{}
	c := &cobra.Command{
		Use:   "migrate containerd|crio",
		Short: "take over the settings and images of containerd, or the settings of CRI-O",
		Long: `Read the files of containerd or CRI-O on this node, and print for each setting whether it is taken,
is the same in cribox anyway, or has no counterpart, with what to do then. The settings that are
taken are written to FILE.d, and mirrors and certificates of registries to the folder
registry_config. No file is replaced that this command has not written.

Then the daemon copies the images of containerd, so that they need not be pulled again. It has to
run, and containerd need not. Nothing of the other runtime is changed.

The command can be repeated at any time, and goes on where it was. --undo removes the files that
it has written and the pins of images; the images stay until the kubelet needs the space.`,
		Example: `  cribox migrate containerd --dry-run
  cribox migrate containerd
  cribox migrate crio --dry-run --json | jq '.lines[] | select(.kind == "missing")'
  cribox migrate containerd --undo`,
	}
	withConfig(func(ctx context.Context, read config.Config, out io.Writer) error {
		o.File, _ = c.Flags().GetString("config")
		o.Err = c.ErrOrStderr()
		return run(ctx, read, *o, out)
	}, c)
	inner := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		o.From = args[0]
		return inner(c, args)
	}
	c.ValidArgs = []string{"containerd", "crio"}
	c.ValidArgsFunction = nil
	c.Args = oneRuntime
	flags := c.Flags()
	flags.BoolVar(&o.DryRun, "dry-run", false, "only print what would be done")
	flags.BoolVar(&o.Undo, "undo", false, "remove what the command has written before")
	flags.BoolVar(&o.ConfigOnly, "config-only", false, "take over settings, and no images")
	flags.BoolVar(&o.ImagesOnly, "images-only", false, "take over images, and no settings")
	flags.StringVar(&o.FromConfig, "from-config", "", "configuration `FILE` of the other runtime")
	flags.StringVar(&o.FromRoot, "from-root", "", "`FOLDER` with containerd's images; as a rule its configuration says it")
	flags.StringVar(&o.Host, "host", "", "`FOLDER` below which all files of the other runtime are")
	flags.BoolVar(&o.JSON, "json", false, "print JSON")
	must(c.MarkFlagFilename("from-config"))
	must(c.MarkFlagDirname("from-root"))
	must(c.MarkFlagDirname("host"))
	c.MarkFlagsMutuallyExclusive("undo", "dry-run")
	c.MarkFlagsMutuallyExclusive("undo", "config-only", "images-only")
	return c
}

func oneRuntime(c *cobra.Command, args []string) error {
	if len(args) == 1 && slices.Contains(c.ValidArgs, args[0]) {
		return nil
	}
	return fmt.Errorf("migrate takes containerd or crio; `%s --help` has examples", c.CommandPath())
}
