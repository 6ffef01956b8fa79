package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/progress"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(q *http.Request) (*http.Response, error) { return f(q) }

func TestTrustRealm(t *testing.T) {
	for _, c := range []struct {
		registry, realm string
		related, ok     bool
	}{
		{"https://registry-1.docker.io", "https://auth.docker.io/token", true, true},
		{"https://quay.io", "https://quay.io/v2/auth", true, true},
		{"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true, true},
		{"https://10.0.0.1:5000", "https://10.0.0.1:5001/token", true, true},
		{"https://lscr.io", "https://ghcr.io/token", false, true},
		{"https://a.co.uk", "https://b.co.uk/token", false, true},
		{"https://a.github.io", "https://b.github.io/token", false, true},
		{"https://quay.io", "http://quay.io/token", false, false},
		{"https://quay.io", "https://10.0.0.1/token", false, false},
		{"https://quay.io", "https://[::1]/token", false, false},
		{"https://quay.io", "https://localhost/token", false, false},
		{"https://10.0.0.1", "https://10.0.0.2/token", false, false},
		{"http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true, true},
		{"http://127.0.0.1:5000", "http://127.0.0.2:5001/token", false, false},
		{"https://quay.io", "//quay.io/x", false, false},
	} {
		a, _ := url.Parse(c.registry)
		b, _ := url.Parse(c.realm)
		related, err := trustRealm(a, b, nil)
		if (err == nil) != c.ok || c.ok && related != c.related {
			t.Errorf("%s with %s: related %v, %v", c.registry, c.realm, related, err)
		}
	}
}

func TestPatience(t *testing.T) {
	for _, row := range []struct {
		stall, dial, others, alone time.Duration
	}{
		{30 * time.Second, 0, 4 * time.Second, 30 * time.Second},
		{30 * time.Second, time.Second, 4 * time.Second, 30 * time.Second},
		{30 * time.Second, 10 * time.Second, 10 * time.Second, 30 * time.Second},
		{30 * time.Second, time.Minute, time.Minute, time.Minute},
		{3 * time.Second, 0, time.Second, 3 * time.Second},
		{5 * time.Minute, 0, 4 * time.Second, 5 * time.Minute}, // the default: a caching mirror may need long until the first byte of a large layer
	} {
		r, h := &Repository{stall: row.stall, idle: row.stall / 3}, &Host{dial: row.dial}
		if others, alone := r.patience(h, false), r.patience(h, true); others != row.others || alone != row.alone {
			t.Errorf("stall time %s, dial_timeout %s: %s and %s", row.stall, row.dial, others, alone)
		}
	}
	pull := docker.RegistryHost{Capabilities: docker.HostCapabilityPull}
	r := &Repository{idle: 100 * time.Second, hosts: []*Host{{RegistryHost: pull}, {RegistryHost: pull}}}
	if got := r.silence(); got != 10*time.Second {
		t.Errorf("an answer may stand still for %s while there is another host", got)
	}
	r.hosts = r.hosts[1:]
	if got := r.silence(); got != r.idle {
		t.Errorf("an answer of the only host may stand still for %s", got)
	}
}

// TestCredentialsOfHosts checks which hosts of a registry receive the credentials of a pull.
func TestCredentialsOfHosts(t *testing.T) {
	for _, row := range []struct {
		domain, hosts string
		want          []bool // for each host, the registry itself last
	}{
		{"reg.example", "", []bool{true}},
		{"reg.example", "server = 'https://reg.example:443'", []bool{true}},
		{"reg.example:443", "server = 'https://reg.example'", []bool{true}},
		{"reg.example", "server = 'http://reg.example:80'", []bool{true}},
		{"reg.example", "server = 'http://other.example:5000'", []bool{true}},
		{"reg.example", "server = 'https://other.example'\n[host.'https://mirror.example']\n[host.'https://reg.example:443']", []bool{false, true, true}},
		{"reg.example", "[host.'https://mirror.example']\n[host.'https://reg.example:8443']", []bool{false, false, true}},
		{"reg.example", "[host.'https://REG.example']\nskip_verify = true\n[host.'http://mirror.example']", []bool{true, false}},
		{"reg.example:443", "[host.'https://reg.example']\nskip_verify = true", []bool{true}},
		{"docker.io", "[host.'https://registry-1.docker.io']\n[host.'https://mirror.example']", []bool{true, false}},
	} {
		certs := t.TempDir()
		dir := filepath.Join(certs, strings.Replace(row.domain, ":443", "_443_", 1))
		imagetest.Must(t, errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(row.hosts), 0o644)))
		r, err := NewClient([]string{certs}, time.Minute, nil).Open(t.Context(), imageref.Target{Domain: row.domain, Path: "app"}, Credentials{username: "user", secret: "secret"}, &progress.Clock{})
		imagetest.Must(t, err)
		var got []bool
		for _, h := range r.hosts {
			got = append(got, h.auth.creds.username != "")
		}
		if fmt.Sprint(got) != fmt.Sprint(row.want) {
			t.Errorf("%s with %q: %v, want %v", row.domain, row.hosts, got, row.want)
		}
	}
	for _, row := range []struct {
		domain, address string
		shown           bool
	}{
		{"reg.example", "https://reg.example:443", true}, {"reg.example:443", "https://reg.example/v2/", true}, {"reg.example", "reg.example:443", true},
		{"reg.example", "REG.example", true}, {"reg.example", "http://reg.example:80", true}, {"docker.io", "https://index.docker.io/v1/", true},
		{"reg.example", "reg.example:8443", false}, {"reg.example", "https://evil-reg.example", false}, {"reg.example:80", "https://reg.example", false},
	} {
		got, err := NewCredentials(&Auth{Username: "user", Password: "secret", ServerAddress: row.address}, imageref.Target{Domain: row.domain})
		if err != nil || (got.username != "") != row.shown {
			t.Errorf("%s with the address %s: %+v, %v", row.domain, row.address, got, err)
		}
	}
}

