package imageservice

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/manifest"
	"github.com/cribox/cribox/imageservice/registry"
)

// folder writes a file to a registry's folder.
func folder(t testing.TB, certs, registry, name, text string) {
	t.Helper()
	dir := filepath.Join(certs, registry)
	imagetest.Must(t, os.MkdirAll(dir, 0o755))
	imagetest.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
}

// secure serves r over TLS, and returns the path of its certificate.
func secure(s *imagetest.Registry, t testing.TB) (server *httptest.Server, ca string) {
	t.Helper()
	server = httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	imagetest.Must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	return server, ca
}

// TestOwnEntry checks that an entry with the registry's own address configures how to connect to
// the registry, that the registry's response is used, and that one failed pull does not affect
// others.
func TestOwnEntry(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
	server, ca := secure(r, t)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		switch {
		case strings.Contains(q.URL.Path, "/private/"):
			return q.Header.Get("Authorization") != basic("user", "wonderland") && unauthorized(w, `Basic realm="x"`)
		case strings.Contains(q.URL.Path, "/forbidden/"):
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	for name, text := range map[string]string{
		"ca":                fmt.Sprintf("server = %[1]q\n[host.%[1]q]\nca = %[2]q\n", server.URL, ca),
		"skip_verify":       fmt.Sprintf("server = %[1]q\n[host.%[1]q]\nskip_verify = true\n", server.URL),
		"only to pull":      fmt.Sprintf("server = %[1]q\n[host.%[1]q]\nskip_verify = true\ncapabilities = ['pull']\n", server.URL),
		"a twin of its own": fmt.Sprintf("server = %[1]q\ndial_timeout = '5s'\n[host.%[1]q]\nskip_verify = true\n", server.URL),
		"before a mirror":   fmt.Sprintf("server = %[1]q\n[host.%[1]q]\nskip_verify = true\n[host.'http://127.0.0.1:1']\n", server.URL),
		"behind a mirror":   fmt.Sprintf("server = %[1]q\n[host.'http://127.0.0.1:1']\n[host.%[1]q]\nskip_verify = true\n", server.URL),
	} {
		t.Run(name, func(t *testing.T) {
			c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
			folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", text)
			for range 2 {
				if _, err := c.Pull(t.Context(), "reg.test/app:none", nil); !errdefs.IsNotFound(err) || strings.Contains(err.Error(), "x509") {
					t.Errorf("a tag that does not exist: %v", err)
				}
				if _, err := c.Pull(t.Context(), "reg.test/private:1", nil); !errdefs.IsUnauthorized(err) {
					t.Errorf("without credentials: %v", err)
				}
				if _, err := c.Pull(t.Context(), "reg.test/forbidden:1", nil); !errdefs.IsPermissionDenied(err) {
					t.Errorf("forbidden: %v", err)
				}
			}
			c.mustPull(t, "reg.test/app:1")
			_, err := c.Pull(t.Context(), "reg.test/private:1", &registry.Auth{Username: "user", Password: "wonderland"})
			imagetest.Must(t, err)
		})
	}
}

// TestOnlyDialErrorsAreRemembered checks that a host whose certificate was invalid a moment ago is
// asked again.
func TestOnlyDialErrorsAreRemembered(t *testing.T) {
	origin, mirror := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	l := imagetest.Gzip(imagetest.Noise(t, 1000))
	origin.Build("1", []imagetest.Layer{l}, nil)
	mirror.Build("1", []imagetest.Layer{l}, nil)
	server, ca := secure(mirror, t)
	c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
	text := fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, server.URL)
	folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", text)
	c.mustPull(t, "reg.test/app:1")
	if mirror.Count("") > 0 {
		t.Fatal("a mirror without a good certificate was asked")
	}
	folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", text+fmt.Sprintf("ca = %q\n", ca))
	c.mustPull(t, "reg.test/app:1")
	if mirror.Count("") == 0 {
		t.Error("the mirror was not asked again")
	}
}

