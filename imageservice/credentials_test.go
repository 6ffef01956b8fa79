package imageservice

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/registry"
)

// closed makes a registry require basic authentication, and returns a function that lists the
// headers that it received.
func closed(r *imagetest.Registry, want string) func() []string {
	var mu sync.Mutex
	var seen []string
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		given := q.Header.Get("Authorization")
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(seen, given) {
			seen = append(seen, given)
		}
		return want != "" && given != want && unauthorized(w, `Basic realm="x"`)
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Sorted(slices.Values(seen))
	}
}

// credentialsFile writes a file of the node's credentials.
func credentialsFile(t testing.TB, c *Config, text string) {
	t.Helper()
	c.Credentials = filepath.Join(t.TempDir(), "credentials.json")
	imagetest.Must(t, os.WriteFile(c.Credentials, []byte(text), 0o600))
}

// TestNodeCredentials checks that a pull without credentials uses those of the node, that a change
// of the file counts at once, and that a pull's own credentials are never replaced.
func TestNodeCredentials(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
	seen := closed(r, basic("node", "wonderland"))
	c := newImages(t, func(c *Config) {
		credentialsFile(t, c, fmt.Sprintf(`{"auths": {%q: {"username": "node", "password": "wrong"}}}`, r.Host()+"/app"))
	})
	_, err := c.Pull(t.Context(), r.Ref("app:1"), nil)
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), c.cfg.Credentials) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("the wrong password of the node: %v", err)
	}
	if _, err := c.Pull(t.Context(), r.Ref("other:1"), nil); !errdefs.IsUnauthorized(err) {
		t.Errorf("another repository: %v", err)
	}
	text := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, r.Host(), strings.TrimPrefix(basic("node", "wonderland"), "Basic "))
	imagetest.Must(t, os.WriteFile(c.cfg.Credentials, []byte(text), 0o600))
	c.mustPull(t, r.Ref("app:1"))
	_, err = c.Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "pod", Password: "bad"})
	if !errdefs.IsUnauthorized(err) {
		t.Errorf("a pod with a wrong password has the node's: %v", err)
	}
	_, err = c.Pull(t.Context(), r.Ref("app:1"), &registry.Auth{Username: "pod", Password: "bad", ServerAddress: "other.test"})
	if !errdefs.IsUnauthorized(err) {
		t.Errorf("a pod with credentials for another registry has the node's: %v", err)
	}
	want := []string{"", basic("node", "wonderland"), basic("node", "wrong"), basic("pod", "bad")}
	slices.Sort(want)
	if got := seen(); !slices.Equal(got, want) {
		t.Errorf("the registry received %q, want %q", got, want)
	}
	imagetest.Must(t, os.WriteFile(c.cfg.Credentials, []byte(`{"auths": wonderland`), 0o600))
	_, err = c.Pull(t.Context(), r.Ref("app:1"), nil)
	if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "is not JSON") || strings.Contains(err.Error(), "wonderland") {
		t.Errorf("with a damaged file: %v", err)
	}
}

// TestSEC83CredentialsOfMirrors checks that a mirror receives the node's credentials for the mirror
// and nothing else: neither those of the pull, nor the node's for the registry.
func TestSEC83CredentialsOfMirrors(t *testing.T) {
	origin, mirror := imagetest.NewRegistry(t), imagetest.NewRegistry(t)
	layer := imagetest.Gzip(imagetest.Noise(t, 1000))
	origin.Build("1", []imagetest.Layer{layer}, nil)
	mirror.Build("1", []imagetest.Layer{layer}, nil)
	hosts := fmt.Sprintf("server = %q\n[host.'%s/proxy']\n", origin.URL, mirror.URL)
	for name, row := range map[string]struct {
		file      string
		to, other []string // what the mirror and the registry receive
	}{
		"nothing for the mirror": {`{"auths": {"reg.test": {"username": "node", "password": "x"}}}`,
			[]string{""}, []string{"", basic("pod", "wonderland")}},
		"for the mirror": {fmt.Sprintf(`{"auths": {"reg.test": {"username": "node", "password": "x"},
			"%s/proxy/app": {"username": "mirror", "password": "looking-glass"}}}`, mirror.Host()),
			[]string{"", basic("mirror", "looking-glass")}, nil},
		"refused by the mirror": {fmt.Sprintf(`{"auths": {%q: {"username": "mirror", "password": "x"}}}`, mirror.Host()),
			[]string{"", basic("mirror", "x")}, []string{"", basic("pod", "wonderland")}},
	} {
		mirrored, original := closed(mirror, basic("mirror", "looking-glass")), closed(origin, basic("pod", "wonderland"))
		c := newImages(t, func(c *Config) {
			c.RegistryConfig = t.TempDir()
			credentialsFile(t, c, row.file)
		})
		folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", hosts)
		if _, err := c.Pull(t.Context(), "reg.test/app:1", &registry.Auth{Username: "pod", Password: "wonderland"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := mirrored(); !slices.Equal(got, row.to) {
			t.Errorf("%s: the mirror received %q, want %q", name, got, row.to)
		}
		if got := original(); !slices.Equal(got, row.other) {
			t.Errorf("%s: the registry received %q, want %q", name, got, row.other)
		}
	}
}

// TestSeveralRegistryFolders checks that the first folder with the registry is used, and that the
// keys of a hosts.toml which have no effect do no harm.
func TestSeveralRegistryFolders(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 1000))}, nil)
	first, second := t.TempDir(), t.TempDir()
	c := newImages(t, func(c *Config) { c.RegistryConfig = first + ":" + second })
	folder(t, second, "reg.test", "hosts.toml", fmt.Sprintf("server = %q\n[host.%q.rewrite]\n'^(.*)$' = 'x/$1'\n", r.URL, r.URL))
	c.mustPull(t, "reg.test/app:1")
	folder(t, first, "reg.test", "hosts.toml", "server = 'http://127.0.0.1:1'\n")
	if _, err := c.Pull(t.Context(), "reg.test/app:1", nil); err == nil {
		t.Error("the second folder is used although the first has the registry")
	}
}
