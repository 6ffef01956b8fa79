package images

import (
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// hostsToml writes the hosts.toml of a registry.
func hostsToml(d *harness.Daemon, registry, text string) {
	d.Helper()
	dir := filepath.Join(d.RegistryConfig(), registry)
	d.Must(os.MkdirAll(dir, 0o755))
	d.Must(os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600))
}

// dropIn adds a file to the configuration, before the daemon starts.
func dropIn(d *harness.Daemon, text string) {
	d.Helper()
	d.Must(os.MkdirAll(d.ConfigFile()+".d", 0o755))
	d.Must(os.WriteFile(filepath.Join(d.ConfigFile()+".d", "test.toml"), []byte(text), 0o600))
}

// TestHostsTomlNamesTheRegistryItself: its own entry with skip_verify is the registry. A pull of a tag that does not exist says so, and the
// next pull is not in its shadow.
func TestHostsTomlNamesTheRegistryItself(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	plain, err := url.Parse("http://" + d.Registry().Addr)
	d.Must(err)
	secure := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(plain))
	t.Cleanup(secure.Close)
	hostsToml(d, "own.test", fmt.Sprintf("server = %[1]q\n[host.%[1]q]\ncapabilities = [\"pull\", \"resolve\"]\nskip_verify = true\n", secure.URL))
	_, err = d.TryPull("own.test/library/busybox:none", nil)
	harness.WantCode(t, err, codes.NotFound)
	_, err = d.TryPull("own.test/library/private:1", nil)
	harness.WantCode(t, err, codes.Unauthenticated)
	for _, name := range []string{"busybox:1", "private:1"} {
		_, err = d.TryPull("own.test/library/"+name, harness.Account)
		d.Must(err)
	}
}

// TestServerOfHostsTomlGetsTheCredentials: an administrator has said where the registry is.
func TestServerOfHostsTomlGetsTheCredentials(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	d.Must(d.Registry().WriteCertsD(d.RegistryConfig(), "registry.test"))
	for _, name := range []string{"private:1", "token:1"} {
		_, err := d.TryPull("registry.test/library/"+name, harness.Account)
		d.Must(err)
	}
}

// TestKeysOfImages: limits and the stall time are the administrator's.
func TestKeysOfImages(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t, harness.KeepsBlobs)
	dropIn(d, "[images]\nstall_time = '1s'\ndownloads = 1\nunpacks = 1\nlayer_size_max = '1Mi'\n")
	d.Start()
	d.Empty = d.Ledger()
	_, err := d.TryPull(d.Ref("busybox:1"), nil)
	harness.WantCode(t, err, codes.ResourceExhausted, "layer unpacks to more than 1048576 bytes")
	r := fixture.ForTest(t)
	img, err := r.Image("scratch:1")
	d.Must(err)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/" + img.Layers[0].Digest.String(), Stall: true, StallAfter: 100})
	_, err = d.TryPull(r.Ref("scratch:1"), nil)
	harness.WantCode(t, err, codes.Unknown, "RegistryUnavailable: ", "no progress for 1s")
}

// TestDownloadGoesOnAfterAKill: what has arrived of a layer when the daemon was killed is not fetched again.
func TestDownloadGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := fixture.ForTest(t)
	img, err := r.Image("busybox:1")
	d.Must(err)
	layer := img.Layers[0]
	half := int64(len(layer.Blob)) / 2
	held := r.Inject(fixture.Fault{Match: "GET .*/blobs/" + layer.Digest.String(), Stall: true, StallAfter: half})
	go func() { _, _ = d.TryPull(r.Ref("busybox:1"), nil) }() // ends with the daemon
	d.Must(held.Wait(t.Context()))
	harness.Eventually(d, "half of the layer to be on disk", func() error {
		files, _ := filepath.Glob(filepath.Join(d.Root, "content", "ingest", "*", "data"))
		for _, f := range files {
			if info, err := os.Stat(f); err == nil && info.Size() == half {
				return nil
			}
		}
		return fmt.Errorf("there is %s", strings.Join(files, " "))
	})
	d.Kill()
	held.Remove()
	r.ResetRequests()
	d.Start()
	_, err = d.TryPull(r.Ref("busybox:1"), nil)
	d.Must(err)
	if n, bytes := r.Fetched(layer.Digest.String()); n != 1 || bytes > int64(len(layer.Blob))-half {
		t.Errorf("after the restart %d requests for %d bytes, of a layer of %d of which %d were here", n, bytes, len(layer.Blob), half)
	}
	if log, err := os.ReadFile(d.LogFile()); err != nil || strings.Contains(string(log), "verity") {
		t.Errorf("the daemon warns of fs-verity (%v)", err)
	}
}
