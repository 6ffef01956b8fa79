package imageservice

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/registry"
)

// refusal is a row of the policy: an input that cribox refuses and containerd handles in another
// way. The rule is that cribox accepts what containerd accepts, unless that is dangerous.
type refusal struct {
	name       string
	input      string
	containerd string // what version 2.4 does
	cribox     string // text in the error
	why        string
}

// registryRefusals lists every refusal about registries, their hosts and credentials.
// refusedRegistries produces each of them.
var registryRefusals = []refusal{
	{"broken hosts.toml", "a hosts.toml that is no TOML",
		"logs it and asks the registry itself", "registry configuration of", "asks other servers than the administrator meant"},
	{"unknown capability", "a hosts.toml with a capability that does not exist",
		"logs it and asks the registry itself", "unknown capability", "asks other servers than the administrator meant"},
	{"broken cribox.toml", "a key of cribox.toml that does not exist", "has no such file", "strict mode", "a misspelt key would have no effect"},
	{"token server by http", "a https registry that names a token server by http, and not on its own host",
		"sends the password in clear text", "it does not use https", "the password is on the network; token_servers allows it"},
	{"token server of the node's network", "a challenge with an address such as 169.254.169.254",
		"asks it", "neither on the registry's domain nor a public host name", "a registry could have the node ask what only the node may; token_servers allows it"},
	{"token server redirects", "a token server that redirects to another host",
		"follows", "redirects to another host", "the password or the refresh token would follow"},
	{"redirect to http", "a https registry that redirects a blob to http",
		"follows", "set redirect_to_http = true in", "everybody on the way sees the layers; the key allows it"},
	{"manifest by http", "a https registry that redirects a tag to http",
		"follows", "redirects manifest 1 from https to plain http", "nothing proves what the tag is; server = \"http://...\" says that this is meant"},
	{"redirect to no web address", "Location: file://localhost/etc/passwd", "refuses as well", "not a web address", "there is nothing to ask"},
	{"redirects without end", "more than 10 redirects", "refuses as well", "more than 10 times", "there is no end"},
	{"credentials for another server", "server_address names another registry",
		"shows none either", "and were not sent", "the password is for somebody else"},
	{"control character", "a password or token with a line break",
		"sends it, and the registry refuses it", "control character in password", "the end of a file went into the secret: this error says so"},
	{"auth that is no base64", "auth: hunter2", "refuses as well", "auth is not base64", "there is no password in it"},
	{"other digest than promised", "a manifest whose Docker-Content-Digest is not its digest",
		"refuses as well, once it asks by that digest", "manifest has digest", "the answer is not what the registry says it is"},
	{"other length than promised", "a layer of another length than its descriptor says",
		"refuses as well", "is announced with", "it cannot have the digest"},
	{"document without end", "a manifest of more than 4 MiB", "refuses from 8 MiB on", "more than 4194304 bytes",
		"it is decoded in memory; registries refuse to store more than 4 MiB"},
	{"registry that asks to wait", "Retry-After: 3600", "fails at once", "it asks to retry after", "a kubelet asks again by itself"},
	{"registry that is silent", "no answer within stall_time", "fails after 30 s", "no data received for too long", "the pull would last for ever; stall_time is the key"},
	{"digest of somebody else", "a manifest with a layer that is here and that the repository does not have",
		"uses what is here", "404 Not Found for blob", "knowing a digest is no right to an image"},
}

