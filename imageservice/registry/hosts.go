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
	"path"
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
	"github.com/cribox/cribox/imageservice/keyring"
	"github.com/cribox/cribox/imageservice/progress"
)

// Client opens the repositories of references, and remembers for a while which hosts were
// unreachable or slow.
type Client struct {
	folders  []string // like containerd's certs.d (<host>/hosts.toml), read at every pull
	stall    time.Duration
	node     *keyring.Keyring // the node's own credentials; nil for none
	troubled troubledHosts
	warned   warnings
	limits   throttles
}

// NewClient returns a client that reads its configuration from folders like containerd's certs.d
// (<host>/hosts.toml), each time a repository is opened. The first folder that has one for the
// registry is used. It waits at most stall for a response.
func NewClient(folders []string, stall time.Duration, node *keyring.Keyring) *Client {
	return &Client{folders: folders, stall: stall, node: node}
}

// folderOf returns the folder of a registry, ErrNotFound if there is none.
func (c *Client) folderOf(domain string) (string, error) {
	for _, root := range c.folders {
		if dir, err := config.HostDirFromRoot(root)(domain); err == nil || !errdefs.IsNotFound(err) {
			return dir, err
		}
	}
	return "", errdefs.ErrNotFound
}

// Host is one server of a repository: a mirror or the registry itself.
type Host struct {
	docker.RegistryHost
	local    bool          // it is an archive in this process
	Own      bool          // it is the registry, and receives the credentials of the pull
	proxies  bool          // its name is not that of the registry, so requests must name the registry
	name     string        // key in troubledHosts; two entries may have the same address
	dial     time.Duration // dial_timeout of its entry, 0 for none
	auth     *authorizer
	throttle *throttle             // nil for none
	Failures atomic.Int32          // failed connections during this pull
	others   strangers             // the servers to which it redirects
	lie      atomic.Pointer[error] // set after it sent wrong content; it is not asked again during the pull
}

// source returns what telemetry.PulledBytes calls the host.
func (h *Host) source() string {
	switch {
	case h.local:
		return "archive"
	case h.Own:
		return "registry"
	}
	return "mirror"
}

func (h *Host) origin() string { return origin(&url.URL{Scheme: h.Scheme, Host: h.Host}) }

// is reports whether u is on this host. On loopback the scheme is ignored, because the library
// tries https and falls back to http.
func (h *Host) is(u *url.URL) bool {
	return origin(u) == h.origin() || strings.EqualFold(u.Host, h.Host) && docker.IsLocalhost(h.Host)
}

// sameServer reports whether the host of an entry is the registry of a reference. Default ports are
// ignored.
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

// listener returns a logger for the library's configuration code, and a function that returns the
// last error logged there: the library logs some errors and continues.
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

// settingsName is the file beside hosts.toml for settings that hosts.toml does not have.
const settingsName = "cribox.toml"

// registrySettings is the content of that file.
type registrySettings struct {
	// TokenServers may receive the credentials for this registry although they are on another
	// domain: "https://host" or "host".
	TokenServers []string `toml:"token_servers"`
	// RedirectToHTTP lets the registry redirect blobs from https to plain http. Their digests are
	// checked anyway.
	RedirectToHTTP bool `toml:"redirect_to_http"`
	// Limits of the registry itself, and of mirrors by their address (scheme://host).
	hostLimits
	Host map[string]hostLimits `toml:"host"`

	file string // its path, whether or not it exists
}

