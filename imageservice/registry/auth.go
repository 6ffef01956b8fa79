package registry

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"golang.org/x/net/publicsuffix"
	"golang.org/x/sync/semaphore"

	"github.com/cribox/cribox/imageservice/fault"
	"github.com/cribox/cribox/imageservice/imageref"
)

// Auth is the credentials of one pull, as in runtime.v1.AuthConfig. The RegistryToken is sent to
// the registry unchanged (Bearer). The IdentityToken is exchanged at the token server. Username and
// Password, or Auth (base64 of "user:password") in their place, are used for basic authentication
// and the token server. If several are set, the first of these is used: username with password,
// identity token, auth, registry token, username alone. If ServerAddress is set and is not the
// registry of the reference, the credentials are not used, and the error of a refused pull says so.
type Auth struct {
	Username, Password string
	Auth               string
	ServerAddress      string
	IdentityToken      string
	RegistryToken      string
}

// Credentials is a checked Auth.
type Credentials struct {
	username, secret string // without a username, secret is an identity token
	registryToken    string
	withheld         string // the server they are for, if that is not the reference's
}

// Describe says, for an error, what kind of credentials the request had, without any of their
// content. It helps someone who forgot a pull secret.
func (c Credentials) Describe() string {
	switch {
	case c.withheld != "":
		return "the credentials of the request are for " + c.withheld + " and were not sent"
	case c.registryToken != "":
		return "the request had a registry token"
	case c.username != "":
		return "the request had a user name and password"
	case c.secret != "":
		return "the request had an identity token"
	}
	return "the request had no credentials"
}

// secrets returns what must never appear in an error, in every form that is sent to a server.
func (c Credentials) secrets() []string {
	pair := c.username + ":" + c.secret
	return []string{pair, base64.StdEncoding.EncodeToString([]byte(pair)), c.secret, c.registryToken}
}