// TestSlowMirrorAlone checks that a mirror which exceeds the short timeout serves the pull after
// all other hosts have failed, and that the error names it if it does not respond at all.
func TestSlowMirrorAlone(t *testing.T) {
	const stall = 4500 * time.Millisecond // the short timeout is then 1.5 s
	mirror, closed := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	mirror.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
	closed.Close()
	silent := atomic.Bool{}
	mirror.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		cold := time.After(2 * time.Second)
		if silent.Load() {
			cold = nil
		}
		select {
		case <-cold:
			return false
		case <-q.Context().Done():
			return true
		}
	})
	for name, upstream := range map[string]string{"unreachable": closed.URL, "without the image": imagetest.NewRegistry(t).URL} {
		t.Run(name, func(t *testing.T) {
			silent.Store(false)
			c := newImages(t, func(c *Config) { c.RegistryConfig, c.StallTimeout = t.TempDir(), stall })
			folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", fmt.Sprintf("server = %q\n[host.%q]\n", upstream, mirror.URL))
			c.mustPull(t, "reg.test/app:1")
			silent.Store(true)
			_, err := c.Pull(t.Context(), "reg.test/app:2", nil)
			for _, part := range []string{mirror.URL, upstream} {
				if !strings.Contains(fmt.Sprint(err), part) {
					t.Errorf("the error does not name %s: %v", part, err)
				}
			}
		})
	}
}

// TestServerOfAnotherName checks that the server of hosts.toml is the registry and receives its
// credentials.
func TestServerOfAnotherName(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", nil, nil)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		return q.Header.Get("Authorization") != basic("user", "wonderland") && unauthorized(w, `Basic realm="x"`)
	})
	c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
	folder(t, c.cfg.RegistryConfig, "other.test", "hosts.toml", fmt.Sprintf("server = %q\n", r.URL))
	_, err := c.Pull(t.Context(), "other.test/app:1", &registry.Auth{Username: "user", Password: "wonderland"})
	imagetest.Must(t, err)
}

// TestTokenServers checks that a token server on another domain receives the credentials if
// cribox.toml names it, and that otherwise the error says how to configure it.
func TestTokenServers(t *testing.T) {
	r, tokens := imagetest.NewRegistry(t), newTokenServer(t)
	r.Build("1", nil, nil)
	elsewhere := strings.Replace(tokens.URL, "127.0.0.1", "localhost", 1)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		return q.Header.Get("Authorization") != "Bearer token-1" && unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, elsewhere))
	})
	c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
	name := strings.Replace(r.Host(), ":", "_", 1) + "_"
	folder(t, c.cfg.RegistryConfig, name, "hosts.toml", fmt.Sprintf("server = %q\n", r.URL))
	alice := &registry.Auth{Username: "alice", Password: "wonderland"}
	_, err := c.Pull(t.Context(), r.Ref("app:1"), alice)
	if text := fmt.Sprint(err); !errdefs.IsUnauthorized(err) || !strings.Contains(text, "token_servers in "+filepath.Join(c.cfg.RegistryConfig, name, "cribox.toml")) {
		t.Error(err)
	}
	if len(tokens.seen) > 0 {
		t.Errorf("it was asked: %q", tokens.seen)
	}
	for text, want := range map[string]string{
		"token_server = []": "strict mode", "token_servers = ['https://a/b']": `"https://a/b" is neither`, "token_servers = 1": "cribox.toml",
	} {
		folder(t, c.cfg.RegistryConfig, name, "cribox.toml", text)
		if _, err := c.Pull(t.Context(), r.Ref("app:1"), alice); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	folder(t, c.cfg.RegistryConfig, name, "cribox.toml", fmt.Sprintf("token_servers = [%q]\n", elsewhere))
	_, err = c.Pull(t.Context(), r.Ref("app:1"), alice)
	imagetest.Must(t, err)
	if len(tokens.seen) != 1 || !strings.Contains(tokens.seen[0], basic("alice", "wonderland")) {
		t.Errorf("token server saw %q", tokens.seen)
	}
}

