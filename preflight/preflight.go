// Package preflight looks at the host and says what pods would lack on it, each with its remedy.
//
// It changes nothing, and does not need a daemon. What the daemon itself is asked for (Status) is
// answered by package sandbox, from the same functions.
package preflight

import (
	"context"
	"iter"
	"os"

	"github.com/cribox/cribox/config"
)

// Finding is the result of one look at the host. Without a remedy all is well.
type Finding struct {
	What   string // is there, or is missing
	Remedy string
	Fatal  bool // no pod runs without it
}

// Look yields what there is to say about the host, in a fixed order.
func Look(ctx context.Context, c config.Config) iter.Seq[Finding] {
	return func(yield func(Finding) bool) {
		for _, look := range looks {
			for _, f := range look(ctx, c) {
				if !yield(f) {
					return
				}
			}
		}
	}
}

var looks = []func(context.Context, config.Config) []Finding{
	lookRoot, lookKernel, lookAppArmor, lookSELinux, lookCgroups, lookRuntimes, lookOverlay, lookAbilities,
	lookUserNamespaces, lookNetwork,
}

func lookRoot(context.Context, config.Config) []Finding {
	if os.Geteuid() != 0 {
		return []Finding{{What: "cribox does not run as root", Remedy: "start it as root", Fatal: true}}
	}
	return nil
}