// foreignAuthorizer returns the authorizer of a registry whose token server responds with code.
func foreignAuthorizer(code int) *authorizer {
	client := &http.Client{Transport: roundTripper(func(q *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader("no")), Request: q}, nil
	})}
	settings := registrySettings{file: "/etc/cribox/certs.d/reg.example/cribox.toml"}
	return newAuthorizer("https://reg.example", "repository:app:pull", Credentials{username: "alice", secret: "wonderland"}, client, nil, settings)
}

// TestForeignTokenServer checks that a foreign token server is asked over https without
// credentials, and that the error says so.
func TestForeignTokenServer(t *testing.T) {
	for _, named := range []string{"", "api.scaleway.com", "https://api.scaleway.com", "https://api.scaleway.com:443/", "http://api.scaleway.com", "api.scaleway.com:444"} {
		var seen string
		client := &http.Client{Transport: roundTripper(func(q *http.Request) (*http.Response, error) {
			seen = q.URL.Host + " " + q.Header.Get("Authorization")
			return &http.Response{StatusCode: http.StatusUnauthorized, Body: io.NopCloser(strings.NewReader("no")), Request: q}, nil
		})}
		settings := registrySettings{file: "/etc/cribox/certs.d/rg.fr-par.scw.cloud/cribox.toml"}
		if named != "" {
			settings.TokenServers = []string{named}
		}
		a := newAuthorizer("https://rg.fr-par.scw.cloud", "repository:app:pull", Credentials{username: "nologin", secret: "wonderland"}, client, nil, settings)
		header := http.Header{"Www-Authenticate": {`Bearer realm="https://api.scaleway.com/registry-internal/v1/token",service="registry"`}}
		err := (&Host{auth: a}).explain(a.challenge(t.Context(), header, ""))
		trusted := named != "" && !strings.HasPrefix(named, "http:") && !strings.HasSuffix(named, ":444")
		want, hinted := "api.scaleway.com ", true
		if trusted {
			want, hinted = want+"Basic "+base64.StdEncoding.EncodeToString([]byte("nologin:wonderland")), false
		}
		if !errdefs.IsUnauthorized(err) || seen != want || strings.Contains(err.Error(), "token_servers in "+settings.file) != hinted {
			t.Errorf("named %q: it saw %q, the error is %v", named, seen, err)
		}
	}
}

