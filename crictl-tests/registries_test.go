package crictltests

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
)

// hostsToml writes the hosts.toml of a registry.
func (d *daemon) hostsToml(registry, text string) {
	d.Helper()
	dir := filepath.Join(d.registryConfig(), registry)
	d.must(os.MkdirAll(dir, 0o755))
	d.must(os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600))
}

// dropIn adds a file to the configuration, before the daemon starts.
func (d *daemon) dropIn(text string) {
	d.Helper()
	d.must(os.MkdirAll(d.configFile()+".d", 0o755))
	d.must(os.WriteFile(filepath.Join(d.configFile()+".d", "test.toml"), []byte(text), 0o600))
}

// TestHostsTomlNamesTheRegistryItself: its own entry with skip_verify is the registry. A pull of a tag that does not exist says so, and the
// next pull is not in its shadow.
func TestHostsTomlNamesTheRegistryItself(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	plain, err := url.Parse("http://" + d.registry().Addr)
	d.must(err)
	secure := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(plain))
	t.Cleanup(secure.Close)
	d.hostsToml("own.test", fmt.Sprintf("server = %[1]q\n[host.%[1]q]\ncapabilities = [\"pull\", \"resolve\"]\nskip_verify = true\n", secure.URL))
	_, err = d.tryPull("own.test/library/busybox:none", nil)
	wantCode(t, err, codes.NotFound)
	_, err = d.tryPull("own.test/library/private:1", nil)
	wantCode(t, err, codes.Unauthenticated)
	for _, name := range []string{"busybox:1", "private:1"} {
		_, err = d.tryPull("own.test/library/"+name, account)
		d.must(err)
	}
}

// TestServerOfHostsTomlGetsTheCredentials: an administrator has said where the registry is.
func TestServerOfHostsTomlGetsTheCredentials(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.must(d.registry().WriteCertsD(d.registryConfig(), "registry.test"))
	for _, name := range []string{"private:1", "token:1"} {
		_, err := d.tryPull("registry.test/library/"+name, account)
		d.must(err)
	}
}

// TestKeysOfImages: limits and the stall time are the administrator's.
func TestKeysOfImages(t *testing.T) {
	t.Parallel()
	d := prepareDaemon(t, keepsBlobs)
	d.dropIn("[images]\nstall_time = '1s'\ndownloads = 1\nunpacks = 1\nlayer_size_max = '1Mi'\n")
	d.start()
	d.empty = d.ledger()
	_, err := d.tryPull(d.ref("busybox:1"), nil)
	wantCode(t, err, codes.ResourceExhausted, "layer unpacks to more than 1048576 bytes")
	r := fixture.ForTest(t)
	img, err := r.Image("scratch:1")
	d.must(err)
	r.Inject(fixture.Fault{Match: "GET .*/blobs/" + img.Layers[0].Digest.String(), Stall: true, StallAfter: 100})
	_, err = d.tryPull(r.Ref("scratch:1"), nil)
	wantCode(t, err, codes.Unknown, "RegistryUnavailable: ", "nothing moved for 1s")
}

// TestDownloadGoesOnAfterAKill: what has arrived of a layer when the daemon was killed is not fetched again.
func TestDownloadGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, keepsBlobs)
	r := fixture.ForTest(t)
	img, err := r.Image("busybox:1")
	d.must(err)
	layer := img.Layers[0]
	half := int64(len(layer.Blob)) / 2
	held := r.Inject(fixture.Fault{Match: "GET .*/blobs/" + layer.Digest.String(), Stall: true, StallAfter: half})
	go func() { _, _ = d.tryPull(r.Ref("busybox:1"), nil) }() // ends with the daemon
	d.must(held.Wait(t.Context()))
	eventually(d, "half of the layer to be on disk", func() error {
		files, _ := filepath.Glob(filepath.Join(d.root, "content", "ingest", "*", "data"))
		for _, f := range files {
			if info, err := os.Stat(f); err == nil && info.Size() == half {
				return nil
			}
		}
		return fmt.Errorf("there is %s", strings.Join(files, " "))
	})
	d.kill()
	held.Remove()
	r.ResetRequests()
	d.start()
	_, err = d.tryPull(r.Ref("busybox:1"), nil)
	d.must(err)
	if n, bytes := r.Fetched(layer.Digest.String()); n != 1 || bytes > int64(len(layer.Blob))-half {
		t.Errorf("after the restart %d requests for %d bytes, of a layer of %d of which %d were here", n, bytes, len(layer.Blob), half)
	}
	if log, err := os.ReadFile(d.logFile()); err != nil || strings.Contains(string(log), "verity") {
		t.Errorf("the daemon warns of fs-verity (%v)", err)
	}
}