// Key returns a hash that differs for different credentials.
func (c Credentials) Key() string {
	b, _ := json.Marshal([]string{c.username, c.secret, c.registryToken, c.withheld})
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// NewCredentials checks a and returns what may be sent to the registry of t: nothing if a is for
// another server. Errors are ErrInvalidArgument; they name the field and never contain its value.
func NewCredentials(a *Auth, t imageref.Target) (Credentials, error) {
	if a == nil {
		return Credentials{}, nil
	}
	encoded := strings.Join(strings.Fields(a.Auth), "") // base64(1) breaks lines
	fields := map[string]string{"username": a.Username, "password": a.Password, "auth": encoded,
		"server_address": a.ServerAddress,
		"identity_token": a.IdentityToken, "registry_token": a.RegistryToken}
	for name, v := range fields {
		if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return Credentials{}, fmt.Errorf("credentials: control character in %s: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	var c Credentials
	switch {
	case a.Username != "" && a.Password != "":
		c.username, c.secret = a.Username, a.Password
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case encoded != "":
		b, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return Credentials{}, fmt.Errorf("credentials: auth is not base64: %w", errdefs.ErrInvalidArgument)
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
		if !ok || strings.ContainsAny(string(b), "\r\n") {
			return Credentials{}, fmt.Errorf("credentials: auth is not user:password: %w", errdefs.ErrInvalidArgument)
		}
		c.username, c.secret = user, password
	case a.RegistryToken != "":
		c.registryToken = a.RegistryToken
	default:
		c.username = a.Username
	}
	if a.ServerAddress != "" && !sameServer(schemeOf(a.ServerAddress), serverOf(a.ServerAddress), t.Domain) {
		return Credentials{withheld: namedServer(a.ServerAddress)}, nil
	}
	return c, nil
}

// namedServer returns the server of a server_address for a message. If the address may contain a
// user name and password with a slash in them, it returns "another server".
func namedServer(address string) string {
	_, rest, ok := strings.Cut(address, "://")
	if !ok {
		rest = address
	}
	if _, behind, _ := strings.Cut(rest, "/"); strings.Contains(behind, "@") {
		return "another server"
	}
	return strconv.Quote(fault.Clip(serverOf(address)))
}

// schemeOf returns the scheme of a server_address, https if it has none.
func schemeOf(address string) string {
	if scheme, _, ok := strings.Cut(address, "://"); ok {
		return scheme
	}
	return "https"
}

// serverOf returns the domain of a reference for the server_address of a docker config
// ("https://index.docker.io/v1/").
func serverOf(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	address, _, _ = strings.Cut(address, "/")
	if i := strings.LastIndex(address, "@"); i >= 0 {
		address = address[i+1:]
	}
	switch address {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return address
}

// authorizer answers the authentication challenges of one registry host during one pull.
type authorizer struct {
	server   string // origin that may receive the credentials: scheme://host
	scope    string
	settings registrySettings
	given    http.Header  // headers from hosts.toml, which may include an Authorization
	client   *http.Client // for the token server; has the TLS configuration of the host

	turn *semaphore.Weighted // one challenge at a time, so that parallel downloads request one token

	// lookup asks the node for credentials, at the first challenge; nil if the pull has its own. It
	// belongs to the holder of turn.
	lookup lookup

	mu       sync.Mutex
	creds    Credentials
	node     string // where the node's credentials are from, or why there are none
	header   string
	withheld string // the token server that did not receive the credentials
}

// lookup returns credentials and where they are from, "" if there are none.
type lookup func(context.Context) (creds Credentials, from string, err error)

func newAuthorizer(
	server, scope string, creds Credentials, client *http.Client, given http.Header, settings registrySettings,
) *authorizer {
	a := &authorizer{server: server, scope: scope, creds: creds, settings: settings, given: given,
		turn: semaphore.NewWeighted(1)}
	c := *client
	c.Transport = cappedReplies{client.Transport}
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		was := via[0].URL
		upgrade := req.URL.Scheme == "https" && strings.EqualFold(req.URL.Hostname(), was.Hostname())
		if len(via) > 5 || origin(req.URL) != origin(was) && !upgrade {
			return errors.New("the token server redirects to another host")
		}
		return nil
	}
	a.client = &c
	if creds.registryToken != "" {
		a.header = "Bearer " + creds.registryToken
	}
	return a
}

// secrets returns all secrets sent to, or received from, the host and its token server.
func (a *authorizer) secrets() []string {
	_, token, _ := strings.Cut(a.current(), " ")
	return append(a.credentials().secrets(), token)
}

// credentials returns what the host may receive, as far as it is known.
func (a *authorizer) credentials() Credentials {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.creds
}

// hint explains, for an error, that a token server did not receive the credentials, and what the
// node had for the host; "" if there is nothing to explain.
func (a *authorizer) hint() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.withheld == "" {
		return a.node
	}
	return fmt.Sprintf("token server %s is on another domain than the registry and was not sent the credentials; "+
		"if it belongs to the registry, "+
		"add it to token_servers in %s", a.withheld, a.settings.file)
}

// current returns the value of the Authorization header to send, "" for none.
func (a *authorizer) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.header
}

// prepare asks the node for credentials for the host, once. An error there is not the end of the
// pull, because the host may be content without: hint has it.
func (a *authorizer) prepare(ctx context.Context) error {
	if err := a.turn.Acquire(ctx, 1); err != nil {
		return err
	}
	defer a.turn.Release(1)
	if a.lookup == nil {
		return nil
	}
	creds, from, err := a.lookup(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	a.lookup = nil
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err != nil:
		a.node = "the node's credentials could not be used: " + err.Error()
	case from != "":
		a.creds, a.node = creds, "the node's credentials of "+from+" were used"
	}
	return nil
}

// challenge handles a 401 response to a request whose Authorization header was used. If it returns
// nil, the request should be sent again with the header that current returns.
func (a *authorizer) challenge(ctx context.Context, resp http.Header, used string) error {
	if err := a.turn.Acquire(ctx, 1); err != nil {
		return err
	}
	defer a.turn.Release(1)
	if a.current() != used {
		return nil // another request has already answered it
	}
	header, err := a.answer(ctx, resp, used)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.header = header
	a.mu.Unlock()
	return nil
}

// answer returns the Authorization header for the best challenge of the response. It returns "" if
// the request should be sent again without the header.
func (a *authorizer) answer(ctx context.Context, resp http.Header, used string) (string, error) {
	creds := a.credentials()
	if creds.registryToken != "" {
		if header := "Bearer " + creds.registryToken; header != used {
			return header, nil
		}
		return "", fmt.Errorf("%s rejects the registry token: %w", a.server, errdefs.ErrUnauthenticated)
	}
	var refused error                              // error of the first challenge; there may be a second one
	for _, c := range auth.ParseAuthHeader(resp) { // sorted: bearer first
		var header string
		var err error
		switch c.Scheme {
		case auth.BearerAuth:
			header, err = a.token(ctx, c)
		case auth.BasicAuth:
			header, err = a.basic(used)
		default:
			continue
		}
		if err == nil {
			return header, nil
		}
		if refused == nil {
			refused = err
		}
	}
	if refused != nil {
		return "", refused
	}
	if used != "" {
		return "", nil // the token has expired; without it the host may send a challenge
	}
	return "", fmt.Errorf("%s answers 401 without a supported challenge: %w", a.server, errdefs.ErrUnauthenticated)
}

// basic returns the header for basic authentication.
func (a *authorizer) basic(used string) (string, error) {
	creds := a.credentials()
	if creds.username == "" || creds.secret == "" {
		return "", fmt.Errorf("%s requires a user name and password: %w", a.server, errdefs.ErrUnauthenticated)
	}
	header := "Basic " + base64.StdEncoding.EncodeToString([]byte(creds.username+":"+creds.secret))
	if header == used {
		return "", fmt.Errorf("%s rejects the user name or password: %w", a.server, errdefs.ErrUnauthenticated)
	}
	return header, nil
}

// token requests a token from the token server of a challenge, and returns the header with it. The
// registry chooses the realm, so trustRealm decides whether to use it.
func (a *authorizer) token(ctx context.Context, c auth.Challenge) (string, error) {
	creds := a.credentials()
	realm, err := url.Parse(c.Parameters["realm"])
	if err != nil {
		return "", fmt.Errorf("%s names a token server that is not a URL: %w", a.server, errdefs.ErrUnauthenticated)
	}
	server, _ := url.Parse(a.server)
	if realm.Scheme == "http" && server.Scheme == "https" && strings.EqualFold(realm.Hostname(), server.Hostname()) &&
		!docker.IsLocalhost(realm.Host) && !named(realm, a.settings.TokenServers) {
		// The registry is behind a TLS proxy and does not know it.
		realm.Scheme, realm.Host = "https", withoutPort("http", realm.Host)
	}
	related, err := trustRealm(server, realm, a.settings.TokenServers)
	if err != nil {
		return "", fmt.Errorf("%s names token server %s: %v (if it belongs to the registry, "+
			"add it to token_servers in %s): %w", a.server,
			Redact(origin(realm), creds.secrets()...), err, a.settings.file, errdefs.ErrUnauthenticated)
	}
	if !related && creds.secret != "" {
		a.mu.Lock()
		a.withheld = Redact(origin(realm), creds.secrets()...)
		a.mu.Unlock()
	}
	opts := auth.TokenOptions{Realm: realm.String(), Service: c.Parameters["service"], Scopes: []string{a.scope}}
	if s := c.Parameters["scope"]; s != "" {
		opts.Scopes = strings.Fields(s)
	}
	var given http.Header
	if related {
		opts.Username, opts.Secret = creds.username, creds.secret
		given = a.given
	}
	var refused error
	if opts.Secret != "" && opts.Username == "" {
		reply, err := auth.FetchTokenWithOAuth(ctx, a.client, given, "cribox", opts)
		if err == nil {
			return "Bearer " + reply.AccessToken, nil
		}
		if refused = a.tokenError(realm, err); !noOAuth(err) {
			return "", refused
		}
	}
	reply, err := auth.FetchToken(ctx, a.client, given, opts)
	if err != nil && refused != nil {
		return "", refused
	}
	if err != nil {
		return "", a.tokenError(realm, err)
	}
	return "Bearer " + reply.Token, nil
}

// noOAuth reports whether the token server may support only GET.
func noOAuth(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if !errors.As(err, &status) {
		return false
	}
	switch status.StatusCode {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed:
		return true
	}
	return false
}

func (a *authorizer) tokenError(realm *url.URL, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		se := &StatusError{Code: status.StatusCode, server: origin(realm), what: "a token",
			detail: Redact(errorDetail(status.Body), a.secrets()...)}
		if status.StatusCode == http.StatusBadRequest {
			// ACR and others respond like this to invalid credentials.
			return fmt.Errorf("%w: %w", se, errdefs.ErrUnauthenticated)
		}
		if Busy(status.StatusCode) {
			return fault.Unavailable(se)
		}
		return se
	}
	var netErr net.Error
	if errors.As(err, &netErr) || errors.Is(err, io.EOF) {
		return fault.Unavailable(heard{"ask " + origin(realm) + " for a token: " + Redact(err.Error(), a.secrets()...), err})
	}
	return fmt.Errorf("ask %s for a token: %v: %w", origin(realm), Redact(err.Error(), a.secrets()...),
		errdefs.ErrUnauthenticated)
}

