// Package migratecmd is what `cribox migrate` does: it writes the files of a plan of package migrate,
// asks the daemon to copy images, and prints what became of everything.
package migratecmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/internal/migrate"
	"github.com/cribox/cribox/internal/step"
)

// report is what the command has done, or would do.
type report struct {
	*migrate.Plan
	Written []migrate.Result `json:"written"`
	Images  []image          `json:"images"`
	DryRun  bool             `json:"dryRun"`
}

// Command returns what the command does. hook is passed each step that changes something.
func Command(hook step.Hook) cli.MigrateRun {
	return func(ctx context.Context, c config.Config, o cli.MigrateOptions, out io.Writer) error {
		journal, err := migrate.OpenJournal(o.File+".d", migrate.Source(o.From), hook)
		if err != nil {
			return err
		}
		if o.Undo {
			return undo(ctx, c, o, journal, out)
		}
		plan, err := planOf(c, o)
		if err != nil {
			return err
		}
		r := &report{Plan: plan, DryRun: o.DryRun}
		if o.ImagesOnly {
			plan.Files, plan.Lines = nil, nil
		}
		if o.DryRun {
			r.Written, err = journal.Preview(plan.Files)
		} else {
			r.Written, err = journal.Write(plan.Files)
		}
		if err != nil {
			return err
		}
		if !o.JSON {
			if err := r.print(out, o); err != nil {
				return err
			}
		}
		if !o.ConfigOnly {
			err = takeImages(ctx, c, o, r, journal, out)
		}
		if o.JSON {
			err = errors.Join(err, printJSON(out, r))
		}
		return err
	}
}

func planOf(c config.Config, o cli.MigrateOptions) (*migrate.Plan, error) {
	options := migrate.Options{Host: o.Host, ConfigFile: o.FromConfig, DropIns: o.File + ".d",
		Registries: c.Images.RegistryConfig, Credentials: c.Images.Credentials, Policy: c.Images.SignaturePolicy,
		Valid: validator(o)}
	if options.Registries == "" {
		return nil, errors.New("images.registry_config is empty: name a folder for mirrors and certificates there")
	}
	var plan *migrate.Plan
	var err error
	if migrate.Source(o.From) == migrate.CRIO {
		plan, err = migrate.FromCRIO(options)
	} else {
		plan, err = migrate.FromContainerd(options)
	}
	if err == nil && o.FromRoot != "" {
		plan.StoreRoot = o.FromRoot
	}
	return plan, err
}

// validator returns a function that reads the configuration with a drop-in in addition, as the daemon
// will.
func validator(o cli.MigrateOptions) func(dropIn []byte) error {
	return func(dropIn []byte) error {
		dir, err := os.MkdirTemp("", "cribox-migrate-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		file := filepath.Join(dir, "with")
		base, err := os.ReadFile(o.File)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(file, base, 0o600); err != nil {
			return err
		}
		if err := os.Mkdir(file+".d", 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(file+".d", "50.toml"), dropIn, 0o600); err != nil {
			return err
		}
		_, err = config.Read(config.Flags{File: file})
		if err != nil {
			_, after, ok := strings.Cut(err.Error(), "key ")
			if ok {
				err = errors.New("key " + after)
			}
		}
		return err
	}
}

func (r *report) print(out io.Writer, o cli.MigrateOptions) error {
	var b strings.Builder
	for _, file := range r.Read {
		fmt.Fprintf(&b, "read %s\n", file)
	}
	titles := map[migrate.Kind]string{migrate.Taken: "Taken over", migrate.Same: "The same in cribox, or not needed",
		migrate.Missing: "Without a counterpart, or for you to do"}
	var last migrate.Kind
	for _, l := range r.Lines {
		if l.Kind != last {
			fmt.Fprintf(&b, "\n%s:\n", titles[l.Kind])
			last = l.Kind
		}
		fmt.Fprintf(&b, "  %s", l.From)
		if l.To != "" {
			fmt.Fprintf(&b, "  ->  %s", l.To)
		}
		if l.Note != "" {
			fmt.Fprintf(&b, "  (%s)", l.Note)
		}
		b.WriteByte('\n')
	}
	if len(r.Written) > 0 {
		fmt.Fprintf(&b, "\nFiles:\n")
	}
	for _, f := range r.Written {
		printResult(&b, f, o.DryRun)
	}
	if len(r.Pulls) > 0 {
		b.WriteString("\nImages that have to be pulled, since CRI-O keeps no blobs of them:\n")
		for _, name := range r.Pulls {
			fmt.Fprintf(&b, "  cribox image pull %s\n", name)
		}
	}
	if !o.ImagesOnly && !o.DryRun {
		b.WriteString("\nRestart cribox for what is new (systemctl restart cribox), and set the kubelet's endpoint: " +
			"docs/migration.md.\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func printResult(out io.Writer, f migrate.Result, dry bool) {
	done := f.Done
	if dry && done == "written" {
		done = "would be written"
	}
	note := ""
	if f.Note != "" {
		note = ": " + f.Note
	}
	fmt.Fprintf(out, "  %s %s%s\n", f.Path, done, note)
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
