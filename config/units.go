package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written as 65536, 64Ki, 64Mi or 64Gi.
type Size int64

type sizeUnit struct {
	suffix string
	bytes  int64
}

var sizeUnits = []sizeUnit{{"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}, {"", 1}}

// UnmarshalText parses a size. Its errors contain the text.
func (s *Size) UnmarshalText(b []byte) error {
	unit := slices.IndexFunc(sizeUnits, func(u sizeUnit) bool { return strings.HasSuffix(string(b), u.suffix) })
	u := sizeUnits[unit] // the last unit, "", matches every text
	n, err := strconv.ParseUint(strings.TrimSuffix(string(b), u.suffix), 10, 63)
	if err != nil || int64(n) > math.MaxInt64/u.bytes {
		return fmt.Errorf("%q is not a size such as 64Mi", b)
	}
	*s = Size(int64(n) * u.bytes)
	return nil
}

// MarshalText writes the size in the largest unit that is exact.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 {
			return fmt.Appendf(nil, "%d%s", int64(s)/u.bytes, u.suffix), nil
		}
	}
	return []byte("0"), nil
}

// Duration is a length of time, written as 500ms, 30s, 2m or 1h30m.
type Duration time.Duration

// UnmarshalText parses a duration. Its errors contain the text.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 30s", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the duration without trailing zeros: 2m, not 2m0s.
func (d Duration) MarshalText() ([]byte, error) {
	text := time.Duration(d).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = strings.TrimSuffix(text, zero[1:])
		}
	}
	return []byte(text), nil
}
