package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// size is a number of bytes, written as 65536, 64Ki, 64Mi or 64Gi.
type size int64

type sizeUnit struct {
	suffix string
	bytes  int64
}

var sizeUnits = []sizeUnit{{"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}, {"", 1}}

// UnmarshalText reads a size. An error names what was written.
func (s *size) UnmarshalText(b []byte) error {
	unit := slices.IndexFunc(sizeUnits, func(u sizeUnit) bool { return strings.HasSuffix(string(b), u.suffix) })
	u := sizeUnits[unit] // the last one fits all
	n, err := strconv.ParseUint(strings.TrimSuffix(string(b), u.suffix), 10, 63)
	if err != nil || int64(n) > math.MaxInt64/u.bytes {
		return fmt.Errorf("%q is no size such as 64Mi", b)
	}
	*s = size(int64(n) * u.bytes)
	return nil
}

// MarshalText writes the shortest form that is exact.
func (s size) MarshalText() ([]byte, error) {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 {
			return fmt.Appendf(nil, "%d%s", int64(s)/u.bytes, u.suffix), nil
		}
	}
	return []byte("0"), nil
}

// duration is a time, written as 500ms, 30s, 2m or 1h30m.
type duration time.Duration

// UnmarshalText reads a duration. An error names what was written.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no time such as 30s", b)
	}
	*d = duration(v)
	return nil
}

// MarshalText writes the shortest form: 2m, not 2m0s.
func (d duration) MarshalText() ([]byte, error) {
	text := time.Duration(d).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = strings.TrimSuffix(text, zero[1:])
		}
	}
	return []byte(text), nil
}

// rlimitNames are the limits that an OCI runtime sets, by the names of prlimit(1).
var rlimitNames = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
	"sigpending", "stack"}

// parseUlimits returns the limits of a list NAME=SOFT:HARD, NAME=BOTH, by name. Only one of a name.
func parseUlimits(list []string) (map[string]specs.POSIXRlimit, error) {
	limits := map[string]specs.POSIXRlimit{}
	for _, text := range list {
		name, values, _ := strings.Cut(text, "=")
		if !slices.Contains(rlimitNames, name) {
			return nil, fmt.Errorf("%q names none of %s", text, strings.Join(rlimitNames, ", "))
		}
		if _, twice := limits[name]; twice {
			return nil, fmt.Errorf("%s occurs twice", name)
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
			return nil, fmt.Errorf("%q: the soft limit is above the hard one", text)
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

// ulimits returns the limits for one handler, by name: its own over those of all. Both lists were checked.
func (c *Config) ulimits(r Runtime) []specs.POSIXRlimit {
	all, _ := parseUlimits(c.Containers.Ulimits)
	own, _ := parseUlimits(r.Ulimits)
	maps.Copy(all, own)
	var limits []specs.POSIXRlimit
	for _, name := range slices.Sorted(maps.Keys(all)) {
		limits = append(limits, all[name])
	}
	return limits
}