// refusedRegistries returns, by the name of the row, a function that provokes the refusal and
// returns its error.
func refusedRegistries(t *testing.T) map[string]func(t *testing.T) error {
	layer := imagetest.Gzip(imagetest.Noise(t, 1000))
	alice := &registry.Auth{Username: "alice", Password: "wonderland"}
	// answering pulls app:1 from a registry whose requests are first handled by f.
	answering := func(t *testing.T, tls bool, creds *registry.Auth, settings string, f func(r *imagetest.Registry, w http.ResponseWriter, q *http.Request) bool) error {
		r := imagetest.NewRegistry(t)
		r.Build("1", []imagetest.Layer{layer}, nil)
		r.Intercept(func(w http.ResponseWriter, q *http.Request) bool { return f(r, w, q) })
		c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
		text := fmt.Sprintf("server = %q\n", r.URL)
		if tls {
			server, ca := secure(r, t)
			text = fmt.Sprintf("server = %q\nca = %q\n", server.URL, ca)
		}
		folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", text)
		folder(t, c.cfg.RegistryConfig, "reg.test", "cribox.toml", settings)
		_, err := c.Pull(t.Context(), "reg.test/app:1", creds)
		return err
	}
	with := func(auth registry.Auth) func(*testing.T) error {
		return func(t *testing.T) error {
			return answering(t, false, &auth, "", func(_ *imagetest.Registry, w http.ResponseWriter, _ *http.Request) bool {
				return unauthorized(w, `Basic realm="x"`)
			})
		}
	}
	file := func(name, text string) func(*testing.T) error {
		return func(t *testing.T) error {
			c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
			folder(t, c.cfg.RegistryConfig, "reg.test", name, text)
			_, err := c.Pull(t.Context(), "reg.test/app:1", nil)
			return err
		}
	}
	realm := func(realm string) func(*testing.T) error {
		return func(t *testing.T) error {
			return answering(t, true, alice, "", func(_ *imagetest.Registry, w http.ResponseWriter, _ *http.Request) bool {
				return unauthorized(w, fmt.Sprintf("Bearer realm=%q", realm))
			})
		}
	}
	redirect := func(match, to, settings string) func(*testing.T) error {
		return func(t *testing.T) error {
			return answering(t, true, nil, settings, func(r *imagetest.Registry, w http.ResponseWriter, q *http.Request) bool {
				if !strings.Contains(q.URL.Path, match) {
					return false
				}
				w.Header().Set("Location", strings.Replace(to, "PLAIN", r.URL, 1))
				w.WriteHeader(http.StatusTemporaryRedirect)
				return true
			})
		}
	}
	return map[string]func(*testing.T) error{
		"broken hosts.toml":                  file("hosts.toml", "server = [\n"),
		"unknown capability":                 file("hosts.toml", "[host.'https://mirror.example']\ncapabilities = ['read']\n"),
		"broken cribox.toml":                 file("cribox.toml", "token_server = 'https://a.example'\n"),
		"token server by http":               realm("http://tokens.reg.example/token"),
		"token server of the node's network": realm("https://169.254.169.254/latest"),
		"token server redirects": func(t *testing.T) error {
			tokens := newTokenServer(t)
			tokens.reply = func(w http.ResponseWriter, _ int32) {
				w.Header().Set("Location", "http://127.0.0.2:1/token")
				w.WriteHeader(http.StatusFound)
			}
			return answering(t, false, alice, "", func(_ *imagetest.Registry, w http.ResponseWriter, _ *http.Request) bool {
				return unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token"`, tokens.URL))
			})
		},
		"redirect to http":               redirect("/blobs/", "PLAIN/x", ""),
		"manifest by http":               redirect("/manifests/1", "PLAIN/x", "redirect_to_http = true"),
		"redirect to no web address":     redirect("/blobs/", "file://localhost/etc/passwd", ""),
		"redirects without end":          redirect("/", "/v2/app/blobs/again", ""),
		"credentials for another server": with(registry.Auth{Username: "alice", Password: "wonderland", ServerAddress: "other.example"}),
		"control character":              with(registry.Auth{Username: "alice", Password: "wonderland\n"}),
		"auth that is no base64":         with(registry.Auth{Auth: "hunter2"}),
		"other digest than promised": func(t *testing.T) error {
			return answering(t, false, nil, "", func(r *imagetest.Registry, w http.ResponseWriter, q *http.Request) bool {
				if !strings.HasSuffix(q.URL.Path, "/manifests/1") {
					return false
				}
				w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("a", 64))
				w.Header().Set("Content-Type", r.Manifests["1"].MediaType)
				w.Write(r.Manifests["1"].Body)
				return true
			})
		},
		"other length than promised": func(t *testing.T) error {
			return answering(t, false, nil, "", func(_ *imagetest.Registry, w http.ResponseWriter, q *http.Request) bool {
				if !imagetest.IsBlobGet(q, digest.FromBytes(layer.Blob)) {
					return false
				}
				fmt.Fprint(w, "short")
				return true
			})
		},
		"document without end": func(t *testing.T) error {
			return answering(t, false, nil, "", func(_ *imagetest.Registry, w http.ResponseWriter, _ *http.Request) bool {
				w.Write([]byte(strings.Repeat(" ", 5<<20)))
				return true
			})
		},
		"registry that asks to wait": func(t *testing.T) error {
			return answering(t, false, nil, "", func(_ *imagetest.Registry, w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			})
		},
		"registry that is silent": func(t *testing.T) error {
			r := imagetest.NewRegistry(t)
			r.Intercept(func(_ http.ResponseWriter, q *http.Request) bool { <-q.Context().Done(); return true })
			_, err := newImages(t, func(c *Config) { c.StallTimeout = time.Second }).Pull(t.Context(), r.Ref("app:1"), nil)
			return err
		},
		"digest of somebody else": func(t *testing.T) error {
			owner, other := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
			for _, r := range []*imagetest.Registry{owner, other} {
				r.Build("1", []imagetest.Layer{layer}, nil)
			}
			other.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				if !imagetest.IsBlobGet(q, digest.FromBytes(layer.Blob)) {
					return false
				}
				w.WriteHeader(http.StatusNotFound)
				return true
			})
			c := newImages(t, nil)
			c.mustPull(t, owner.Ref("app:1"))
			_, err := c.Pull(t.Context(), other.Ref("app:1"), nil)
			return err
		},
	}
}

// TestRegistryRefusals checks the error of each row about registries.
func TestRegistryRefusals(t *testing.T) {
	made := refusedRegistries(t)
	for _, row := range registryRefusals {
		t.Run(row.name, func(t *testing.T) {
			make := made[row.name]
			if make == nil {
				t.Fatal("nothing shows this row")
			}
			delete(made, row.name)
			err := make(t)
			if err == nil || !strings.Contains(err.Error(), row.cribox) {
				t.Errorf("want %q in: %v", row.cribox, err)
			}
			if text := fmt.Sprint(err); strings.Contains(text, "wonderland") {
				t.Errorf("the password is in: %s", text)
			}
			if row.input == "" || row.containerd == "" || row.why == "" {
				t.Error("the row does not say all")
			}
		})
	}
	for name := range made {
		t.Errorf("no row for %s", name)
	}
}