// TestRedirectToHTTP checks that only blobs and manifests with a digest may be redirected from
// https to plain http, and only if that is configured.
func TestRedirectToHTTP(t *testing.T) {
	store := imagetest.NewRegistry(t)
	l := imagetest.Gzip(imagetest.Noise(t, 1000))
	_, m := store.Build("1", []imagetest.Layer{l}, nil)
	front := imagetest.NewRegistry(t)
	front.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if strings.Contains(q.URL.Path, "/manifests/1") {
			return false
		}
		w.Header().Set("Location", store.URL+q.URL.Path+"?X-Amz-Signature=SECRET")
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	})
	front.Manifests["1"] = store.Manifests["1"]
	server, ca := secure(front, t)
	c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
	folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", fmt.Sprintf("server = %q\nca = %q\n", server.URL, ca))
	_, err := c.Pull(t.Context(), "reg.test/app:1", nil)
	file := filepath.Join(c.cfg.RegistryConfig, "reg.test", "cribox.toml")
	if !strings.Contains(fmt.Sprint(err), "set redirect_to_http = true in "+file) || strings.Contains(fmt.Sprint(err), "SECRET") {
		t.Error(err)
	}
	folder(t, c.cfg.RegistryConfig, "reg.test", "cribox.toml", "redirect_to_http = true\n")
	c.mustPull(t, "reg.test/app:1")
	c.mustPull(t, "reg.test/other@"+m.Digest.String()) // a digest identifies the content
	delete(front.Manifests, "1")
	store.Intercept(func(_ http.ResponseWriter, q *http.Request) bool {
		if strings.HasSuffix(q.URL.Path, "/manifests/1") {
			t.Error("a tag is asked for by plain http")
		}
		return false
	})
	front.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		w.Header().Set("Location", store.URL+q.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	})
	if _, err := c.Pull(t.Context(), "reg.test/third:1", nil); err == nil || !strings.Contains(err.Error(), "from https to plain http") {
		t.Errorf("a tag by plain http: %v", err)
	}
}

// TestMirrorSendsPages checks that a mirror which sends other content is excluded, and that the
// registry is asked.
func TestMirrorSendsPages(t *testing.T) {
	l := imagetest.Gzip(imagetest.Noise(t, 50_000))
	page := []byte("<html>" + strings.Repeat("please log in ", 100) + "</html>")
	write := func(chunked bool, b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			if chunked {
				w.(http.Flusher).Flush()
			}
			w.Write(b)
		}
	}
	for name, page := range map[string]http.HandlerFunc{
		"nothing":          write(false, nil),
		"nothing, chunked": write(true, nil),
		"a page":           write(false, page),
		"a page, chunked":  write(true, page),
		"too long":         write(true, bytes.Repeat(page, 1000)),
		"half":             write(true, l.Blob[:20_000]),
		"no content":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"an error, as 200": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"errors":[{"code":"DENIED"}]}`) },
		"a part, unasked": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusPartialContent)
			w.Write(l.Blob[:100])
		},
	} {
		for _, what := range []string{"/manifests/", "/blobs/" + digest.FromBytes(l.Blob).String()} {
			t.Run(name+" for"+what[:8], func(t *testing.T) {
				origin, mirror := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
				for _, r := range []*imagetest.Registry{origin, mirror} {
					r.Build("1", []imagetest.Layer{l, imagetest.Gzip(imagetest.Noise(t, 40_000))}, nil)
				}
				mirror.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
					if !strings.Contains(q.URL.Path, what) {
						return false
					}
					page(w, q)
					return true
				})
				c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
				folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
				img := c.mustPull(t, "reg.test/app:1")
				if info, err := os.Stat(mounted(t, c, img.ID)("noise")); err != nil || info.Size() != 40_000 {
					t.Error(info, err)
				}
				if n := mirror.Count("GET"); n == 0 || n > 4 { // manifest, config, two layers
					t.Errorf("the mirror was asked %d times", n)
				}
			})
		}
	}
}

// TestCompressedDocuments checks a proxy that compresses text although the request forbids it.
func TestCompressedDocuments(t *testing.T) {
	r := imagetest.NewRegistry(t)
	id, _ := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		name := filepath.Base(q.URL.Path)
		r.Mu.Lock()
		b, kind := r.Manifests[name].Body, r.Manifests[name].MediaType
		if name == id {
			b, kind = r.Blobs[digest.Digest(id)], "application/octet-stream"
		}
		r.Mu.Unlock()
		if b == nil || q.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(imagetest.Gzip(b).Blob)
		return true
	})
	newImages(t, nil).mustPull(t, r.Ref("app:1"))
}

// TestTwoChallenges checks that the second challenge is tried if the first one fails.
func TestTwoChallenges(t *testing.T) {
	r, tokens := imagetest.NewRegistry(t), newTokenServer(t)
	r.Build("1", nil, nil)
	tokens.reply = func(w http.ResponseWriter, _ int32) { w.WriteHeader(http.StatusUnauthorized) }
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		w.Header().Add("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, tokens.URL))
		w.Header().Add("WWW-Authenticate", `Basic realm="x"`)
		if q.Header.Get("Authorization") == basic("alice", "wonderland") {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "alice", Password: "wonderland"})
	imagetest.Must(t, err)
}

// TestManyDrips checks that stall time stops only while all layers wait.
func TestManyDrips(t *testing.T) {
	r := imagetest.NewRegistry(t)
	var layers []imagetest.Layer
	for n := range 5 {
		layers = append(layers, imagetest.Plain(imagetest.Noise(t, 100_000+n)))
	}
	r.Build("1", layers, nil)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		for _, l := range layers {
			if !imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
				continue
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
			for i := range l.Blob {
				if _, err := w.Write(l.Blob[i : i+1]); err != nil {
					return true
				}
				w.(http.Flusher).Flush()
				select {
				case <-q.Context().Done():
					return true
				case <-time.After(20 * time.Millisecond):
				}
			}
			return true
		}
		return false
	})
	c := newImages(t, func(c *Config) { c.StallTimeout = time.Second })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Pull(ctx, r.Ref("app:1"), nil); !strings.HasPrefix(fmt.Sprint(err), "RegistryUnavailable: ") {
		t.Error(err)
	}
	waitFor(t, func() bool { return len(c.puller.Waiting()) == 0 })
}

// TestExpiredWithoutAChallenge checks that a registry which refuses an expired token without a new
// challenge is asked once without a token.
func TestExpiredWithoutAChallenge(t *testing.T) {
	r, tokens := imagetest.NewRegistry(t), newTokenServer(t)
	l := imagetest.Gzip(imagetest.Noise(t, 100_000))
	r.Build("1", []imagetest.Layer{l}, nil)
	var silent atomic.Int32
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		want := "Bearer token-1"
		if imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
			want = "Bearer token-2"
		}
		switch got := q.Header.Get("Authorization"); {
		case got == want:
			return false
		case got != "":
			silent.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token",service="reg"`, tokens.URL))
	})
	c := newImages(t, nil)
	c.mustPull(t, r.Ref("app:1"))
	if silent.Load() != 1 {
		t.Errorf("%d requests with an old token", silent.Load())
	}
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool { w.WriteHeader(http.StatusUnauthorized); return true })
	before := r.Count("")
	if _, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{RegistryToken: "old"}); !errdefs.IsUnauthorized(err) {
		t.Error(err)
	}
	if n := r.Count("") - before; n > 2 {
		t.Errorf("%d requests for one refusal", n)
	}
}