// TestCredentialSelection checks that the first of several forms of credentials is used, in
// containerd's order.
func TestCredentialSelection(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte("bob:builder"))
	for _, row := range []struct {
		name string
		auth Auth
		want Credentials
	}{
		{"password and identity token", Auth{Username: "alice", Password: "p", IdentityToken: "i"}, Credentials{username: "alice", secret: "p"}},
		{"password and registry token", Auth{Username: "alice", Password: "p", RegistryToken: "r"}, Credentials{username: "alice", secret: "p"}},
		{"password and auth", Auth{Username: "alice", Password: "p", Auth: encoded}, Credentials{username: "alice", secret: "p"}},
		{"a name without a password and an identity token", Auth{Username: "00000000-0000", IdentityToken: "i"}, Credentials{secret: "i"}},
		{"two tokens", Auth{IdentityToken: "i", RegistryToken: "r"}, Credentials{secret: "i"}},
		{"registry token", Auth{RegistryToken: "r"}, Credentials{registryToken: "r"}},
		{"auth with a line break", Auth{Auth: encoded[:8] + "\n" + encoded[8:] + "\r\n "}, Credentials{username: "bob", secret: "builder"}},
	} {
		got, err := NewCredentials(&row.auth, imageref.Target{Domain: "reg.example"})
		if err != nil || got != row.want {
			t.Errorf("%s: %+v, %v", row.name, got, err)
		}
	}
}

// TestTokenServerRequests checks the scheme of requests to token servers, and which headers of
// hosts.toml they receive.
func TestTokenServerRequests(t *testing.T) {
	for _, row := range []struct{ server, realm, want string }{
		{"https://reg.example", "http://reg.example/token", "https://reg.example Basic bWlycm9y"},
		{"https://reg.example", "http://reg.example:80/token", "https://reg.example Basic bWlycm9y"},
		{"https://reg.example:8443", "http://reg.example:8443/token", "https://reg.example:8443 Basic bWlycm9y"},
		{"https://reg.example", "https://auth.reg.example/token", "https://auth.reg.example Basic bWlycm9y"},
		{"https://reg.example", "https://tokens.elsewhere.test/token", "https://tokens.elsewhere.test "},
	} {
		var seen string
		client := &http.Client{Transport: roundTripper(func(q *http.Request) (*http.Response, error) {
			seen = q.URL.Scheme + "://" + q.URL.Host + " " + q.Header.Get("Authorization")
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(`{"token":"x"}`)), Request: q}, nil
		})}
		a := newAuthorizer(row.server, "repository:app:pull", Credentials{}, client, http.Header{"Authorization": {"Basic bWlycm9y"}}, registrySettings{})
		imagetest.Must(t, a.challenge(t.Context(), http.Header{"Www-Authenticate": {fmt.Sprintf("Bearer realm=%q", row.realm)}}, ""))
		if seen != row.want || a.current() != "Bearer x" {
			t.Errorf("%s with %s: it saw %q, want %q", row.server, row.realm, seen, row.want)
		}
	}
}

// TestUnreachableHostIsAskedLast checks that an unreachable or slow host is asked after the others, and one with
// an invalid certificate is not.
func TestUnreachableHostIsAskedLast(t *testing.T) {
	for err, want := range map[error]trouble{
		errors.New("x509"): noTrouble, errSilent: slow, fmt.Errorf("%w: %w", errNoConnection, errSilent): dead,
	} {
		h := &Host{name: fmt.Sprint(err)}
		r := &Repository{troubled: &troubledHosts{}}
		if r.remember(h, err); r.trouble(h) != want {
			t.Errorf("%v: trouble %d, want %d", err, r.trouble(h), want)
		}
	}
}

// TestForeignTokenServerRefuses is a row of the policy about registries
// (imageservice/refusals_registry_test.go): a challenge whose server is on another domain.
// containerd sends the password there, so that anyone who can respond in place of a registry could
// collect passwords. token_servers permits it.
func TestForeignTokenServerRefuses(t *testing.T) {
	a := foreignAuthorizer(http.StatusUnauthorized)
	err := (&Host{auth: a}).explain(a.challenge(t.Context(), http.Header{"Www-Authenticate": {`Bearer realm="https://tokens.example/"`}}, ""))
	if err == nil || !strings.Contains(err.Error(), "was not sent the credentials") || strings.Contains(err.Error(), "wonderland") {
		t.Error(err)
	}
}
