package metrics

import "github.com/cribox/cribox/sandbox"

func byDevice(of func(*containerMetrics, int) *uint64) func(*containerMetrics, report) {
	return func(c *containerMetrics, r report) {
		for i := range c.Devices {
			r(of(c, i), c.Names[i])
		}
	}
}

// withQuota returns a function that omits the metric for containers without a CPU quota.
func withQuota(of func(*containerMetrics) *uint64) func(*containerMetrics) *uint64 {
	return func(c *containerMetrics) *uint64 {
		if c.spec.GetCpuQuota() <= 0 {
			return nil
		}
		return of(c)
	}
}

// positive returns nil for a value that is not set, so that the metric is omitted.
func positive(n int64) *uint64 {
	if n <= 0 {
		return nil
	}
	return new(uint64(n))
}

func limit(n int64) *uint64 { return new(uint64(max(n, 0))) }

func someWaited(p *sandbox.Pressure) *uint64 {
	if p == nil || p.Some == nil {
		return nil
	}
	return &p.Some.Total
}

func allWaited(p *sandbox.Pressure) *uint64 {
	if p == nil || p.Full == nil {
		return nil
	}
	return &p.Full.Total
}
