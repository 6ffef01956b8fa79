// cribox-helper is the shim or the logger of a daemon. It has none of the daemon's code, and so needs a
// quarter of the memory that `cribox` needs as either. The daemon finds it beside its own
// program; without it, cribox does the work.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	release "github.com/cribox/cribox/internal/version"
	"github.com/cribox/cribox/runtimeshim/roles"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// version is set by the build.
var version = ""

func main() {
	unixfd.CloseInherited()
	if slices.Equal(os.Args[1:], []string{"version"}) {
		fmt.Println("cribox-helper", release.Of(version))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := roles.Run(ctx, os.Args[1:], nil); err != nil {
		fmt.Fprintln(os.Stderr, "cribox-helper:", err)
		os.Exit(1)
	}
}
