package imageservice

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/imagetest"
)

// TestDownloadsOfAHost checks that all pulls from a host together keep its limit, and that the keys of
// cribox.toml are checked.
func TestDownloadsOfAHost(t *testing.T) {
	for _, row := range []struct{ name, keys string }{
		{"the registry", "downloads = 1\nbytes_per_second = 100_000_000\n"},
		{"a mirror", "[host.%q]\ndownloads = 1\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			for i, tag := range []string{"1", "2"} {
				var layers []imagetest.Layer
				for range 3 {
					layers = append(layers, imagetest.Gzip(imagetest.Noise(t, 1_000_000+1000*len(layers)+i)))
				}
				r.Build(tag, layers, nil)
			}
			var now, most, seen atomic.Int32
			r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
				if !strings.Contains(q.URL.Path, "/blobs/") || q.Method != http.MethodGet {
					return false
				}
				seen.Add(1)
				most.Store(max(most.Load(), now.Add(1)))
				defer now.Add(-1)
				r.Mu.Lock()
				b := r.Blobs[digest.Digest(q.URL.Path[strings.LastIndexByte(q.URL.Path, 47)+1:])]
				r.Mu.Unlock()
				_, _ = w.Write(b) // a client that has left
				return true
			})
			c := newImages(t, func(c *Config) { c.RegistryConfig = t.TempDir() })
			hosts, keys := fmt.Sprintf("server = %q\n", r.URL), row.keys
			if row.name == "a mirror" {
				hosts, keys = fmt.Sprintf("server = 'http://127.0.0.1:1'\n[host.%q]\n", r.URL), fmt.Sprintf(keys, r.URL)
			}
			folder(t, c.cfg.RegistryConfig, "reg.test", "hosts.toml", hosts)
			folder(t, c.cfg.RegistryConfig, "reg.test", "cribox.toml", keys)
			var both sync.WaitGroup
			for _, tag := range []string{"1", "2"} {
				both.Go(func() {
					if _, err := c.Pull(t.Context(), "reg.test/app:"+tag, nil); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
			if most.Load() != 1 || seen.Load() < 8 {
				t.Errorf("%d blobs at once, %d in all", most.Load(), seen.Load())
			}
			for _, bad := range []string{"downloads = -1", "bytes_per_second = 10", "[host.'mirror.test']\ndownloads = 1",
				"[host.'https://mirror.test']\ndownload = 1"} {
				folder(t, c.cfg.RegistryConfig, "reg.test", "cribox.toml", bad)
				if _, err := c.Pull(t.Context(), "reg.test/app:1", nil); err == nil || !strings.Contains(err.Error(), "cribox.toml") {
					t.Errorf("%s: %v", bad, err)
				}
			}
		})
	}
}
