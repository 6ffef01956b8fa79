package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Scope says whose belongings are counted. Everything that carries one of the marks is theirs.
type Scope struct {
	Root  string // the daemon's root folder
	State string // the daemon's state folder; its hash marks netns, links and rules
	// Marks are further strings that only this daemon's things carry: pod and container ids, a
	// cgroup parent, a log folder.
	Marks []string
	// Daemon is the pid of `cribox serve`, 0 when it is not running.
	Daemon int
}

// Instance is the mark that a daemon puts on everything outside its own folders.
func Instance(state string) string {
	sum := sha256.Sum256([]byte(state))
	return hex.EncodeToString(sum[:])[:6]
}

// Ledger holds, by kind of thing, one line for each thing found.
type Ledger map[string][]string

// The kinds of things that are counted.
const (
	Mounts    = "mounts"
	Netns     = "netns"
	Links     = "links"
	Leases    = "leases"
	Rules     = "nat rules"
	Cgroups   = "cgroups"
	Units     = "systemd units"
	Processes = "processes"
	Fds       = "fds"
	Files     = "files"
)

// Take counts now. A thing that cannot be read because it went away meanwhile is not there.
func Take(s Scope) (Ledger, error) {
	l := Ledger{}
	for _, count := range []struct {
		kind string
		by   func(Scope) ([]string, error)
	}{
		{Mounts, mounts}, {Netns, netns}, {Links, links}, {Leases, leases}, {Rules, rules},
		{Cgroups, cgroups}, {Units, units}, {Processes, processes}, {Fds, fds}, {Files, files},
	} {
		lines, err := count.by(s)
		if err != nil {
			return nil, fmt.Errorf("count %s: %w", count.kind, err)
		}
		slices.Sort(lines)
		l[count.kind] = lines
	}
	return l, nil
}

// Without returns the ledger without some kinds.
func (l Ledger) Without(kinds ...string) Ledger {
	out := maps.Clone(l)
	for _, k := range kinds {
		delete(out, k)
	}
	return out
}

// Diff tells, a line per thing, what came ("+") and what went ("-") from before to after. Nothing changed: "".
func Diff(before, after Ledger) string {
	var out strings.Builder
	kinds := slices.Sorted(maps.Keys(before))
	for k := range after {
		if _, known := before[k]; !known {
			kinds = append(kinds, k)
		}
	}
	for _, kind := range kinds {
		went, came := difference(before[kind], after[kind]), difference(after[kind], before[kind])
		if len(went)+len(came) == 0 {
			continue
		}
		fmt.Fprintf(&out, "%s: %d before, %d after\n", kind, len(before[kind]), len(after[kind]))
		list(&out, "-", went)
		list(&out, "+", came)
	}
	return out.String()
}

// mostLines keeps a difference readable when a whole image came or went.
const mostLines = 20

func list(out *strings.Builder, sign string, lines []string) {
	for i, line := range lines {
		if i == mostLines {
			fmt.Fprintf(out, "  %s and %d more\n", sign, len(lines)-mostLines)
			return
		}
		fmt.Fprintf(out, "  %s %s\n", sign, line)
	}
}

// difference returns the lines of a that b lacks, counting repeated lines.
func difference(a, b []string) []string {
	left := map[string]int{}
	for _, line := range b {
		left[line]++
	}
	var out []string
	for _, line := range a {
		if left[line] > 0 {
			left[line]--
			continue
		}
		out = append(out, line)
	}
	return out
}

// owns reports whether a text carries one of the scope's marks.
func (s Scope) owns(text string) bool {
	for _, mark := range s.marks() {
		if strings.Contains(text, mark) {
			return true
		}
	}
	return false
}

func (s Scope) marks() []string {
	out := []string{s.Root, s.State, Instance(s.State)}
	for _, m := range s.Marks {
		if m != "" {
			out = append(out, m)
		}
	}
	return out
}
