package registry

import (
	"testing"
	"time"
)

// TestDelay checks how long bytes take at a limit, with a clock of its own.
func TestDelay(t *testing.T) {
	now := time.Unix(1000, 0)
	h := &throttle{rate: 1000, now: func() time.Time { return now }}
	for i, row := range []struct {
		later time.Duration
		bytes int
		want  time.Duration
	}{
		{0, 500, 500 * time.Millisecond},
		{0, 500, time.Second},                                   // beside the first
		{time.Second, 100, 100 * time.Millisecond},              // both have had their time
		{time.Hour, 1000, time.Second},                          // a quiet hour allows no burst
		{900 * time.Millisecond, 1000, 1100 * time.Millisecond}, // a bit early
		{0, 0, 1100 * time.Millisecond},
	} {
		now = now.Add(row.later)
		if got := h.delay(row.bytes); got != row.want {
			t.Errorf("row %d: %s, want %s", i, got, row.want)
		}
	}
}

// TestThrottlesAreShared checks that a host has one throttle while it is in use, whoever uses it, and
// that nothing is kept of a host that nobody uses.
func TestThrottlesAreShared(t *testing.T) {
	var all throttles
	l := hostLimits{Downloads: 2}
	a, backA := all.of("https://a", l)
	again, backAgain := all.of("https://a", l)
	changed, backChanged := all.of("https://a", hostLimits{Downloads: 3})
	b, backB := all.of("https://b", l)
	none, backNone := all.of("https://c", hostLimits{})
	if a != again || a == changed || a == b || none != nil {
		t.Error("throttles are shared wrongly")
	}
	backA()
	if still, back := all.of("https://a", l); still != a {
		t.Error("a host in use has a second throttle")
	} else {
		back()
	}
	for _, back := range []func(){backAgain, backChanged, backB, backNone} {
		back()
	}
	if len(all.known) > 0 {
		t.Errorf("%d hosts are remembered", len(all.known))
	}
}
