package imageservice

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/registry"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func unauthorized(w http.ResponseWriter, challenge string) bool {
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	return true
}

func TestBasicAuth(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Tar(t, imagetest.File("f"), "x"))}, nil)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		return q.Header.Get("Authorization") != basic("user", "pass:word") && unauthorized(w, `Basic realm="x"`)
	})
	b64 := base64.StdEncoding.EncodeToString([]byte("user:pass:word"))
	for name, c := range map[string]struct {
		auth *registry.Auth
		ok   bool
	}{
		"password":       {&registry.Auth{Username: "user", Password: "pass:word"}, true},
		"auth":           {&registry.Auth{Auth: b64}, true},
		"own server":     {&registry.Auth{Auth: b64, ServerAddress: "https://" + r.Host() + "/v2/"}, true},
		"other server":   {&registry.Auth{Auth: b64, ServerAddress: "https://index.docker.io/v1/"}, false},
		"wrong password": {&registry.Auth{Username: "user", Password: "wrong"}, false},
		"none":           {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			images := newImages(t, nil)
			_, err := images.Pull(t.Context(), r.Ref("app:1"), c.auth)
			if c.ok && err != nil || !c.ok && !errdefs.IsUnauthorized(err) {
				t.Error(err)
			}
			if err != nil && strings.Contains(err.Error(), "wrong") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
	// A local image does not replace the registry's permission.
	images := newImages(t, nil)
	_, err := images.Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Auth: b64})
	imagetest.Must(t, err)
	if _, err := images.Pull(t.Context(), r.Ref("app:1"), nil); !errdefs.IsUnauthorized(err) {
		t.Errorf("a pull without credentials of an image that is here: %v", err)
	}
}

func TestBadCredentials(t *testing.T) {
	for name, a := range map[string]*registry.Auth{
		"newline in password": {Username: "u", Password: "secret\nX: y"},
		"newline in token":    {RegistryToken: "secret\r\n"},
		"newline inside auth": {Auth: base64.StdEncoding.EncodeToString([]byte("u:secret\n"))},
		"auth is not base64":  {Auth: "secret!"},
		"auth without colon":  {Auth: base64.StdEncoding.EncodeToString([]byte("secret"))},
	} {
		_, err := newImages(t, nil).Pull(t.Context(), "127.0.0.1:1/app:1", a)
		if !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tokenServer issues tokens for valid credentials. Each token is valid for a number of requests.
type tokenServer struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []string // Authorization headers and forms
	tokens atomic.Int32
	reply  func(w http.ResponseWriter, n int32)
}

func newTokenServer(t testing.TB) *tokenServer {
	s := &tokenServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q.ParseForm()
		s.mu.Lock()
		s.seen = append(s.seen, q.Method+" "+q.Header.Get("Authorization")+" "+q.Form.Encode())
		s.mu.Unlock()
		n := s.tokens.Add(1)
		if s.reply != nil {
			s.reply(w, n)
			return
		}
		fmt.Fprintf(w, `{"token":"token-%d","access_token":"token-%d"}`, n, n)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestTokenAuth(t *testing.T) {
	for name, c := range map[string]struct {
		auth *registry.Auth
		want string // in the request to the token server
	}{
		"anonymous": {nil, "GET  scope=repository%3Aapp%3Apull&service=reg"},
		"password":  {&registry.Auth{Username: "user", Password: "pass"}, "GET " + basic("user", "pass") + " scope=repository%3Aapp%3Apull&service=reg"},
		"identity":  {&registry.Auth{IdentityToken: "refresh"}, "POST  client_id=cribox&grant_type=refresh_token&refresh_token=refresh&scope=repository%3Aapp%3Apull&service=reg"},
	} {
		t.Run(name, func(t *testing.T) {
			r, tokens := imagetest.NewRegistry(t), newTokenServer(t)
			l := imagetest.Gzip(imagetest.Noise(t, 100_000))
			r.Build("1", []imagetest.Layer{l, imagetest.Gzip(imagetest.Tar(t, imagetest.File("a"))), imagetest.Gzip(imagetest.Tar(t, imagetest.File("b")))}, nil)
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				return q.Header.Get("Authorization") != "Bearer token-1" && unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token",service="reg",scope="repository:app:pull"`, tokens.URL))
			})
			_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), c.auth)
			imagetest.Must(t, err)
			if !slices.Equal(tokens.seen, []string{c.want}) {
				t.Errorf("token server saw %q", tokens.seen)
			}
		})
	}
}

