package migratecmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/adminclient"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/internal/migrate"
	"github.com/cribox/cribox/server/admin"
)

// image says what became of one image.
type image struct {
	Names []string `json:"names"`
	Done  string   `json:"done"` // "taken", "would be taken", "to pull", "failed"
	Size  int64    `json:"size,omitempty"`
	Note  string   `json:"note,omitempty"`
}

// taking is one run over the images of containerd.
type taking struct {
	client  *adminclient.Client
	options cli.MigrateOptions
	report  *report
	journal *migrate.Journal
	store   *migrate.Store
	out     io.Writer
}

// takeImages lets the daemon copy the images of containerd, one after the other. One that fails does
// not keep the others.
func takeImages(ctx context.Context, c config.Config, o cli.MigrateOptions, r *report, j *migrate.Journal,
	out io.Writer) error {
	r.Images = []image{}
	if r.StoreRoot == "" {
		return nil
	}
	store, err := migrate.OpenStore(r.StoreRoot)
	if err != nil {
		return err
	}
	if o.JSON {
		out = io.Discard
	}
	t := &taking{client: adminclient.New(c), options: o, report: r, journal: j, store: store, out: out}
	fmt.Fprintf(out, "\nImages of %s:\n", r.StoreRoot)
	for namespace, n := range store.Others {
		fmt.Fprintf(out, "  %d images of the namespace %s are not for a kubelet, and are left\n", n, namespace)
	}
	if len(store.Images) == 0 {
		_, err := fmt.Fprintln(out, "  none")
		return err
	}
	if err := t.ready(ctx); err != nil {
		return err
	}
	var errs []error
	for _, i := range store.Images {
		one, err := t.take(ctx, i)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.Images = append(r.Images, one)
		t.print(one)
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ready is an error if the daemon is needed and does not answer.
func (t *taking) ready(ctx context.Context) error {
	if t.options.DryRun {
		return nil
	}
	var all []admin.Image
	if err := t.client.Get(ctx, "/v1/images", &all); err != nil {
		return fmt.Errorf("the settings are written, and no image is taken over yet; "+
			"repeat the command when the daemon runs: %w", err)
	}
	return nil
}

// take takes over one image.
func (t *taking) take(ctx context.Context, i migrate.Image) (image, error) {
	one := image{Names: i.Names}
	if len(i.Names) == 0 {
		one.Names, one.Done, one.Note = []string{i.Digest}, "left", "it has no name, so no pod can ask for it"
		return one, nil
	}
	size, err := t.store.Complete(i)
	if err != nil {
		one.Done, one.Note = "to pull", err.Error()
		if t.report.Discarded {
			one.Note += " (discard_unpacked_layers)"
		}
		return one, nil
	}
	one.Size, one.Done = size, "would be taken"
	if t.options.DryRun {
		return one, nil
	}
	if err := t.copy(ctx, i); err != nil {
		one.Done, one.Note = "failed", err.Error()
		return one, fmt.Errorf("image %s: %w", i.Names[0], err)
	}
	one.Done = "taken"
	if i.Pinned && !slices.Contains(i.Names, t.report.Sandbox) {
		if err := t.pin(ctx, i); err != nil {
			one.Note = "it is not pinned: " + err.Error()
			return one, fmt.Errorf("pin %s: %w", i.Names[0], err)
		}
		one.Note = "pinned"
	}
	return one, nil
}

func (t *taking) copy(ctx context.Context, i migrate.Image) error {
	body, err := adminclient.JSONBody(admin.TakeRequest{Folder: t.store.Blobs, Names: i.Names, Digest: i.Digest,
		MediaType: i.MediaType})
	if err != nil {
		return err
	}
	show := func(admin.Event) {}
	if f, ok := t.options.Err.(*os.File); ok && !t.options.JSON && isTerminal(f) {
		defer fmt.Fprint(f, "\r\x1b[K")
		show = func(e admin.Event) {
			done := int64(0)
			for _, p := range e.Pulls {
				for _, s := range p.Steps {
					done += s.Done
				}
			}
			fmt.Fprintf(f, "\r\x1b[K  %s: %s", clip(i.Names[0]), size(done))
		}
	}
	_, err = t.client.Follow(ctx, "/v1/take", body, show)
	return err
}

func (t *taking) pin(ctx context.Context, i migrate.Image) error {
	for _, name := range i.Names {
		if strings.Contains(name, "@") {
			continue
		}
		if err := t.journal.Pinned(name); err != nil {
			return err
		}
		resp, err := t.client.Do(ctx, http.MethodPut, "/v1/pins/"+url.PathEscape(name), nil)
		if err != nil {
			return err
		}
		resp.Body.Close()
	}
	return nil
}

func (t *taking) print(i image) {
	note := ""
	if i.Note != "" {
		note = ": " + i.Note
	}
	switch i.Done {
	case "to pull":
		fmt.Fprintf(t.out, "  cribox image pull %s%s\n", i.Names[0], note)
	case "taken", "would be taken":
		fmt.Fprintf(t.out, "  %s %s (%s)%s\n", strings.Join(i.Names, ", "), i.Done, size(i.Size), note)
	default:
		fmt.Fprintf(t.out, "  %s %s%s\n", strings.Join(i.Names, ", "), i.Done, note)
	}
}

// undo removes what the journal says, and unpins images, for which the daemon has to run.
func undo(ctx context.Context, c config.Config, o cli.MigrateOptions, j *migrate.Journal, out io.Writer) error {
	if j.Empty() {
		_, err := fmt.Fprintln(out, "nothing of a migration is left: there is no", j.Path())
		return err
	}
	client := adminclient.New(c)
	for _, name := range j.Pins {
		resp, err := client.Do(ctx, http.MethodDelete, "/v1/pins/"+url.PathEscape(name), nil)
		if err == nil {
			resp.Body.Close()
		} else if !strings.Contains(err.Error(), "not pinned") { // by somebody else, meanwhile
			return fmt.Errorf("unpin %s: %w", name, err)
		}
	}
	results, err := j.Undo()
	if o.JSON {
		return errors.Join(err, printJSON(out, results))
	}
	for _, r := range results {
		printResult(out, r, false)
	}
	for _, name := range j.Pins {
		fmt.Fprintf(out, "  %s is not pinned any more\n", name)
	}
	fmt.Fprintf(out, "\n%s and its files are as they were. Images that were copied stay until the kubelet needs\n"+
		"the space; `cribox image prune` removes those that no container needs. Restart cribox for the settings.\n", o.From)
	return err
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// clip leaves room for a number on a line of a terminal.
func clip(name string) string {
	if len(name) > 60 {
		return "..." + name[len(name)-57:]
	}
	return name
}

func size(n int64) string {
	x, unit := float64(n), "B"
	for _, next := range []string{"kB", "MB", "GB", "TB"} {
		if x < 1000 {
			break
		}
		x, unit = x/1000, next
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", x, unit)
}