// trustRealm decides whether a token server may be asked. related reports whether it may receive
// credentials: it has the host of the registry (any port), shares its registrable domain, or is
// configured by the administrator. Any other server is asked without credentials, over https, and
// only by name, so that a registry cannot direct requests to addresses in the node's network.
func trustRealm(registry, realm *url.URL, allowed []string) (related bool, err error) {
	host, own := realm.Hostname(), registry.Hostname()
	if host == "" || realm.Opaque != "" || realm.User != nil {
		return false, errors.New("it is not a plain URL")
	}
	if named(realm, allowed) {
		return true, nil
	}
	related = strings.EqualFold(host, own) || sameDomain(host, own)
	switch realm.Scheme {
	case "https":
	case "http":
		if registry.Scheme != "http" && !docker.IsLocalhost(own) || !strings.EqualFold(host, own) {
			return false, errors.New("it does not use https")
		}
	default:
		return false, errors.New("it does not use https")
	}
	if !related && (net.ParseIP(host) != nil || !strings.Contains(host, ".")) {
		return false, errors.New("it is neither on the registry's domain nor a public host name")
	}
	return related, nil
}

// named reports whether a token server is in a list of token_servers.
func named(realm *url.URL, servers []string) bool {
	return slices.ContainsFunc(servers, func(name string) bool {
		u := parseTokenServer(name)
		return u != nil &&
			origin(u) == origin(realm)
	})
}

func sameDomain(a, b string) bool {
	if net.ParseIP(a) != nil || net.ParseIP(b) != nil {
		return false
	}
	da, err := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(a))
	if err != nil {
		return false
	}
	db, err := publicsuffix.EffectiveTLDPlusOne(strings.ToLower(b))
	return err == nil && da == db
}

// origin returns scheme and authority without the default port. Servers with equal origins are the
// same.
func origin(u *url.URL) string {
	return strings.ToLower(u.Scheme + "://" + withoutPort(u.Scheme, u.Host))
}

const maxToken = 1 << 20 // bytes of a token server's response

// cappedReplies limits the body of every response to maxToken.
type cappedReplies struct{ http.RoundTripper }

func (c cappedReplies) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxToken), resp.Body}
	}
	return resp, err
}
