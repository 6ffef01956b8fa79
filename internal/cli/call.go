package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cribox/cribox/config"
)

// Call is what all commands have in common that ask the daemon.
type Call struct {
	Args []string
	JSON bool // print JSON instead of text for people
	In   io.Reader
	Err  io.Writer // for progress
}

func (c *Call) call() *Call { return c }

// withCall gives the command the flags of the configuration and --json, and makes it call run with
// its options. These contain a Call.
func withCall[O any, P interface {
	*O
	call() *Call
}](
	run func(context.Context, config.Config, O, io.Writer) error, args cobra.PositionalArgs, c *cobra.Command,
) (*cobra.Command, *O) {
	options := new(O)
	call := P(options).call()
	withConfig(func(ctx context.Context, read config.Config, out io.Writer) error {
		call.In, call.Err = c.InOrStdin(), c.ErrOrStderr()
		return run(ctx, read, *options, out)
	}, c)
	inner := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		call.Args = args
		return inner(c, args)
	}
	c.Args = args
	c.Flags().BoolVar(&call.JSON, "json", false, "print JSON")
	return c, options
}

// one accepts one argument, which errors call what.
func one(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return fmt.Errorf("%s takes one %s, not %d; `%s --help` has examples", c.Name(), what, len(args), c.CommandPath())
	}
}