// TestRedactKeepsErrorText checks that an error does not reveal a password that is also one of
// cribox's words, and does not contain a password that a server echoes.
func TestRedactKeepsErrorText(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"you are %s"}]}`, strings.TrimPrefix(q.Header.Get("Authorization"), "Basic "))
		return true
	})
	for _, password := range []string{"pass", "user", "name", "manifest", "Forbidden"} {
		_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "alice", Password: password})
		text := fmt.Sprint(err)
		if !strings.Contains(text, "403 Forbidden for manifest 1") || !strings.Contains(text, "the request had a user name and password") {
			t.Errorf("password %q: %v", password, err)
		}
	}
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		given := q.Header.Get("Authorization")
		if given == "" {
			return unauthorized(w, `Basic realm="x"`)
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"%s is wrong, wonderland too, %s"}]}`, given, strings.TrimPrefix(given, "Basic "))
		return true
	})
	_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "alice", Password: "wonderland"})
	given := strings.TrimPrefix(basic("alice", "wonderland"), "Basic ")
	if text := fmt.Sprint(err); strings.Contains(text, "wonderland") || strings.Contains(text, given) || !strings.Contains(text, "is wrong") {
		t.Error(err)
	}
}

// TestPartialDownloadsOutliveARestart checks that the next daemon resumes partial downloads, and
// deletes those that no pull resumes.
func TestPartialDownloadsOutliveARestart(t *testing.T) {
	r := imagetest.NewRegistry(t)
	l := imagetest.Plain(imagetest.Noise(t, 400_000))
	r.Build("1", []imagetest.Layer{l}, nil)
	blob := digest.FromBytes(l.Blob)
	arrived := make(chan struct{}, 1)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !imagetest.IsBlobGet(q, blob) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
		w.Write(l.Blob[:300_000])
		w.(http.Flusher).Flush()
		arrived <- struct{}{}
		<-q.Context().Done()
		return true
	})
	c := newImages(t, nil)
	partial := c.blobs.IngestFile(imageref.Target{Domain: r.Host()}.IngestRef(blob))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Pull(ctx, r.Ref("app:1"), nil); close(done) }()
	<-arrived
	waitFor(t, func() bool { info, err := os.Stat(partial); return err == nil && info.Size() == 300_000 })
	cancel()
	<-done
	waitFor(t, func() bool { return len(c.puller.Waiting()) == 0 })
	r.Intercept(nil)
	imagetest.Must(t, os.MkdirAll(filepath.Join(c.cfg.Root, "content", "ingest", "junk"), 0o700))
	c = reopen(t, c.cfg.Root)
	if exists(filepath.Join(c.cfg.Root, "content", "ingest", "junk")) {
		t.Error("what is no download stays")
	}
	before := r.BlobBytes.Load()
	c.mustPull(t, r.Ref("app:1"))
	if n := r.BlobBytes.Load() - before; n > 110_000+10_000 {
		t.Errorf("%d bytes fetched after the restart", n)
	}
	if exists(partial) {
		t.Error("the partial download stays")
	}
}