func TestRegistryToken(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", nil, nil)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		return q.Header.Get("Authorization") != "Bearer mine" && unauthorized(w, `Bearer realm="http://127.0.0.1:1/"`)
	})
	_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{RegistryToken: "mine"})
	imagetest.Must(t, err)
	if _, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{RegistryToken: "wrong"}); !errdefs.IsUnauthorized(err) {
		t.Error(err)
	}
}

// TestTokenExpires checks that an expired token is requested again once, and that retries end when
// a registry refuses every token.
func TestTokenExpires(t *testing.T) {
	r, tokens := imagetest.NewRegistry(t), newTokenServer(t)
	l := imagetest.Gzip(imagetest.Noise(t, 100_000))
	r.Build("1", []imagetest.Layer{l}, nil)
	challenge := fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, tokens.URL)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		want := "Bearer token-1"
		if imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
			want = "Bearer token-2"
		}
		return q.Header.Get("Authorization") != want && unauthorized(w, challenge)
	})
	newImages(t, nil).mustPull(t, r.Ref("app:1"))
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool { return unauthorized(w, challenge) })
	before := tokens.tokens.Load()
	if _, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), nil); !errdefs.IsUnauthorized(err) {
		t.Error(err)
	}
	if n := tokens.tokens.Load() - before; n > 2 {
		t.Errorf("%d tokens for one request", n)
	}
}

func TestTokenServerFaults(t *testing.T) {
	elsewhere := newStranger(t, func(w http.ResponseWriter, q *http.Request) { t.Error("a token request is redirected elsewhere") })
	for name, c := range map[string]struct {
		reply func(w http.ResponseWriter, n int32)
		ok    func(error) bool
	}{
		"401":     {func(w http.ResponseWriter, _ int32) { w.WriteHeader(401) }, errdefs.IsUnauthorized},
		"403":     {func(w http.ResponseWriter, _ int32) { w.WriteHeader(403) }, errdefs.IsPermissionDenied},
		"500":     {func(w http.ResponseWriter, _ int32) { w.WriteHeader(500) }, func(err error) bool { return strings.HasPrefix(fmt.Sprint(err), "RegistryUnavailable: ") }},
		"no json": {func(w http.ResponseWriter, _ int32) { fmt.Fprint(w, "hello") }, errdefs.IsUnauthorized},
		"1 GiB": {func(w http.ResponseWriter, _ int32) {
			fmt.Fprint(w, `{"token":"`)
			for i := range 1024 {
				if _, err := w.Write([]byte(strings.Repeat("x", 1<<20))); err != nil {
					return
				}
				if i == 64 {
					t.Error("it reads for ever")
					return
				}
			}
		}, func(err error) bool { return err != nil && len(err.Error()) < 1000 }},
		"newline": {func(w http.ResponseWriter, _ int32) { fmt.Fprint(w, `{"token":"a\nb: SECRET"}`) }, func(err error) bool { return err != nil && !strings.Contains(err.Error(), "SECRET") }},
		"redirect": {func(w http.ResponseWriter, _ int32) {
			w.Header().Set("Location", elsewhere.URL)
			w.WriteHeader(307)
		}, func(err error) bool { return err != nil }},
	} {
		t.Run(name, func(t *testing.T) {
			r, tokens := imagetest.NewRegistry(t), newTokenServer(t)
			tokens.reply = c.reply
			r.Build("1", nil, nil)
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				return unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token"`, tokens.URL))
			})
			_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "user", Password: "wonderland"})
			if !c.ok(err) || strings.Contains(fmt.Sprint(err), "wonderland") {
				t.Error(err)
			}
		})
	}
}

// TestUntrustedTokenServer checks that a registry's challenge cannot direct credentials or requests to
// arbitrary servers.
func TestUntrustedTokenServer(t *testing.T) {
	r, tokens := imagetest.NewRegistry(t), newTokenServer(t)
	r.Build("1", nil, nil)
	var realm string
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		return unauthorized(w, fmt.Sprintf(`Bearer realm="%s",service="reg"`, realm))
	})
	for _, realm = range []string{strings.Replace(tokens.URL, "127.0.0.1", "localhost", 1), "file:///etc/passwd", "http://169.254.169.254/latest", "https://169.254.169.254/", "gopher://127.0.0.1/", "", "http://u:p@127.0.0.1/"} {
		_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "user", Password: "password"})
		if !errdefs.IsUnauthorized(err) {
			t.Errorf("realm %s: %v", realm, err)
		}
	}
	if len(tokens.seen) > 0 {
		t.Errorf("token server saw %q", tokens.seen)
	}
}

