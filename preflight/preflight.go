// Package preflight checks whether the host can run pods, and returns a remedy for each thing that
// is missing.
//
// It changes nothing and needs no running daemon. The daemon's Status uses the same check
// functions, through package sandbox.
package preflight

import (
	"context"
	"iter"
	"os"

	"github.com/cribox/cribox/config"
)

// Finding is the result of one check. An empty Remedy means that nothing is wrong.
type Finding struct {
	What   string // what is present, or what is missing
	Remedy string
	Fatal  bool // no pod can run without it
}

// Look runs the checks and returns their findings, in a fixed order.
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
	lookUserNamespaces, lookNetwork, lookImages,
}

func lookRoot(context.Context, config.Config) []Finding {
	if os.Geteuid() != 0 {
		return []Finding{{What: "cribox does not run as root", Remedy: "start it as root", Fatal: true}}
	}
	return nil
}
