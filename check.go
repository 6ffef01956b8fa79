package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/preflight"
)

// check prints the result of every preflight check, with a remedy for each finding that has one. It
// returns an error if this host cannot run any pod.
func check(ctx context.Context, c config.Config, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fatal := false
	for f := range preflight.Look(ctx, c) {
		word := "ok     "
		switch {
		case f.Fatal:
			word, fatal = "MISSING", true
		case f.Remedy != "":
			word = "notice "
		}
		fmt.Fprintf(out, "%s  %s\n", word, f.What)
		if f.Remedy != "" {
			fmt.Fprintf(out, "         remedy: %s\n", f.Remedy)
		}
	}
	if fatal {
		return errors.New("this host cannot run pods yet")
	}
	return nil
}