// stranger records the headers of the requests that it receives.
type stranger struct {
	*httptest.Server
	mu   sync.Mutex
	seen []http.Header
	urls []string
}

func newStranger(t testing.TB, answer http.HandlerFunc) *stranger {
	s := &stranger{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s.mu.Lock()
		s.seen, s.urls = append(s.seen, q.Header.Clone()), append(s.urls, q.URL.String())
		s.mu.Unlock()
		answer(w, q)
	}))
	t.Cleanup(s.Close)
	return s
}

// TestRedirects checks that a redirect to another port is followed without credentials.
func TestRedirects(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Gzip(imagetest.Noise(t, 1000))
	r.Build("1", []imagetest.Layer{l}, nil)
	cdn := newStranger(t, func(w http.ResponseWriter, q *http.Request) { w.Write(l.Blob) })
	challenging := newStranger(t, func(w http.ResponseWriter, q *http.Request) { unauthorized(w, `Basic realm="x"`) })
	certs := t.TempDir()
	writeHosts(t, certs, r.Host(), fmt.Sprintf("server = %q\n[header]\nX-Secret = \"header\"\n", r.URL))
	to := cdn.URL + "/blob?sig=SECRET"
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Header.Get("Authorization") != basic("user", "password") {
			return unauthorized(w, `Basic realm="x"`)
		}
		if q.Header.Get("X-Secret") != "header" {
			t.Error("header of hosts.toml is not sent")
		}
		if !imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
			return false
		}
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	})
	pull := func() error {
		images := newImages(t, func(c *Config) { c.RegistryConfig = certs })
		_, err := images.Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "user", Password: "password"})
		return err
	}
	imagetest.Must(t, pull())
	to = challenging.URL + "/blob?sig=SECRET"
	if err := pull(); err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("401 after the redirect: %v", err)
	}
	for _, s := range []*stranger{cdn, challenging} {
		for _, h := range s.seen {
			for _, name := range []string{"Authorization", "X-Secret", "Cookie", "Referer"} {
				if h.Get(name) != "" {
					t.Errorf("%s: %s arrives at a stranger", name, h.Get(name))
				}
			}
		}
		if len(s.seen) == 0 {
			t.Error("the redirect is not followed")
		}
	}
	for _, to = range []string{r.URL + "/v2/app/blobs/" + digest.FromBytes(l.Blob).String() + "?loop=SECRET", "file:///etc/passwd?SECRET", "http://127.0.0.1:1/?SECRET", "http://user:SECRET@127.0.0.1:1/", "::SECRET"} {
		if err := pull(); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("to %s: %v", to, err)
		}
	}
	if n := r.Count("GET /v2/app/blobs/" + digest.FromBytes(l.Blob).String()); n > 40 {
		t.Errorf("%d requests, a loop is followed for long", n)
	}
}

func writeHosts(t testing.TB, certs, host, toml string) {
	d := filepath.Join(certs, strings.Replace(host, ":", "_", 1)+"_")
	imagetest.Must(t, os.MkdirAll(d, 0o755))
	imagetest.Must(t, os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(toml), 0o644))
}

func TestTLS(t *testing.T) {
	plain := imagetest.NewRegistry(t)
	_, m := plain.Build("1", nil, nil)
	secure := httptest.NewTLSServer(plain)
	t.Cleanup(secure.Close)
	host := strings.TrimPrefix(secure.URL, "https://")
	certs := t.TempDir()
	images := newImages(t, func(c *Config) { c.RegistryConfig = certs })

	writeHosts(t, certs, host, fmt.Sprintf("server = %q\n", secure.URL))
	if _, err := images.Pull(t.Context(), host+"/app:1", nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate nobody signed: %v", err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	imagetest.Must(t, os.WriteFile(filepath.Join(certs, "ca.pem"), ca, 0o644))
	writeHosts(t, certs, host, fmt.Sprintf("server = %q\nca = %q\n", secure.URL, filepath.Join(certs, "ca.pem")))
	images.mustPull(t, host+"/app:1")

	// A redirect from https to http is refused.
	plain.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if q.TLS == nil {
			t.Error("plain http is spoken")
			return false
		}
		w.Header().Set("Location", plain.URL+"/v2/app/manifests/"+m.Digest.String())
		w.WriteHeader(http.StatusFound)
		return true
	})
	if _, err := images.Pull(t.Context(), host+"/app:2", nil); err == nil || !strings.Contains(err.Error(), "plain http") {
		t.Error(err)
	}
	// If https is configured, a registry that supports only http is refused.
	plain.Intercept(nil)
	writeHosts(t, certs, plain.Host(), fmt.Sprintf("server = \"https://%s\"\n", plain.Host()))
	if _, err := images.Pull(t.Context(), plain.Ref("app:1"), nil); err == nil {
		t.Error("http although https is configured")
	}
}

