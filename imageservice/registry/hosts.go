package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"

	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/progress"
)

// Client opens the registries of references, and remembers for a while which of their hosts were
// dead or slow.
type Client struct {
	folder   string // in the style of containerd's certs.d (<host>/hosts.toml), read at every pull; "" = none
	stall    time.Duration
	troubled troubledHosts
}

// NewClient returns a client that is configured by a folder in the style of containerd's certs.d
// (<host>/hosts.toml), which is read at every open; "" for none. No answer is waited for longer
// than stall.
func NewClient(folder string, stall time.Duration) *Client {
	return &Client{folder: folder, stall: stall}
}

// Host is one server of a repository: a mirror or the registry itself.
type Host struct {
	docker.RegistryHost
	Own      bool          // it is the registry: the credentials of the pull are for it
	proxies  bool          // it has another name than the registry, and must be told which one is meant
	name     string        // what troubledHosts remembers it by: two entries may have one address
	dial     time.Duration // dial_timeout of its entry, 0 for none
	auth     *authorizer
	Failures atomic.Int32          // connections that failed within this pull
	others   strangers             // to whom it redirects
	lie      atomic.Pointer[error] // it sent something that was not asked for: left out for the rest of the pull
}

func (h *Host) origin() string { return origin(&url.URL{Scheme: h.Scheme, Host: h.Host}) }

// is tells whether u is on this very host. On loopback the scheme says nothing: the library tries
// https and falls back.
func (h *Host) is(u *url.URL) bool {
	return origin(u) == h.origin() || strings.EqualFold(u.Host, h.Host) && docker.IsLocalhost(h.Host)
}

// sameServer tells whether an entry's host is the registry that a reference names. Default ports
// make no difference.
func sameServer(scheme, host, domain string) bool {
	if domain == "docker.io" && host == "registry-1.docker.io" {
		return true
	}
	return strings.EqualFold(host, domain) || strings.EqualFold(withoutPort(scheme, host), withoutPort("https", domain))
}

// withoutPort removes the default port of a scheme.
func withoutPort(scheme, host string) string {
	switch strings.ToLower(scheme) {
	case "https":
		return strings.TrimSuffix(host, ":443")
	case "http":
		return strings.TrimSuffix(host, ":80")
	}
	return host
}

// listener is a logger for the library's configuration code, which logs errors that it goes on
// after, and the function that returns such an error.
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

// settingsName is the file beside hosts.toml for what hosts.toml has no keys for.
const settingsName = "cribox.toml"

// registrySettings is the content of that file.
type registrySettings struct {
	// TokenServers may see the credentials for this registry although they are on another domain:
	// "https://host" or "host".
	TokenServers []string `toml:"token_servers"`
	// RedirectToHTTP lets the registry redirect blobs from https to plain http. Their digests are
	// checked all the same.
	RedirectToHTTP bool `toml:"redirect_to_http"`

	file string // where it is, or would be
}

// hostsEntry is what we look at of an entry of hosts.toml; the library reads all of it.
type hostsEntry struct {
	CA          any            `toml:"ca"`
	Client      any            `toml:"client"`
	SkipVerify  *bool          `toml:"skip_verify"`
	Header      map[string]any `toml:"header"`
	DialTimeout string         `toml:"dial_timeout"`
}

// bare tells whether the entry says nothing about how to connect.
func (e hostsEntry) bare() bool {
	return e.CA == nil && e.Client == nil && e.SkipVerify == nil && len(e.Header) == 0 && e.DialTimeout == ""
}

// timeout is the entry's dial_timeout. The library has checked it.
func (e hostsEntry) timeout() time.Duration {
	d, _ := time.ParseDuration(e.DialTimeout)
	return d
}

type hostsFile struct {
	hostsEntry
	Host map[string]hostsEntry `toml:"host"`
}

// entry returns the [host] entry of an address.
func (f hostsFile) entry(host string) hostsEntry {
	for name, e := range f.Host {
		if !strings.HasPrefix(name, "http") {
			name = "https://" + name
		}
		if u, err := url.Parse(name); err == nil && u.Host == host {
			return e
		}
	}
	return hostsEntry{}
}

// readFolder reads hosts.toml and cribox.toml of a registry's folder. Both may be missing.
func (c *Client) readFolder(domain string) (hosts hostsFile, settings registrySettings, err error) {
	if c.folder == "" {
		settings.file = settingsName + " in the registry's folder below registry_config"
		return hosts, settings, nil
	}
	dir, err := config.HostDirFromRoot(c.folder)(domain)
	if err != nil {
		settings.file = filepath.Join(c.folder, domain, settingsName)
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return hosts, settings, err
	}
	settings.file = filepath.Join(dir, settingsName)
	b, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	if err == nil {
		err = toml.Unmarshal(b, &hosts)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hosts, settings, err
	}
	if b, err = os.ReadFile(settings.file); errors.Is(err, fs.ErrNotExist) {
		return hosts, settings, nil
	}
	if err == nil {
		err = toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&settings)
	}
	if err == nil {
		err = settings.check()
	}
	if err != nil {
		return hosts, settings, fmt.Errorf("%s: %w", settings.file, err)
	}
	return hosts, settings, nil
}

