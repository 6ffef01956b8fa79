// Package imagecmd is what `cribox image` does: it asks the daemon over the admin socket, and shows
// the answer. It touches no image itself.
package imagecmd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/adminclient"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/server/admin"
)

// Commands returns the functions of the command line.
func Commands() cli.ImageCommands {
	return cli.ImageCommands{List: list, Inspect: inspect, Pull: pull, Load: load, Save: save, Pin: pin,
		Unpin: unpin, Remove: remove, Prune: prune, Pulls: pulls, Verify: verify}
}

func list(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	var all []admin.Image
	if err := adminclient.New(c).Get(ctx, "/v1/images", &all); err != nil {
		return err
	}
	if o.JSON {
		return printJSON(out, all)
	}
	return printImages(out, all)
}

// printImages prints a line for each name, as an image may have several.
func printImages(out io.Writer, all []admin.Image) error {
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tID\tSIZE\tKEPT")
	for _, i := range all {
		names := i.Tags
		if len(names) == 0 {
			names = i.Digests
		}
		var kept []string
		if i.InUse {
			kept = append(kept, "in use")
		}
		if i.Pinned {
			kept = append(kept, "pinned")
		}
		for _, n := range names {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", n, shortID(i.ID), size(i.Size), strings.Join(kept, ", "))
		}
	}
	return t.Flush()
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 13)]
}

func inspect(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	var image admin.Image
	if err := adminclient.New(c).Get(ctx, imagePath(o.Args[0]), &image); err != nil {
		return err
	}
	return printJSON(out, image)
}

func remove(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	return forEach(ctx, c, o, out, http.MethodDelete, imagePath, "removed")
}

func pin(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	return forEach(ctx, c, o, out, http.MethodPut, pinPath, "pinned")
}

func unpin(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	return forEach(ctx, c, o, out, http.MethodDelete, pinPath, "unpinned")
}

// forEach sends a request for each image, and prints the word for each that went well.
func forEach(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer,
	method string, path func(string) string, word string) error {
	var errs []error
	for _, name := range o.Args {
		resp, err := adminclient.New(c).Do(ctx, method, path(name), nil)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		resp.Body.Close()
		if !o.JSON {
			fmt.Fprintln(out, word, name)
		}
	}
	return errors.Join(errs...)
}

func pulls(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	var all []admin.Pull
	if err := adminclient.New(c).Get(ctx, "/v1/pulls", &all); err != nil {
		return err
	}
	if o.JSON {
		return printJSON(out, all)
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tFOR\tWAITING\tBYTES\tDOING")
	for _, p := range all {
		done, doing := int64(0), []string{}
		for _, s := range p.Steps {
			done += s.Done
		}
		for _, d := range p.Doing {
			doing = append(doing, fmt.Sprintf("%s (%s)", d.Step, time.Since(d.Since).Round(time.Second)))
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", p.Image, time.Since(p.Began).Round(time.Second), p.Waiting, size(done),
			cmp.Or(strings.Join(doing, ", "), "asking the registry"))
	}
	return t.Flush()
}

func pull(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	ask := admin.PullRequest{Image: o.Args[0], Username: o.Username}
	var err error
	if ask.Password, err = password(o); err != nil {
		return err
	}
	body, err := adminclient.JSONBody(ask)
	if err != nil {
		return err
	}
	show := newDisplay(o)
	last, err := adminclient.New(c).Follow(ctx, "/v1/pull", body, show.event)
	show.end()
	if err != nil {
		return err
	}
	return result(out, o, "pulled", last.Images)
}

// password reads the first line of the input, if that is asked for.
func password(o cli.ImageOptions) (string, error) {
	if !o.PasswordStdin {
		return "", nil
	}
	line, err := bufio.NewReader(o.In).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func load(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	in := o.In
	if len(o.Args) == 1 && o.Args[0] != "-" {
		f, err := os.Open(o.Args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if f, ok := in.(*os.File); ok && isTerminal(f) {
		return errors.New("name an archive, or send one to the standard input: docker save IMAGE | cribox image load")
	}
	show := newDisplay(o)
	// The reader hides what kind it is: the client must not close the standard input.
	path := "/v1/load?" + url.Values{"name": {o.Name}}.Encode()
	last, err := adminclient.New(c).Follow(ctx, path, io.MultiReader(in), show.event)
	show.end()
	return errors.Join(result(out, o, "loaded", last.Images), err)
}

// save writes to a temporary file beside the wanted one: a file of this name is a whole archive.
func save(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	if o.Output != "" {
		f, err := os.CreateTemp(filepath.Dir(o.Output), ".cribox-save-")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name()) // which is gone if all went well
		defer f.Close()
		if err := saveTo(ctx, c, o, f); err != nil {
			return err
		}
		if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
			return err
		}
		return os.Rename(f.Name(), o.Output)
	}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		return errors.New("an archive is not for a terminal: name a file with -o, or send it on: " +
			"cribox image save IMAGE | ssh NODE cribox image load")
	}
	return saveTo(ctx, c, o, out)
}

func saveTo(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	resp, err := adminclient.New(c).Do(ctx, http.MethodGet, "/v1/save?"+url.Values{"name": o.Args}.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("the archive is not complete: %w", err)
	}
	if why := resp.Trailer.Get(admin.ErrorTrailer); why != "" {
		return fmt.Errorf("the archive is not complete: %s", why)
	}
	return nil
}

func prune(ctx context.Context, c config.Config, o cli.ImageOptions, out io.Writer) error {
	resp, err := adminclient.New(c).Do(ctx, http.MethodPost, fmt.Sprintf("/v1/prune?dry=%t", o.DryRun), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var all []admin.Image
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		return err
	}
	done := "removed"
	if o.DryRun {
		done = "would remove"
	}
	return result(out, o, done, all)
}

// result prints the images that a command has brought.
func result(out io.Writer, o cli.ImageOptions, done string, images []admin.Image) error {
	if o.JSON {
		return printJSON(out, images)
	}
	for _, i := range images {
		for _, name := range i.Tags {
			fmt.Fprintf(out, "%s %s (%s)\n", done, name, shortID(i.ID))
		}
		if len(i.Tags) == 0 {
			fmt.Fprintf(out, "%s %s (%s)\n", done, strings.Join(i.Digests, " "), shortID(i.ID))
		}
	}
	return nil
}

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// size is a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	x, u := float64(n), 0
	for x >= 1024 && u < len(units)-1 {
		x, u = x/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", x, units[u])
}

func imagePath(name string) string { return "/v1/images/" + url.PathEscape(name) }

func pinPath(name string) string { return "/v1/pins/" + url.PathEscape(name) }
