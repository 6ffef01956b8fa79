package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// hostLimits are what all pulls together may do to one host.
type hostLimits struct {
	Downloads      int64 `toml:"downloads"`        // blobs at once; 0: no limit
	BytesPerSecond int64 `toml:"bytes_per_second"` // 0: no limit
}

// leastRate is the smallest limit of bytes per second. A smaller one is probably a wrong unit.
const leastRate = 1 << 10

func (l hostLimits) check() error {
	if l.Downloads < 0 {
		return fmt.Errorf("downloads: %d is negative", l.Downloads)
	}
	if l.BytesPerSecond != 0 && l.BytesPerSecond < leastRate {
		return fmt.Errorf("bytes_per_second: %d is less than %d", l.BytesPerSecond, leastRate)
	}
	return nil
}

// limitsOf returns the limits of a host. own is that of the top of the file.
func (s registrySettings) limitsOf(h *Host, own bool) hostLimits {
	for name, l := range s.Host {
		if u := parseTokenServer(name); u != nil && h.is(&url.URL{Scheme: u.Scheme, Host: u.Host}) {
			return l
		}
	}
	if own {
		return s.hostLimits
	}
	return hostLimits{}
}

// throttle keeps one host's limits. All pulls that use the host share it.
type throttle struct {
	slots *semaphore.Weighted // nil: no limit
	rate  int64               // bytes per second; 0: no limit
	now   func() time.Time

	mu   sync.Mutex
	next time.Time // when the bytes so far have had their time
}

// delay notes that n bytes were received, and returns how long to wait before the next ones.
func (t *throttle) delay(n int) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.next.Before(now) {
		t.next = now
	}
	t.next = t.next.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	return t.next.Sub(now)
}

// throttles are those of the hosts in use. A host whose limits were changed has a second one until
// the pulls with the old limits have ended.
type throttles struct {
	mu    sync.Mutex
	known map[throttleKey]*sharedThrottle
}

type throttleKey struct {
	origin string
	hostLimits
}

type sharedThrottle struct {
	throttle
	users int
}

// of returns the throttle of a host, and a function that gives it back. It returns nil if there is
// no limit.
func (all *throttles) of(origin string, l hostLimits) (*throttle, func()) {
	if l == (hostLimits{}) {
		return nil, func() {}
	}
	key := throttleKey{origin, l}
	all.mu.Lock()
	defer all.mu.Unlock()
	t := all.known[key]
	if t == nil {
		t = &sharedThrottle{throttle: throttle{rate: l.BytesPerSecond, now: time.Now}}
		if l.Downloads > 0 {
			t.slots = semaphore.NewWeighted(l.Downloads)
		}
		if all.known == nil {
			all.known = map[throttleKey]*sharedThrottle{}
		}
		all.known[key] = t
	}
	t.users++
	return &t.throttle, func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(all.known, key)
		}
	}
}

// enter waits until the host may be asked for q, and returns a function that ends the download.
func (r *Repository) enter(ctx context.Context, h *Host, q Request) (leave func(), err error) {
	if h.throttle == nil || h.throttle.slots == nil || q.Kind != "blobs" || q.Method != http.MethodGet {
		return func() {}, nil
	}
	err = r.prog.Waiting(func() error { return h.throttle.slots.Acquire(ctx, 1) })
	if err != nil {
		return nil, context.Cause(ctx)
	}
	return sync.OnceFunc(func() { h.throttle.slots.Release(1) }), nil
}

// leaving is a body whose end is the end of a download.
type leaving struct {
	io.ReadCloser
	leave func()
}

func (l leaving) Close() error {
	defer l.leave()
	return l.ReadCloser.Close()
}

// slow waits as long as n bytes take at the host's limit. That is no pause of the server, and no
// stall of the pull.
func (r *Repository) slow(ctx context.Context, h *Host, n int) {
	if h.throttle == nil || h.throttle.rate == 0 || n == 0 {
		return
	}
	if d := h.throttle.delay(n); d > 0 {
		_ = r.prog.Waiting(func() error { return Sleep(ctx, d) }) // the next read has the error
	}
}

// share returns the part of a buffer to fill at once, so that no wait is longer than about a second.
func (h *Host) share(p []byte) []byte {
	if h.throttle == nil || h.throttle.rate == 0 {
		return p
	}
	return p[:min(int64(len(p)), h.throttle.rate)]
}

// checkHosts checks the tables of hosts in cribox.toml.
func checkHosts(hosts map[string]hostLimits) error {
	for name, l := range hosts {
		if u := parseTokenServer(name); u == nil || !strings.Contains(name, "://") {
			return fmt.Errorf("[host.%q] is not http://HOST or https://HOST", name)
		}
		if err := l.check(); err != nil {
			return fmt.Errorf("[host.%q] %w", name, err)
		}
	}
	return nil
}
