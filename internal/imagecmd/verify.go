package imagecmd

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/adminclient"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/server/admin"
)

// verify prints a line for each image as soon as it has been verified, and what is damaged of it.
func verify(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	ask := admin.VerifyRequest{Images: o.Args, Repair: o.Repair, Username: o.Username}
	var err error
	if ask.Password, err = password(o); err != nil {
		return err
	}
	body, err := adminclient.JSONBody(ask)
	if err != nil {
		return err
	}
	show, all := newDisplay(o), []admin.Verified{}
	note := func(e admin.Event) {
		show.clear()
		for _, v := range e.Verified {
			all = append(all, v)
			if !o.JSON {
				printVerified(out, v)
			}
		}
		e.Steps = slices.DeleteFunc(e.Steps, func(s admin.Step) bool { return s.Finished })
		if show.width > 0 {
			show.event(e)
		}
	}
	last, err := adminclient.New(c).Follow(ctx, "/v1/verify", body, note)
	show.clear()
	note(last)
	if o.JSON {
		if err := printJSON(out, all); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return damaged(all, o.Repair)
}

func printVerified(out io.Writer, v admin.Verified) {
	word := "ok"
	switch {
	case !v.Sound:
		word = "DAMAGED"
	case len(v.Damages) > 0:
		word = "repaired"
	}
	name := strings.Join(v.Image.Tags, " ")
	fmt.Fprintf(out, "%-8s  %s (%s)\n", word, cmp.Or(name, strings.Join(v.Image.Digests, " ")), shortID(v.Image.ID))
	for _, d := range v.Damages {
		repaired := ""
		if d.Repaired {
			repaired = ", repaired"
		}
		fmt.Fprintf(out, "  %s%s\n", d.Data, repaired)
		for _, w := range d.What {
			fmt.Fprintf(out, "    %s\n", w)
		}
		if len(d.Containers) > 0 {
			users := strings.Join(d.Containers, ", ")
			fmt.Fprintf(out, "    in use, until they are made again, by containers %s\n", users)
		}
	}
	if v.Error != "" {
		fmt.Fprintf(out, "  %s\n", strings.ReplaceAll(v.Error, "\n", "\n  "))
	}
}

// damaged returns an error if something is still damaged.
func damaged(all []admin.Verified, repaired bool) error {
	n := 0
	for _, v := range all {
		if !v.Sound {
			n++
		}
	}
	switch {
	case n == 0:
		return nil
	case repaired:
		return fmt.Errorf("%d of %d images are damaged", n, len(all))
	}
	return fmt.Errorf("%d of %d images are damaged; `cribox image verify --repair` pulls them again", n, len(all))
}
