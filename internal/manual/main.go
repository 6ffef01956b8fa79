// Package manual writes what packages install beside the program: its manual pages, the completions
// of shells, and the example of a configuration file. It is a program of the build, and no part of
// cribox.
//
//	SOURCE_DATE_EPOCH=SECONDS go run ./internal/manual VERSION FOLDER
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/cli"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: manual VERSION FOLDER")
	}
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	all, err := files(args[0], time.Unix(seconds, 0).UTC())
	if err != nil {
		return err
	}
	for name, content := range all {
		path := filepath.Join(args[1], name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// files returns the content of all files by their names.
func files(version string, date time.Time) (map[string][]byte, error) {
	all := map[string][]byte{}
	root := cli.New(version, cli.Commands{})
	printed, err := config.Default().Print()
	if err != nil {
		return nil, err
	}
	all["config.toml"] = configFile(parse(printed))
	all["man/cribox-config.toml.5"] = configPage(parse(printed), version, date)
	if err := commandPages(all, root, version, date); err != nil {
		return nil, err
	}
	for name, generate := range map[string]func(*bytes.Buffer) error{
		"completions/cribox.bash": func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) },
		"completions/_cribox":     func(b *bytes.Buffer) error { return root.GenZshCompletion(b) },
		"completions/cribox.fish": func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) },
	} {
		var b bytes.Buffer
		if err := generate(&b); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[name] = b.Bytes()
	}
	return all, nil
}

// commandPages adds a page of section 8 for the command and each command below it.
func commandPages(all map[string][]byte, c *cobra.Command, version string, date time.Time) error {
	c.DisableAutoGenTag = true
	var b bytes.Buffer
	header := doc.GenManHeader{Section: "8", Date: &date, Source: "cribox " + version, Manual: "cribox"}
	if err := doc.GenMan(c, &header, &b); err != nil {
		return fmt.Errorf("manual page of %s: %w", c.CommandPath(), err)
	}
	all["man/"+pageName(c)+".8"] = b.Bytes()
	for _, below := range c.Commands() {
		if !below.IsAvailableCommand() || below.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := commandPages(all, below, version, date); err != nil {
			return err
		}
	}
	return nil
}

func pageName(c *cobra.Command) string {
	if c.HasParent() {
		return pageName(c.Parent()) + "-" + c.Name()
	}
	return c.Name()
}
