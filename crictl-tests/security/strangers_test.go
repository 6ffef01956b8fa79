package security

import (
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// impostor is a registry of somebody who knows digests, which anybody can read in a pod's status, and none of the bytes: it claims by HEAD to
// have everything.
type impostor struct {
	*stranger
	manifest reply            // what the tag "1" is
	claims   string           // the digest that a HEAD of the tag is answered with
	has      map[string]reply // by digest
}

func newImpostor(t testing.TB) *impostor {
	s := &impostor{has: map[string]reply{}}
	s.stranger = listenAs(t, "127.0.0.1", func(w http.ResponseWriter, q *http.Request) {
		name := filepath.Base(q.URL.Path)
		s.mu.Lock()
		doc, ok := s.has[name]
		if name == "1" {
			doc, ok = s.manifest, s.manifest.body != nil
		}
		claims := s.claims
		s.mu.Unlock()
		if q.Method == http.MethodHead {
			if name == "1" && claims != "" {
				w.Header().Set("Docker-Content-Digest", claims)
			}
			w.Header().Set("Content-Type", manifestType)
			return
		}
		if !ok {
			notHere(w, q)
			return
		}
		w.Header().Set("Content-Type", doc.kind)
		_, _ = w.Write(doc.body)
	})
	return s
}

func (s *impostor) ref(object string) string { return s.Listener.Addr().String() + "/app" + object }

func (s *impostor) set(manifest reply, claims string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifest, s.claims = manifest, claims
}

// give serves an image that the stranger has a right to.
func (s *impostor) give(img fixture.Image, config []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifest = reply{string(img.MediaType), img.Manifest}
	s.has[img.ConfigDigest.String()] = reply{configType, config}
	for _, l := range img.Layers {
		s.has[l.Digest.String()] = reply{"application/octet-stream", l.Blob}
	}
}

// wantOnlyOwnNames fails when an image is listed under a stranger's name.
func wantOnlyOwnNames(d *harness.Daemon, s *impostor, id string) {
	d.Helper()
	i := d.ImageStatus(id)
	if i == nil {
		d.Fatal("the private image is gone")
	}
	for _, name := range slices.Concat(i.RepoTags, i.RepoDigests) {
		if strings.HasPrefix(name, s.Listener.Addr().String()) {
			d.Errorf("the private image is listed as %s", name)
		}
	}
}

// privateImage pulls an image that needs credentials.
func privateImage(d *harness.Daemon) (id string, img fixture.Image) {
	d.Helper()
	id, err := d.TryPull(d.Ref("private:1"), harness.Account)
	d.Must(err)
	img, err = d.Registry().Image("private:1")
	d.Must(err)
	return id, img
}

// TestSEC73StrangersDigest: whoever claims to have what a digest names, and sends nothing of it, is not given the image that is here.
func TestSEC73StrangersDigest(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	id, private := privateImage(d)
	s := newImpostor(t)
	own := newScripted(t)
	config := own.put("", configType, []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
	s.set(reply{manifestType, []byte(`{"schemaVersion":2,"config":` + config + `,"layers":[]}`)}, "")
	s.has = own.documents
	mine, err := d.TryPull(s.ref(":1"), nil) // so that the name is known, and a HEAD may do
	d.Must(err)

	s.set(reply{}, private.Digest.String())
	for _, ref := range []string{s.ref(":1"), s.ref("@" + private.Digest.String())} {
		if got, err := d.TryPull(ref, nil); err == nil {
			t.Errorf("%s is pulled as %s", ref, got)
		}
	}
	entry := `{"mediaType":"` + string(private.MediaType) + `","digest":"` + private.Digest.String() + `","size":` + strconv.Itoa(len(private.Manifest)) + `}`
	s.set(reply{indexType, []byte(`{"schemaVersion":2,"manifests":[` + entry + `]}`)}, "")
	if got, err := d.TryPull(s.ref(":1"), nil); err == nil {
		t.Errorf("an index that names the private manifest is pulled as %s", got)
	}
	wantOnlyOwnNames(d, s, id)
	if i := d.ImageStatus(s.ref(":1")); i == nil || i.Id != mine {
		t.Errorf("the stranger's own image: %v", i)
	}
	d.Restart()
	wantOnlyOwnNames(d, s, id)
}

// TestSEC74StrangersConfig: a manifest that names the configuration, or the layers, of a private image is worth what comes with it.
func TestSEC74StrangersConfig(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	id, private := privateImage(d)
	junk, err := fixture.NewLayer(mustTar(t, fixture.Entry{Name: "junk"}), fixture.Gzip)
	d.Must(err)
	bytes := private.Config()
	config := `{"mediaType":"` + configType + `","digest":"` + private.ConfigDigest.String() + `","size":` + strconv.Itoa(len(bytes)) + `}`
	layer := func(digest string, size int) string {
		return `{"mediaType":"` + layerType + `+gzip","digest":"` + digest + `","size":` + strconv.Itoa(size) + `}`
	}
	junkLayer := layer(junk.Digest.String(), len(junk.Blob))
	privateLayer := layer(private.Layers[0].Digest.String(), len(private.Layers[0].Blob))
	for _, row := range []struct {
		name, layer string
		has         map[string][]byte
		want        codes.Code
	}{
		{"nothing but junk", junkLayer, map[string][]byte{junk.Digest.String(): junk.Blob}, codes.NotFound},
		{"the configuration and junk", junkLayer, map[string][]byte{junk.Digest.String(): junk.Blob, private.ConfigDigest.String(): bytes}, codes.DataLoss},
		{"the configuration and names of layers", privateLayer, map[string][]byte{private.ConfigDigest.String(): bytes}, codes.NotFound},
		{"other bytes for a layer", privateLayer, map[string][]byte{private.ConfigDigest.String(): bytes,
			private.Layers[0].Digest.String(): make([]byte, len(private.Layers[0].Blob))}, codes.DataLoss},
	} {
		s := newImpostor(t)
		s.set(reply{manifestType, []byte(`{"schemaVersion":2,"config":` + config + `,"layers":[` + row.layer + `]}`)}, "")
		for digest, b := range row.has {
			s.has[digest] = reply{"application/octet-stream", b}
		}
		_, err := d.TryPull(s.ref(":1"), nil)
		if err == nil {
			t.Errorf("%s: pulled", row.name)
		} else {
			harness.WantCode(t, err, row.want)
		}
		wantOnlyOwnNames(d, s, id)
	}

	// An own configuration with the private layers: the same, by way of the digest of what a layer unpacks to.
	s := newImpostor(t)
	mine := []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["` + private.Layers[0].DiffID.String() + `"]},"author":"me"}`)
	own := newScripted(t)
	s.set(reply{manifestType, []byte(`{"schemaVersion":2,"config":` + own.put("", configType, mine) + `,"layers":[` + junkLayer + `]}`)}, "")
	s.has = own.documents
	s.has[junk.Digest.String()] = reply{"application/octet-stream", junk.Blob}
	_, err = d.TryPull(s.ref(":1"), nil)
	harness.WantCode(t, err, codes.DataLoss)

	// Whoever really has the image gives it, and the private one is as it was.
	honest := newImpostor(t)
	honest.give(private, bytes)
	got, err := d.TryPull(honest.ref(":1"), nil)
	d.Must(err)
	if got != id {
		t.Errorf("the same image of another registry is %s, not %s", got, id)
	}
	d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.Image.Image = id })).Exec("true")
}
