package main

import (
	"context"
	"io"

	"github.com/cribox/cribox/config"
)

// printConfig prints the configuration in effect.
func printConfig(_ context.Context, c config.Config, out io.Writer) error {
	b, err := c.Print()
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}
