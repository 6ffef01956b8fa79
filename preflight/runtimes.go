package preflight

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"github.com/cribox/cribox/config"
	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/oci"
)

// runcVersion matches the output of runc --version.
var runcVersion = regexp.MustCompile(`(?m)^runc version (\S+)`)

func lookRuntimes(ctx context.Context, c config.Config) []Finding {
	var all []Finding
	for name, r := range c.Runtimes {
		path := r.Program()
		b, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			all = append(all, Finding{What: fmt.Sprintf("runtime %s: %s: %v", name, path, err), Fatal: name == c.DefaultRuntime,
				Remedy: runtimeshim.RuncAdvice + ", or set [runtimes." + name + "] path"})
			continue
		}
		what, _, _ := strings.Cut(string(b), "\n")
		f := Finding{What: fmt.Sprintf("runtime %s: %s (%s)", name, what, path)}
		if flaw := runcFlaw(b); flaw != "" {
			f.Remedy = flaw + "; " + runtimeshim.RuncAdvice
		}
		all = append(all, f, lookFeatures(ctx, name, path))
	}
	return all
}

// lookFeatures asks a runtime whether it supports pods with user namespaces.
func lookFeatures(ctx context.Context, name, path string) Finding {
	can, err := oci.AskFeatures(ctx, path)
	switch {
	case err != nil:
		return Finding{What: fmt.Sprintf("runtime %s does not report its features: %v", name, err),
			Remedy: "install runc 1.2 or newer for pods with user namespaces"}
	case !can.UserNamespaces || !can.IDMappedMounts:
		return Finding{What: "runtime " + name + ": no user namespaces with id-mapped mounts",
			Remedy: "install runc 1.2 or newer"}
	}
	return Finding{What: "runtime " + name + ": user namespaces, id-mapped mounts"}
}

// runcFlaw returns the worst known flaw of the runc whose --version prints says. It returns "" if
// none is known, and for any other runtime.
func runcFlaw(says []byte) string {
	m := runcVersion.FindSubmatch(says)
	if m == nil {
		return ""
	}
	return oci.RuncFlaw(string(m[1]))
}