func TestMirrors(t *testing.T) {
	origin, mirror := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	l := imagetest.Gzip(imagetest.Noise(t, 1000))
	id, _ := origin.Build("1", []imagetest.Layer{l}, nil)
	mirror.Build("1", []imagetest.Layer{l}, nil)
	dead := httptest.NewServer(nil)
	dead.Close()
	certs := t.TempDir()
	hosts := func(mirrors ...string) {
		toml := fmt.Sprintf("server = %q\n", origin.URL)
		for _, m := range mirrors {
			toml += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", m)
		}
		writeHosts(t, certs, origin.Host(), toml)
	}
	pull := func(auth *registry.Auth) error {
		images := newImages(t, func(c *Config) { c.RegistryConfig = certs })
		img, err := images.Pull(t.Context(), origin.Ref("app:1"), auth)
		if err == nil && (img.ID != id || img.RepoTags[0] != origin.Ref("app:1")) {
			t.Errorf("%+v", img)
		}
		return err
	}
	total := func(r *imagetest.Registry) int { return r.Count("") }

	hosts(mirror.URL)
	imagetest.Must(t, pull(nil))
	if total(origin) != 0 || total(mirror) == 0 {
		t.Errorf("%d requests to the registry, %d to its mirror", total(origin), total(mirror))
	}
	// A mirror does not receive the registry's credentials, even if it asks for them.
	mirror.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Header.Get("Authorization") != "" {
			t.Error("a mirror sees credentials")
		}
		return unauthorized(w, `Basic realm="x"`)
	})
	imagetest.Must(t, pull(&registry.Auth{Username: "user", Password: "password"}))
	if total(origin) == 0 {
		t.Error("no fall through to the registry")
	}
	// Unreachable, failing and incomplete mirrors.
	asked := total(mirror)
	hosts(dead.URL, mirror.URL)
	for _, code := range []int{500, 404, 429} {
		mirror.Intercept(func(w http.ResponseWriter, q *http.Request) bool { w.WriteHeader(code); return true })
		imagetest.Must(t, pull(nil))
	}
	mirror.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if strings.Contains(q.URL.Path, "/blobs/") {
			w.WriteHeader(404)
			return true
		}
		return false
	})
	imagetest.Must(t, pull(nil))
	if n := total(mirror) - asked; n > 4*3 { // manifest, config and layer
		t.Errorf("four pulls ask a bad mirror %d times", n)
	}
	// A mirror without the capability resolve is not asked for tags.
	before := mirror.Count("GET /v2/app/manifests/1")
	mirror.Intercept(nil)
	writeHosts(t, certs, origin.Host(), fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", origin.URL, mirror.URL))
	imagetest.Must(t, pull(nil))
	if mirror.Count("GET /v2/app/manifests/1") != before {
		t.Error("mirror is asked for the tag")
	}
	// An invalid hosts.toml is an error; the mirror must not be bypassed.
	writeHosts(t, certs, origin.Host(), "server = [broken")
	if err := pull(nil); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

// TestLyingMirror checks that wrong content from a mirror is replaced by the registry's, and that
// the two are never mixed.
func TestLyingMirror(t *testing.T) {
	l := imagetest.Gzip(imagetest.Noise(t, 10_000))
	for name, lie := range map[string]func(b []byte) []byte{
		"flipped": func(b []byte) []byte { c := append([]byte(nil), b...); c[len(c)/2] ^= 1; return c },
		"stale":   func(b []byte) []byte { return imagetest.Gzip(imagetest.Tar(t, imagetest.File("stale"))).Blob },
	} {
		for _, what := range []string{"/manifests/sha256", "/blobs/"} {
			t.Run(name+what, func(t *testing.T) {
				origin, mirror := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
				_, m := origin.Build("", []imagetest.Layer{l}, nil)
				origin.PutManifest("1", ocispec.MediaTypeImageIndex, index(platform(m, "linux", runtime.GOARCH, "")))
				mirror.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
					if !strings.Contains(q.URL.Path, what) {
						w.WriteHeader(404)
						return true
					}
					d := digest.Digest(q.URL.Path[strings.Index(q.URL.Path, "sha256:"):])
					b, ok := origin.Blobs[d]
					if !ok {
						b = origin.Manifests[d.String()].Body
					}
					w.Write(lie(b))
					return true
				})
				certs := t.TempDir()
				writeHosts(t, certs, origin.Host(), fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
				images := newImages(t, func(c *Config) { c.RegistryConfig = certs })
				img := images.mustPull(t, origin.Ref("app:1"))
				if info, err := os.Stat(mounted(t, images, img.ID)("noise")); err != nil || info.Size() != 10_000 {
					t.Error(info, err)
				}
				if mirror.Count("") == 0 {
					t.Error("the mirror is not asked")
				}
			})
		}
	}
}