func (s registrySettings) check() error {
	for _, name := range s.TokenServers {
		if u := parseTokenServer(name); u == nil {
			return fmt.Errorf("token_servers: %q is neither https://HOST nor HOST", name)
		}
	}
	return nil
}

// parseTokenServer parses an entry of token_servers; nil when it is none.
func parseTokenServer(name string) *url.URL {
	if !strings.Contains(name, "://") {
		name = "https://" + name
	}
	u, err := url.Parse(name)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil
	}
	return u
}

// Open reads the configuration of t's registry. Nothing is contacted yet.
func (c *Client) Open(ctx context.Context, t imageref.Target, creds Credentials, prog *progress.Clock) (*Repository, error) {
	r := &Repository{repo: t, prog: prog, creds: creds, troubled: &c.troubled,
		stall: c.stall, idle: max(c.stall/3, time.Millisecond)}
	opts := config.HostOptions{
		UpdateClient: func(client *http.Client) error {
			if tr, ok := client.Transport.(*http.Transport); ok {
				tr.MaxResponseHeaderBytes = 256 << 10
				tr.ResponseHeaderTimeout = 0 // ours counts, which follows the stall time
				r.conns = append(r.conns, tr)
			}
			return nil
		},
	}
	if c.folder != "" {
		opts.HostDir = config.HostDirFromRoot(c.folder)
	}
	logger, complaint := listener()
	hosts, err := config.ConfigureHosts(log.WithLogger(ctx, logger), opts)(t.Domain)
	if err == nil {
		err = complaint() // a hosts.toml that does not parse is ignored by the library, and we do not want to ask other hosts than meant
	}
	var file hostsFile
	if err == nil {
		file, r.settings, err = c.readFolder(t.Domain)
	}
	if err != nil {
		return nil, fmt.Errorf("registry configuration of %s: %v: %w", t.Domain, err, errdefs.ErrFailedPrecondition)
	}
	r.addHosts(hosts, file)
	return r, nil
}

// addHosts takes over the hosts of the library, of which the last is the registry itself.
// Credentials go to the registry under its own name, and to what an administrator has named as its
// server.
func (r *Repository) addHosts(hosts []docker.RegistryHost, file hostsFile) {
	for i, rh := range hosts {
		last := i == len(hosts)-1
		same := sameServer(rh.Scheme, rh.Host, r.repo.Domain)
		h := &Host{RegistryHost: rh, Own: last || same, proxies: !same}
		h.dial = file.entry(rh.Host).timeout()
		if last {
			h.dial = file.timeout()
		}
		h.name = fmt.Sprintf("%s %d %s%s", r.repo.Domain, i, h.origin(), h.Path)
		r.hosts = append(r.hosts, h)
	}
	r.foldOwn(file.bare())
	for _, h := range r.hosts {
		own := Credentials{}
		if h.Own {
			own = r.creds
		}
		given := http.Header{}
		for k, v := range h.Header {
			given[http.CanonicalHeaderKey(k)] = v
		}
		h.Header = given
		h.auth = newAuthorizer(h.origin(), r.scope(), own, h.Client, h.Header, r.settings)
	}
}

// foldOwn makes an entry with the address of the registry itself the registry. Such an entry is
// there to say how to connect (ca, skip_verify, header); the last host, which the library adds, has
// the same address and knows nothing of it.
func (r *Repository) foldOwn(bare bool) {
	if len(r.hosts) < 2 {
		return
	}
	last := r.hosts[len(r.hosts)-1]
	for _, h := range r.hosts[:len(r.hosts)-1] {
		if !h.is(&url.URL{Scheme: last.Scheme, Host: last.Host}) || h.Path != last.Path {
			continue
		}
		h.Own = true
		if bare {
			h.Capabilities |= last.Capabilities
			r.hosts = r.hosts[:len(r.hosts)-1]
			return
		}
	}
}

// Close drops the idle connections of the pull.
func (r *Repository) Close() {
	for _, tr := range r.conns {
		tr.CloseIdleConnections()
	}
}

// trouble is why a host is asked after the others.
type trouble int

const (
	noTrouble trouble = iota
	slow              // it did not answer in the time that a host has while there are others
	dead              // no connection
)

// troubledHosts remembers for a while who was dead or slow, so that such a mirror costs its timeout
// once and not per blob.
type troubledHosts struct {
	mu    sync.Mutex
	known map[string]troubledHost // by host.name
}

type troubledHost struct {
	trouble
	until time.Time
}

func (d *troubledHosts) add(name string, what trouble) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = map[string]troubledHost{}
	}
	now := time.Now()
	for o, t := range d.known {
		if now.After(t.until) {
			delete(d.known, o)
		}
	}
	d.known[name] = troubledHost{what, now.Add(troubledFor)}
}

func (d *troubledHosts) of(name string) trouble {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.known[name]; time.Now().Before(t.until) {
		return t.trouble
	}
	return noTrouble
}
