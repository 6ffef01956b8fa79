package cni

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cribox/cribox/cni/program"
)

// Without nft the bridge plugin masquerades each pod by an iptables rule and a chain of its own,
// and removes them only if the pod's namespace still exists. Here they are found by the comment
// that the plugin adds.

// removePodRules removes the plugin's rules of one pod, or for "" of every pod of the network.
func removePodRules(ctx context.Context, network, pod string) error {
	var errs []error
	for _, family := range []string{"iptables", "ip6tables"} {
		if _, err := program.Find(family+"-save", strings.Split(program.ToolPath, ":")); errors.Is(err, program.ErrNone) {
			continue // then the plugin could not add rules either
		}
		saved, err := program.RunTool(ctx, family+"-save", "", "-t", "nat")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		script := undoScript(string(saved), network, pod)
		if script == "" {
			continue
		}
		_, err = program.RunTool(ctx, family+"-restore", script, "--noflush")
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("masquerading rules: %w", err)
	}
	return nil
}

// undoScript returns, for a listing of the nat table, the transaction that removes our rules and
// their chains.
func undoScript(saved, network, pod string) string {
	comment := fmt.Sprintf(`--comment "name: \"%s\" id: \"`, network)
	if pod != "" {
		comment += pod + `\""`
	}
	chains := map[string]bool{}
	var jumps, ends strings.Builder
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		rule, ok := strings.CutPrefix(line, "-A POSTROUTING ")
		if !ok || !strings.Contains(rule, comment) {
			continue
		}
		fmt.Fprintf(&jumps, "-D POSTROUTING %s\n", rule)
		_, chain, ok := strings.Cut(rule, "-j ")
		if ok && strings.HasPrefix(chain, "CNI-") && !chains[chain] {
			chains[chain] = true
			fmt.Fprintf(&ends, "-F %s\n-X %s\n", chain, chain)
		}
	}
	if jumps.Len() == 0 {
		return ""
	}
	return "*nat\n" + jumps.String() + ends.String() + "COMMIT\n"
}