// TestSilentStart checks that there is no warning about a file system without fs-verity.
func TestSilentStart(t *testing.T) {
	var out bytes.Buffer
	was := log.L.Logger.Out
	log.L.Logger.SetOutput(&out)
	defer log.L.Logger.SetOutput(was)
	level := log.L.Logger.GetLevel()
	newImages(t, nil)
	if out.Len() > 0 {
		t.Errorf("the start says %s", out.String())
	}
	if log.L.Logger.GetLevel() != level {
		t.Error("the level of the log has changed")
	}
}

// TestRedirectToAnotherRegistry checks a registry that is an alias of another one, which requires
// its own token: it does not receive our credentials.
func TestRedirectToAnotherRegistry(t *testing.T) {
	front, back, tokens := imagetest.NewRegistry(t), imagetest.NewRegistry(t), newTokenServer(t)
	back.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
	back.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		return q.Header.Get("Authorization") != "Bearer token-1" && unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token",scope="repository:app:pull"`, tokens.URL))
	})
	front.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Header.Get("Authorization") != basic("alice", "wonderland") {
			return unauthorized(w, `Basic realm="x"`)
		}
		w.Header().Set("Location", back.URL+q.URL.Path)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	})
	_, err := newImages(t, nil).Pull(t.Context(), front.Ref("app:1"), &registry.Auth{Username: "alice", Password: "wonderland"})
	imagetest.Must(t, err)
	if want := []string{"GET  scope=repository%3Aapp%3Apull"}; fmt.Sprint(tokens.seen) != fmt.Sprint(want) {
		t.Errorf("its token server saw %q, want %q", tokens.seen, want)
	}
}

// TestNamesOfTypes checks that Docker's and OCI's names of the same type are interchangeable.
func TestNamesOfTypes(t *testing.T) {
	for _, kind := range []string{ocispec.MediaTypeImageManifest, manifest.DockerManifest, "application/json", ""} {
		for _, own := range []string{ocispec.MediaTypeImageManifest, manifest.DockerManifest} {
			r := imagetest.NewRegistry(t)
			_, m := r.Build("", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, func(m *ocispec.Manifest, _ *ocispec.Image) { m.MediaType = own })
			entry := platform(m, "linux", runtime.GOARCH, "")
			entry.MediaType = manifest.DockerManifest
			r.PutManifest("1", manifest.DockerList, index(entry))
			r.Mu.Lock()
			r.Manifests[m.Digest.String()] = imagetest.Served{MediaType: kind, Body: r.Manifests[m.Digest.String()].Body}
			r.Mu.Unlock()
			c := newImages(t, nil)
			for range 2 {
				c.mustPull(t, r.Ref("app:1"))
			}
			c.mustPull(t, r.Ref("app@"+m.Digest.String()))
		}
	}
}

