package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// rlimitNames are the limits that an OCI runtime can set, by their names in prlimit(1).
var rlimitNames = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
	"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

// parseUlimits parses limits of the form NAME=SOFT:HARD or NAME=BOTH, and returns them by name. A
// name may occur once.
func parseUlimits(list []string) (map[string]specs.POSIXRlimit, error) {
	limits := map[string]specs.POSIXRlimit{}
	for _, text := range list {
		name, values, _ := strings.Cut(text, "=")
		if !slices.Contains(rlimitNames, name) {
			return nil, fmt.Errorf("%q does not set one of %s", text, strings.Join(rlimitNames, ", "))
		}
		if _, twice := limits[name]; twice {
			return nil, fmt.Errorf("%s is set twice", name)
		}
		first, second, two := strings.Cut(values, ":")
		if !two {
			second = first
		}
		soft, err := parseLimit(first)
		hard, err2 := parseLimit(second)
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		if soft > hard {
			return nil, fmt.Errorf("%q: the soft limit is above the hard limit", text)
		}
		limits[name] = specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: soft, Hard: hard}
	}
	return limits, nil
}

func parseLimit(s string) (uint64, error) {
	if s == "unlimited" {
		return math.MaxUint64, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a number nor unlimited", s)
	}
	return n, nil
}

// Rlimits returns the limits of a handler, sorted by name: those of [containers], overridden by the
// handler's own. Both lists must have passed the checks.
func (c *Config) Rlimits(r Runtime) []specs.POSIXRlimit {
	all, _ := parseUlimits(c.Containers.Ulimits)
	own, _ := parseUlimits(r.Ulimits)
	maps.Copy(all, own)
	var limits []specs.POSIXRlimit
	for _, name := range slices.Sorted(maps.Keys(all)) {
		limits = append(limits, all[name])
	}
	return limits
}