// hostsEntry has the keys of an entry of hosts.toml. The library reads them, and ignores all others;
// this package needs the values of some, and the names of all.
type hostsEntry struct {
	Capabilities any            `toml:"capabilities"`
	OverridePath any            `toml:"override_path"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// bare reports whether the entry does not configure how to connect.
func (e hostsEntry) bare() bool {
	return e.CA == nil && e.Client == nil && e.SkipVerify == nil && len(e.Header) == 0 && e.DialTimeout == ""
}

// timeout returns the entry's dial_timeout. The library has checked it.
func (e hostsEntry) timeout() time.Duration {
	d, _ := time.ParseDuration(e.DialTimeout)
	return d
}

type hostsFile struct {
	hostsEntry
	Server any                   `toml:"server"`
	Host   map[string]hostsEntry `toml:"host"`

	unknown []string // keys that nobody reads
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

// parseHosts decodes a hosts.toml.
func parseHosts(b []byte) (hosts hostsFile, err error) {
	err = toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&hosts)
	var unknown *toml.StrictMissingError
	if !errors.As(err, &unknown) {
		return hosts, err
	}
	for _, e := range unknown.Errors {
		row, _ := e.Position()
		hosts.unknown = append(hosts.unknown, fmt.Sprintf("%q (line %d)", strings.Join(e.Key(), "."), row))
	}
	return hosts, nil
}

// readFolder reads hosts.toml and cribox.toml from the folder of a registry. Both may be missing.
func (c *Client) readFolder(domain string) (hosts hostsFile, settings registrySettings, err error) {
	if len(c.folders) == 0 {
		settings.file = settingsName + " in the registry's folder below registry_config"
		return hosts, settings, nil
	}
	dir, err := c.folderOf(domain)
	if err != nil {
		settings.file = filepath.Join(c.folders[0], domain, settingsName)
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return hosts, settings, err
	}
	settings.file = filepath.Join(dir, settingsName)
	b, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
	if err == nil {
		hosts, err = parseHosts(b)
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
	if err := s.hostLimits.check(); err != nil {
		return err
	}
	return checkHosts(s.Host)
}

// parseTokenServer parses an entry of token_servers; it returns nil if the entry is invalid.
func parseTokenServer(name string) *url.URL {
	if !strings.Contains(name, "://") {
		name = "https://" + name
	}
	u, err := url.Parse(name)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil
	}
	return u
}

// Open reads the configuration for t's registry. It does not connect yet.
func (c *Client) Open(
	ctx context.Context, t imageref.Target, creds Credentials, prog *progress.Clock,
) (*Repository, error) {
	r := &Repository{repo: t, prog: prog, creds: creds, node: c.node, troubled: &c.troubled,
		stall: c.stall, idle: max(c.stall/3, time.Millisecond)}
	opts := config.HostOptions{
		UpdateClient: func(client *http.Client) error {
			if tr, ok := client.Transport.(*http.Transport); ok {
				tr.MaxResponseHeaderBytes = 256 << 10
				tr.ResponseHeaderTimeout = 0 // our own limit applies, which depends on the stall time
				r.conns = append(r.conns, tr)
			}
			return nil
		},
	}
	if len(c.folders) > 0 {
		opts.HostDir = c.folderOf
	}
	logger, complaint := listener()
	hosts, err := config.ConfigureHosts(log.WithLogger(ctx, logger), opts)(t.Domain)
	if err == nil {
		err = complaint() // the library ignores an invalid hosts.toml; that could send requests to the wrong hosts
	}
	var file hostsFile
	if err == nil {
		file, r.settings, err = c.readFolder(t.Domain)
	}
	if err != nil {
		return nil, fmt.Errorf("registry configuration of %s: %v: %w", t.Domain, err, errdefs.ErrFailedPrecondition)
	}
	if len(file.unknown) > 0 && c.warned.first(t.Domain+fmt.Sprint(file.unknown)) {
		log.G(ctx).Warnf("the hosts.toml of %s has keys that have no effect: %s", t.Domain, strings.Join(file.unknown, ", "))
	}
	r.addHosts(hosts, file)
	for i, h := range r.hosts {
		throttle, giveBack := c.limits.of(h.origin(), r.settings.limitsOf(h, i == len(r.hosts)-1))
		h.throttle, r.giveBack = throttle, append(r.giveBack, giveBack)
	}
	return r, nil
}

// addHosts takes the hosts from the library; the last one is the registry itself. Credentials are
// sent to the registry under its own name, and to the host that the administrator has configured as
// its server.
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
		own, find := Credentials{}, r.lookupFor(h)
		if h.Own {
			own = r.creds
		}
		if own != (Credentials{}) {
			find = nil
		}
		given := http.Header{}
		for k, v := range h.Header {
			given[http.CanonicalHeaderKey(k)] = v
		}
		h.Header = given
		h.auth = newAuthorizer(h.origin(), r.scope(), own, h.Client, h.Header, r.settings)
		h.auth.lookup = find
	}
}

// lookupFor returns how to ask the node for credentials for a host: those for the registry if it is
// the registry, whatever its address, else those for the host alone.
func (r *Repository) lookupFor(h *Host) lookup {
	if r.node == nil {
		return nil
	}
	name, repository := r.repo.Domain, r.repo.Path
	if !h.Own {
		name = withoutPort(h.Scheme, h.Host)
		below := strings.Trim(strings.TrimSuffix("/"+strings.Trim(h.Path, "/"), "/v2"), "/")
		repository = path.Join(strings.TrimPrefix(below, "v2/"), repository)
	}
	return func(ctx context.Context) (Credentials, string, error) {
		e, err := r.node.Find(ctx, name, repository)
		if e == nil || err != nil {
			return Credentials{}, "", err
		}
		creds, err := NewCredentials(&Auth{Username: e.Username, Password: e.Password, Auth: e.Auth,
			IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}, r.repo)
		if err != nil {
			return Credentials{}, "", fmt.Errorf("%s: %w", e.From, err)
		}
		return creds, e.From, nil
	}
}

// foldOwn merges an entry that has the registry's own address with the registry. Such an entry
// configures how to connect (ca, skip_verify, header), but the last host, which the library adds
// with the same address, does not have this configuration.
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

// Close closes the idle connections of the pull, and gives back what it shares with others.
func (r *Repository) Close() {
	for _, giveBack := range r.giveBack {
		giveBack()
	}
	r.giveBack = nil
	for _, tr := range r.conns {
		tr.CloseIdleConnections()
	}
}

// trouble is the reason to ask a host after all others.
type trouble int

const (
	noTrouble trouble = iota
	slow              // it did not respond in the time for hosts that have alternatives
	dead              // no connection
)

// troubledHosts remembers for a while which hosts were unreachable or slow, so that such a mirror
// costs its timeout once, and not for every blob.
type troubledHosts struct {
	mu    sync.Mutex
	known map[string]troubledHost // by Host.name
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

// warnings remembers what was logged, so that not every pull logs it again.
type warnings struct {
	mu    sync.Mutex
	given map[string]bool
}

// first reports whether a text was not logged before. It forgets all when there are many: the
// domain of a text comes from a reference.
func (w *warnings) first(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.given[text] {
		return false
	}
	if len(w.given) >= 100 || w.given == nil {
		w.given = map[string]bool{}
	}
	w.given[text] = true
	return true
}