// TestHeadWithoutMediaType checks a second pull whose HEAD response has no usable type, for a document without
// a mediaType.
func TestHeadWithoutMediaType(t *testing.T) {
	r := imagetest.NewRegistry(t)
	_, m := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, func(m *ocispec.Manifest, _ *ocispec.Image) { m.MediaType = "" })
	r.Manifests["1"] = imagetest.Served{MediaType: ocispec.MediaTypeImageManifest, Body: r.Manifests["1"].Body}
	for _, vague := range []string{"", "application/octet-stream"} {
		r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
			if q.Method != http.MethodHead {
				return false
			}
			w.Header()["Content-Type"] = []string{vague}
			w.Header().Set("Docker-Content-Digest", m.Digest.String())
			return true
		})
		c := newImages(t, nil)
		for range 2 {
			c.mustPull(t, r.Ref("app:1"))
		}
	}
}

// TestOddAnswersForBlobs checks that a response with all bytes of the blob is accepted, whatever
// its status.
func TestOddAnswersForBlobs(t *testing.T) {
	l := imagetest.Gzip(imagetest.Noise(t, 100_000))
	plain := imagetest.Plain(imagetest.Noise(t, 110_000))
	for name, answer := range map[string]func(w http.ResponseWriter, b []byte){
		"a range that is all": func(w http.ResponseWriter, b []byte) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(b)-1, len(b)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(b)
		},
		"203": func(w http.ResponseWriter, b []byte) { w.WriteHeader(http.StatusNonAuthoritativeInfo); w.Write(b) },
		"compressed for the way": func(w http.ResponseWriter, b []byte) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(imagetest.Gzip(b).Blob)
		},
		"compressed for the way, in chunks": func(w http.ResponseWriter, b []byte) {
			w.Header().Set("Content-Encoding", "gzip")
			w.(http.Flusher).Flush()
			w.Write(imagetest.Gzip(b).Blob)
		},
		"stored compressed": func(w http.ResponseWriter, b []byte) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(b)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			r.Build("1", []imagetest.Layer{l, plain}, nil)
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				for _, l := range []imagetest.Layer{l, plain} {
					if imagetest.IsBlobGet(q, digest.FromBytes(l.Blob)) {
						answer(w, l.Blob)
						return true
					}
				}
				return false
			})
			c := newImages(t, nil)
			img := c.mustPull(t, r.Ref("app:1"))
			if info, err := os.Stat(mounted(t, c, img.ID)("noise")); err != nil || info.Size() != 110_000 {
				t.Error(info, err)
			}
		})
	}
}

// TestTokenServerWithoutOAuth checks that a token server without POST is asked with GET.
func TestTokenServerWithoutOAuth(t *testing.T) {
	for _, code := range []int{400, 401, 404, 405} {
		r := imagetest.NewRegistry(t)
		r.Build("1", nil, nil)
		tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Method == http.MethodPost || q.Header.Get("Authorization") != basic("", "refresh") {
				w.WriteHeader(code)
				return
			}
			fmt.Fprint(w, `{"token":"good"}`)
		}))
		t.Cleanup(tokens.Close)
		r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
			return q.Header.Get("Authorization") != "Bearer good" && unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token"`, tokens.URL))
		})
		_, err := newImages(t, nil).Pull(t.Context(), r.Ref("app:1"), &registry.Auth{IdentityToken: "refresh"})
		imagetest.Must(t, err)
	}
}

// TestUnreadableDownloadStays checks that a partial download that is temporarily unreadable is
// kept.
func TestUnreadableDownloadStays(t *testing.T) {
	c := newImages(t, nil)
	ingest := func(name string) string { return filepath.Join(c.cfg.Root, "content", "ingest", name) }
	for _, name := range []string{"unreadable", "without", "other"} {
		imagetest.Must(t, os.MkdirAll(ingest(name), 0o700))
	}
	imagetest.Must(t, os.Symlink("ref", filepath.Join(ingest("unreadable"), "ref"))) // ELOOP
	imagetest.Must(t, os.WriteFile(filepath.Join(ingest("other"), "ref"), []byte("reg.example sha256:x"), 0o600))
	reopen(t, c.cfg.Root)
	for name, want := range map[string]bool{"unreadable": true, "without": false, "other": false} {
		if got := exists(ingest(name)); got != want {
			t.Errorf("%s: there is %v, want %v", name, got, want)
		}
	}
}
