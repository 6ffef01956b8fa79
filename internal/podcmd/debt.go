package podcmd

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/internal/adminclient"
	"github.com/cribox/cribox/internal/cli"
	"github.com/cribox/cribox/server/admin"
)

// Debt prints what the daemon has to do yet.
func Debt(ctx context.Context, c config.Config, o cli.PodOptions, out io.Writer) error {
	var all []admin.Debt
	if err := adminclient.New(c).Get(ctx, "/v1/debts", &all); err != nil {
		return err
	}
	if o.JSON {
		return printJSON(out, all)
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "nothing is owed")
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "OF\tTO DO\tSINCE\tFAILED TRIES\tNEXT TRY\tLAST ERROR")
	for _, d := range all {
		who := strings.TrimSpace(d.Kind + " " + cmp.Or(d.Name, d.ID))
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", cmp.Or(who, "-"), d.What, ago(d.Since), d.Tries, next(d), oneLine(d.Error))
	}
	return t.Flush()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}

func next(d admin.Debt) string {
	switch {
	case d.Tries == 0:
		return "-"
	case d.Next.IsZero():
		return "now"
	}
	return "in " + max(time.Until(d.Next).Round(time.Second), 0).String()
}
