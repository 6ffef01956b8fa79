package imageservice

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// host is one server of a repository: a mirror or the registry itself.
type host struct {
	docker.RegistryHost
	auth     *authorizer
	failures atomic.Int32 // transport errors within this pull
}

func (h *host) origin() string { return strings.ToLower(h.Scheme + "://" + h.Host) }

// is tells whether u is on this very host. On loopback the scheme says nothing: the library tries https and falls back.
func (h *host) is(u *url.URL) bool {
	return origin(u) == h.origin() || strings.EqualFold(u.Host, h.Host) && docker.IsLocalhost(h.Host)
}

// listener is a logger for the library's configuration code, which logs errors that it goes on after, and the function that returns
// such an error.
func listener() (*log.Entry, func() error) {
	l := logrus.New()
	l.SetOutput(io.Discard)
	h := &errorHook{}
	l.AddHook(h)
	return logrus.NewEntry(l), func() error { return h.err }
}

type errorHook struct{ err error }

func (h *errorHook) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

func (h *errorHook) Fire(e *logrus.Entry) error {
	err, _ := e.Data[logrus.ErrorKey].(error)
	h.err = fmt.Errorf("%s: %v", e.Message, err)
	return nil
}

// openRegistry reads the configuration of t's registry. Nothing is contacted yet.
func (c *Images) openRegistry(ctx context.Context, t target, creds credentials, prog *progress) (*registry, error) {
	r := &registry{target: t, prog: prog, idle: max(c.cfg.StallTimeout/3, time.Millisecond), dead: &c.dead}
	opts := config.HostOptions{
		UpdateClient: func(client *http.Client) error {
			if tr, ok := client.Transport.(*http.Transport); ok {
				tr.MaxResponseHeaderBytes = 256 << 10
				r.conns = append(r.conns, tr)
			}
			return nil
		},
	}
	if c.cfg.RegistryConfig != "" {
		opts.HostDir = config.HostDirFromRoot(c.cfg.RegistryConfig)
	}
	logger, complaint := listener()
	hosts, err := config.ConfigureHosts(log.WithLogger(ctx, logger), opts)(t.domain)
	if err == nil {
		err = complaint() // a hosts.toml that does not parse is ignored by the library, and we do not want to ask other hosts than meant
	}
	if err != nil {
		return nil, fmt.Errorf("registry configuration of %s: %v: %w", t.domain, err, errdefs.ErrFailedPrecondition)
	}
	for _, rh := range hosts {
		h := &host{RegistryHost: rh}
		own := credentials{}
		if rh.Host == t.domain || t.domain == "docker.io" && rh.Host == "registry-1.docker.io" {
			own = creds
		}
		h.auth = newAuthorizer(h.origin(), "repository:"+t.path+":pull", own, rh.Client)
		r.hosts = append(r.hosts, h)
	}
	return r, nil
}

// close drops the idle connections of the pull.
func (r *registry) close() {
	for _, tr := range r.conns {
		tr.CloseIdleConnections()
	}
}

// deadHosts remembers for a while who could not be reached, so that a dead mirror costs its timeout once and not per blob.
type deadHosts struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (d *deadHosts) add(origin string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.until == nil {
		d.until = map[string]time.Time{}
	}
	now := time.Now()
	for o, t := range d.until {
		if now.After(t) {
			delete(d.until, o)
		}
	}
	d.until[origin] = now.Add(deadFor)
}

func (d *deadHosts) is(origin string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.until[origin])
}
