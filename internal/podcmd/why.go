// Package podcmd is what `cribox why`, `cribox debt` and `cribox top` do: they ask the daemon over
// the admin socket, and show the answer.
package podcmd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/adminclient"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/server/admin"
)

// Why prints the stories of what a name means.
func Why(ctx context.Context, c config.Config, o cli.PodOptions, out io.Writer) error {
	var all []admin.Story
	if err := adminclient.New(c).Get(ctx, "/v1/why/"+url.PathEscape(o.Args[0]), &all); err != nil {
		return err
	}
	if o.JSON {
		return printJSON(out, all)
	}
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := printStory(out, s); err != nil {
			return err
		}
	}
	return nil
}

const clock = "2006-01-02 15:04:05.000"

func printStory(out io.Writer, s admin.Story) error {
	title := s.Kind + " " + s.ID
	if s.Name != s.ID {
		title = s.Kind + " " + s.Name + " (" + short(s.ID) + ")"
	}
	fmt.Fprintf(out, "%s: %s\n", title, s.State)
	for _, f := range s.Record {
		fmt.Fprintf(out, "  %s  %s\n", f.At.Local().Format(clock), oneLine(f.What))
	}
	if s.Dropped > 0 {
		fmt.Fprintf(out, "  (%d earlier steps are forgotten)\n", s.Dropped)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, m := range s.Steps {
		result := ""
		switch {
		case m.Running:
			result = "IS AT IT"
		case m.Error != "":
			result = "FAILED: " + oneLine(m.Error)
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", m.Began.Local().Format(clock), round(m.Took), m.Step, result)
	}
	return t.Flush()
}

func short(id string) string { return id[:min(len(id), 13)] }

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// round leaves three digits, so that a column can be read.
func round(d time.Duration) time.Duration {
	for unit := time.Second; unit > 1; unit /= 10 {
		if d >= unit*100 {
			return d.Round(unit)
		}
	}
	return d
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