func TestSlowMirror(t *testing.T) {
	origin := imagetest.NewRegistry(t)
	origin.Build("1", nil, nil)
	slow := newStranger(t, func(w http.ResponseWriter, q *http.Request) { <-q.Context().Done() })
	certs := t.TempDir()
	writeHosts(t, certs, origin.Host(), fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, slow.URL))
	images := newImages(t, func(c *Config) { c.RegistryConfig, c.StallTimeout = certs, 3*time.Second })
	images.mustPull(t, origin.Ref("app:1"))
	images.mustPull(t, origin.Ref("app:1"))
	if len(slow.seen) != 1 {
		t.Errorf("the slow mirror costs its time %d times", len(slow.seen))
	}
}

func TestDenied(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		w.WriteHeader(403)
		fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"your address is not allowed, see https://x.io/?token=SECRET, wonderland"}]}`)
		return true
	})
	_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "user", Password: "wonderland"})
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "your address is not allowed") || strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "wonderland") {
		t.Error(err)
	}
}

// TestRefusalsSayWhy checks that the error of a refused pull contains the reason.
func TestRefusalsSayWhy(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", nil, nil)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		switch {
		case strings.Contains(q.URL.Path, "/private/"):
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(q.URL.Path, "/forbidden/"):
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"requested access is denied"}]}`)
		default:
			return false
		}
		return true
	})
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
	for host, server := range map[string]string{"tls.test": secure.URL, "plain.test": strings.Replace(r.URL, "http:", "https:", 1)} {
		imagetest.Must(t, os.Mkdir(filepath.Join(c.cfg.RegistryConfig, host), 0o755))
		imagetest.Must(t, os.WriteFile(filepath.Join(c.cfg.RegistryConfig, host, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", server), 0o600))
	}
	alice := &registry.Auth{Username: "alice", Password: "not-the-word"}
	for _, row := range []struct {
		ref  string
		auth *registry.Auth
		want []string
	}{
		{"does-not-exist.invalid/app:1", nil, []string{"RegistryUnavailable: pull does-not-exist.invalid/app:1: ", "no such host"}},
		{"127.0.0.1:1/app:1", nil, []string{"RegistryUnavailable: ", "connection refused"}},
		{"tls.test/app:1", nil, []string{"RegistryUnavailable: ", "certificate signed by unknown authority"}},
		{"plain.test/app:1", nil, []string{"RegistryUnavailable: ", "serves plain http"}},
		{r.Ref("app:none"), nil, []string{"404 Not Found for manifest none: MANIFEST_UNKNOWN"}},
		{r.Ref("private:1"), nil, []string{"requires a user name and password", "had no credentials"}},
		{r.Ref("private:1"), alice, []string{"rejects the user name or password", "had a user name and password"}},
		{r.Ref("private:1"), &registry.Auth{IdentityToken: "not-the-word"}, []string{"had an identity token"}},
		{r.Ref("private:1"), &registry.Auth{RegistryToken: "not-the-word"}, []string{"rejects the registry token", "had a registry token"}},
		{r.Ref("private:1"), &registry.Auth{Username: "alice", Password: "not-the-word", ServerAddress: "https://bob:not-the-word@elsewhere.test/v1/"},
			[]string{`are for "elsewhere.test" and were not sent`}},
		{r.Ref("private:1"), &registry.Auth{Username: "alice", Password: "not-the-word", ServerAddress: "alice:not-the-word/2@elsewhere.test"},
			[]string{"are for another server and were not sent"}},
		{r.Ref("forbidden:1"), nil, []string{"403 Forbidden", "DENIED requested access is denied", "had no credentials"}},
		{r.Ref("forbidden:1"), alice, []string{"403 Forbidden", "had a user name and password"}},
	} {
		_, err := c.Pull(t.Context(), row.ref, row.auth)
		for _, want := range row.want {
			if text := fmt.Sprint(err); !strings.Contains(text, want) || strings.Contains(text, "not-the-word") || strings.Contains(text, "alice") {
				t.Errorf("%s: want %q in: %s", row.ref, want, text)
			}
		}
	}
}
