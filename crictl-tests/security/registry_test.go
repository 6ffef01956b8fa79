package security

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// stranger is a server to which something hostile points. It remembers what it was told.
type stranger struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
}

// listenAs starts a stranger on an address of loopback that is not the registry's.
func listenAs(t testing.TB, ip string, answer http.HandlerFunc) *stranger {
	t.Helper()
	s := &stranger{}
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, q)
		s.mu.Unlock()
		answer(w, q)
	}))
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *stranger) heard() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// wantNoSecrets fails when a request carried anything that only the registry may see.
func (s *stranger) wantNoSecrets(t testing.TB) {
	t.Helper()
	for _, q := range s.heard() {
		for _, name := range []string{"Authorization", "Cookie", "Proxy-Authorization"} {
			if v := q.Header.Get(name); v != "" {
				t.Errorf("a stranger is sent %s: %s", name, v)
			}
		}
		if strings.Contains(q.URL.String(), fixture.Password) {
			t.Errorf("a stranger is sent a password in %s", q.URL)
		}
	}
}

func notHere(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not here", http.StatusNotFound) }

// TestSEC44LayerURLs: nothing is fetched from where a descriptor points.
func TestSEC44LayerURLs(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	evil := listenAs(t, "127.0.0.1", notHere)
	l, err := fixture.NewLayer(mustTar(t, fixture.Entry{Name: "f", Data: []byte("x")}), fixture.Gzip)
	d.Must(err)
	for _, kind := range []string{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", layerType + "+gzip"} {
		img, err := fixture.FromLayers(v1.Config{}, func(m *v1.Manifest, _ *v1.ConfigFile) {
			m.Layers[0].URLs = []string{evil.URL + "/layer"}
			m.Layers[0].MediaType = types.MediaType(kind)
		}, l)
		d.Must(err)
		d.Must(d.Registry().Add("private:urls", img))
		id, err := d.TryPull(d.Ref("private:urls"), harness.Account) // the registry has the layer
		d.Must(err)
		d.Must(d.RemoveImage(id))
	}
	if n := len(evil.heard()); n > 0 {
		t.Errorf("the address of a descriptor was asked %d times", n)
	}
}

func mustTar(t testing.TB, entries ...fixture.Entry) []byte {
	t.Helper()
	b, err := fixture.Tar(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSEC45Redirects: credentials stay with the registry when it sends us elsewhere, and it cannot send us for ever.
func TestSEC45Redirects(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	for _, ip := range []string{"127.0.0.1", "127.0.0.2"} { // another port, another host
		for _, name := range []string{"private:1", "token:1"} {
			r := fixture.ForTest(t)
			evil := listenAs(t, ip, notHere)
			r.Inject(fixture.Fault{Match: "GET .*/blobs/", Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {evil.URL + "/blob"}}})
			if _, err := d.TryPull(r.Ref(name), harness.Account); err == nil {
				t.Errorf("%s was pulled without its blobs", name)
			}
			if len(evil.heard()) == 0 {
				t.Errorf("%s: nobody followed the redirect, this proves nothing", name)
			}
			evil.wantNoSecrets(t)
		}
	}
	r := fixture.ForTest(t)
	round := r.Inject(fixture.Fault{Match: "/blobs/", Status: http.StatusFound, Header: http.Header{"Location": {"/v2/library/busybox/blobs/x"}}})
	if _, err := d.TryPull(r.Ref(harness.Busybox), nil); err == nil {
		t.Error("a loop of redirects ends in an image")
	}
	if n := round.Hits(); n > 4*11 { // a configuration and three layers at most, at the same time
		t.Errorf("a loop was followed %d times", n)
	}
	for _, to := range []string{"file:///etc/passwd", "//", "gopher://127.0.0.1/x", "unix:///run/x"} {
		r := fixture.ForTest(t)
		r.Inject(fixture.Fault{Match: "/blobs/", Status: http.StatusFound, Header: http.Header{"Location": {to}}})
		if _, err := d.TryPull(r.Ref(harness.Busybox), nil); err == nil {
			t.Errorf("pulled by way of %s", to)
		}
	}
}

// TestSEC46Realm: a registry cannot name a stranger to whom the password is told, nor a host of the node's network that is asked at all.
func TestSEC46Realm(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	evil := listenAs(t, "127.0.0.2", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) })
	for _, realm := range []string{
		evil.URL + "/token", strings.Replace(evil.URL, "http:", "https:", 1), "http://169.254.169.254/latest/meta-data", "https://169.254.169.254/x",
		"file:///etc/passwd", "https://localhost/x", "https://intranet/token", "https://alice:word@127.0.0.1/token", "//127.0.0.2/x", "mailto:x", "", "%zz",
	} {
		for _, scheme := range []string{"Bearer", "bearer"} {
			r := fixture.ForTest(t)
			r.Inject(fixture.Fault{Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {fmt.Sprintf(`%s realm=%q,service="s"`, scheme, realm)}}})
			_, err := d.TryPull(r.Ref("token:1"), harness.Account)
			harness.WantCode(t, err, codes.Unauthenticated)
		}
	}
	if n := len(evil.heard()); n > 0 {
		t.Errorf("a token server that is not the registry's was asked %d times", n)
	}
	evil.wantNoSecrets(t)
}

// TestSEC47TLS: who is asked for by https is spoken to by https with a certificate that proves itself.
func TestSEC47TLS(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	var asked sync.Map
	self := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) { asked.Store("tls "+q.URL.Path, q) }))
	t.Cleanup(self.Close)
	plain := listenAs(t, "127.0.0.1", notHere)
	for name, server := range map[string]string{"self.test": self.URL, "plain.test": strings.Replace(plain.URL, "http:", "https:", 1)} {
		dir := filepath.Join(d.RegistryConfig(), name)
		d.Must(os.MkdirAll(dir, 0o755))
		d.Must(os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \""+server+"\"\n"), 0o600))
		if _, err := d.TryPull(name+"/app:1", harness.Account); err == nil {
			t.Errorf("%s: pulled", name)
		}
	}
	asked.Range(func(what, _ any) bool {
		t.Errorf("a server without a good certificate was asked for %v", what)
		return true
	})
	if n := len(plain.heard()); n > 0 {
		t.Errorf("a registry that was to be asked by https was asked %d times without", n)
	}
}

// scripted is a registry that answers with whatever the test says, and says it is right.
type scripted struct {
	*stranger
	mu        sync.Mutex
	documents map[string]reply // by tag or digest, and by digest of blobs
}

type reply struct {
	kind string
	body []byte
}

func newScripted(t testing.TB) *scripted {
	s := &scripted{documents: map[string]reply{}}
	s.stranger = listenAs(t, "127.0.0.1", func(w http.ResponseWriter, q *http.Request) {
		s.mu.Lock()
		r, ok := s.documents[filepath.Base(q.URL.Path)]
		s.mu.Unlock()
		if !ok {
			notHere(w, q)
			return
		}
		w.Header().Set("Content-Type", r.kind)
		_, _ = w.Write(r.body)
	})
	return s
}

func (s *scripted) ref(tag string) string { return s.Listener.Addr().String() + "/app:" + tag }

// put serves a document under its digest, and a tag if it has one. It returns a descriptor in JSON.
func (s *scripted) put(tag, kind string, body []byte) string {
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(body))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.documents[digest] = reply{kind, body}
	if tag != "" {
		s.documents[tag] = reply{kind, body}
	}
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, kind, digest, len(body))
}

// TestSEC48Ambiguous: a document that two readers could take for different things is taken for nothing.
func TestSEC48Ambiguous(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := newScripted(t)
	config := r.put("", configType, []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
	entry := r.put("good", manifestType, []byte(`{"schemaVersion":2,"mediaType":"`+manifestType+`","config":`+config+`,"layers":[]}`))
	if _, err := d.TryPull(r.ref("good"), nil); err != nil {
		t.Fatalf("the plain document: %v", err)
	}
	both := `{"schemaVersion":2,"config":` + config + `,"layers":[],"manifests":[` + entry + `]}`
	for name, doc := range map[string]string{
		"both":             both,
		"both and a type":  `{"mediaType":"` + indexType + `",` + both[1:],
		"other type":       `{"schemaVersion":2,"mediaType":"` + indexType + `","config":` + config + `,"layers":[]}`,
		"key twice":        `{"schemaVersion":2,"config":` + config + `,"layers":[],"layers":[]}`,
		"key in two cases": `{"schemaVersion":2,"config":` + config + `,"layers":[],"Layers":[]}`,
		"two documents":    `{"schemaVersion":2,"config":` + config + `,"layers":[]}{"schemaVersion":2}`,
	} {
		for _, kind := range []string{manifestType, indexType, "application/vnd.docker.distribution.manifest.v2+json", "application/json", ""} {
			if name == "other type" && (kind == "" || kind == "application/json") {
				continue // nobody says otherwise: it is an index without manifests, see the next line of tests
			}
			r.put("1", kind, []byte(doc))
			_, err := d.TryPull(r.ref("1"), nil)
			if !slices.Contains([]codes.Code{codes.InvalidArgument, codes.Unimplemented}, status.Code(err)) {
				t.Errorf("%s, served as %q: %v", name, kind, err)
			}
		}
	}
}

// TestSEC49Digests: a digest is a sha256 in lower case, or nothing is done with it.
func TestSEC49Digests(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := newScripted(t)
	host := plantCanary(d)
	hex := strings.Repeat("a", 64)
	config := r.put("", configType, []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
	for _, digest := range []string{
		"sha256:../../x", "sha256:" + host.path("secret"), "sha256:", "sha256", "", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha512:" + hex + hex,
		"sha256:" + strings.ToUpper(hex), "sha256:" + hex[:63], "sha256:" + hex + "a", "sha256:" + strings.Repeat("a", 10<<10), "SHA256:" + hex, "sha256:" + hex[:62] + "/.",
		"sha256:" + hex + "\n",
	} {
		text, err := json.Marshal(digest)
		d.Must(err)
		evil := `{"mediaType":"` + layerType + `","digest":` + string(text) + `,"size":2}`
		for place, doc := range map[string]string{
			"config": `{"schemaVersion":2,"config":` + strings.Replace(evil, layerType, configType, 1) + `,"layers":[]}`,
			"layer":  `{"schemaVersion":2,"config":` + config + `,"layers":[` + evil + `]}`,
			"diff":   `{"schemaVersion":2,"config":` + r.put("", configType, []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[`+string(text)+`]}}`)) + `,"layers":[` + config + `]}`,
		} {
			r.put("1", manifestType, []byte(strings.Replace(doc, `"layers":[{"mediaType":"`+configType, `"layers":[{"mediaType":"`+layerType, 1)))
			_, err := d.TryPull(r.ref("1"), nil)
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("digest %.80q of the %s: %v", digest, place, err)
			}
		}
		index := `{"schemaVersion":2,"manifests":[` + strings.Replace(evil, layerType, manifestType, 1) + `]}`
		r.put("1", indexType, []byte(index))
		if _, err := d.TryPull(r.ref("1"), nil); status.Code(err) != codes.InvalidArgument {
			t.Errorf("digest %.80q of an index: %v", digest, err)
		}
		if digest != "" {
			if _, err := d.TryPull(d.Ref("app")+"@"+digest, nil); status.Code(err) != codes.InvalidArgument {
				t.Errorf("digest %.80q of a reference: %v", digest, err)
			}
		}
	}
	host.wantUntouched("digests")
}

// TestSEC50WrongBytes: what is not what was promised is no image, and leaves no blob behind.
func TestSEC50WrongBytes(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	for _, name := range []string{"wrong-bytes", "small-size", "large-size", "diff-id", "diff-id-count", "missing-layer", "missing-config"} {
		if _, err := d.TryPull(d.Ref("broken:"+name), nil); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for name, fault := range map[string]fixture.Fault{
		"other blobs":     {Match: "GET .*/blobs/", Corrupt: true},
		"other manifests": {Match: "GET .*/manifests/", Corrupt: true},
		"short for ever":  {Match: "GET .*/blobs/", Truncate: true, TruncateAfter: 0},
	} {
		r := fixture.ForTest(t)
		r.Inject(fault)
		if _, err := d.TryPull(r.Ref("web:1"), nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	digest, err := d.Registry().RefByDigest("app:1")
	d.Must(err)
	_, sum, _ := strings.Cut(digest, "@")
	r := newScripted(t)
	other, err := d.Registry().Image("web:1")
	d.Must(err)
	r.documents[sum] = reply{manifestType, other.Manifest}
	if _, err := d.TryPull(strings.TrimSuffix(r.ref(""), ":")+"@"+sum, nil); status.Code(err) != codes.DataLoss {
		t.Errorf("another manifest under a digest: %v", err)
	}
	if list := d.ListImages(); len(list) > 0 {
		t.Errorf("images: %v", list)
	}
	for _, path := range regularFiles(t, filepath.Join(d.Root, "content", "blobs", "sha256")) {
		data, err := os.ReadFile(path)
		d.Must(err)
		if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != filepath.Base(path) {
			t.Errorf("blob %s has digest %s", filepath.Base(path), got)
		}
	}
}

func regularFiles(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all
}

// TestSEC51DocumentBombs: no document of a registry fills the daemon's memory.
func TestSEC51DocumentBombs(t *testing.T) {
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := newScripted(t)
	config := r.put("", configType, []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
	endless := func(w http.ResponseWriter, _ *http.Request) {
		piece := bytes.Repeat([]byte(" "), 1<<20)
		for range 1 << 12 {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
		t.Error("somebody has read 4 GiB")
	}
	flood := listenAs(t, "127.0.0.1", endless)
	angry := listenAs(t, "127.0.0.1", func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		endless(w, q)
	})
	token := listenAs(t, "127.0.0.1", nil)
	token.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/token" {
			endless(w, q)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+token.URL+`/token",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	self := r.put("", indexType, []byte(`{"schemaVersion":2,"manifests":[]}`))
	for range 100 {
		self = r.put("", indexType, []byte(`{"schemaVersion":2,"manifests":[`+self+`]}`))
	}
	r.put("deep", indexType, []byte(`{"schemaVersion":2,"manifests":[`+self+`]}`))
	many := func(item string, n int) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	r.put("layers", manifestType, []byte(`{"schemaVersion":2,"config":`+config+`,"layers":[`+many("{}", 1_300_000)+`]}`))
	r.put("entries", indexType, []byte(`{"schemaVersion":2,"manifests":[`+many("{}", 1_300_000)+`]}`))
	r.put("nested", manifestType, []byte(`{"schemaVersion":2,"config":`+config+`,"layers":[],"x":`+strings.Repeat("[", 1_000_000)+strings.Repeat("]", 1_000_000)+`}`))
	for tag, body := range map[string]string{
		"history":     `"history":[` + many("{}", 1_300_000) + `],"rootfs":{"type":"layers","diff_ids":[]}`,
		"diffs":       `"rootfs":{"type":"layers","diff_ids":[` + many(`""`, 1_300_000) + `]}`,
		"environment": `"config":{"Env":[` + many(`""`, 1_300_000) + `]},"rootfs":{"type":"layers","diff_ids":[]}`,
	} {
		r.put(tag, manifestType, []byte(`{"schemaVersion":2,"config":`+r.put("", configType, []byte(`{"os":"linux",`+body+`}`))+`,"layers":[]}`))
	}
	refs := []string{flood.Listener.Addr().String() + "/app:1", angry.Listener.Addr().String() + "/app:1", token.Listener.Addr().String() + "/app:1"}
	for _, tag := range []string{"deep", "layers", "entries", "nested", "history", "diffs", "environment"} {
		refs = append(refs, r.ref(tag))
	}
	for _, ref := range refs {
		grown := d.PeakOf(func() {
			if _, err := d.TryPull(ref, harness.Account); err == nil {
				t.Errorf("%s was accepted", ref)
			}
		})
		t.Logf("%s: +%d MiB", ref, grown>>20)
		if grown > 32<<20 {
			t.Errorf("%s: the daemon grew by %d MiB", ref, grown>>20)
		}
	}
}

// TestSEC53References: one name means one image, and an id is never a name.
func TestSEC53References(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	id := d.Pulled("app:1")
	other := d.Pulled(harness.Busybox)
	digest, err := d.Registry().RefByDigest("app:1")
	d.Must(err)
	_, sum, _ := strings.Cut(digest, "@")
	hex := strings.TrimPrefix(id, "sha256:")
	// The digest wins over a tag that means something else, and the tag does not move.
	r, err := d.Registry().RefByDigest("busybox:1")
	d.Must(err)
	_, otherSum, _ := strings.Cut(r, "@")
	got, err := d.TryPull(d.Ref("busybox:zstd")+"@"+otherSum, nil)
	d.Must(err)
	if got != other {
		t.Errorf("tag and digest: %s, want what the digest says, %s", got, other)
	}
	if i := d.ImageStatus(d.Ref("busybox:zstd")); i != nil {
		t.Errorf("a tag was made that nobody has resolved: %v", i)
	}
	for _, ref := range []string{
		id, hex, "sha256:" + hex + ":1", "a/UPPER", "docker.io/Library/x:1", "caf\u00e9/x:1", "x/\u0430pp:1", "x:5000:5000/y", "x@" + sum + "@" + sum,
		"x:1:2", "../x:1", "/x:1", "x//y:1", "x/./y", "x/../y", "-x/y:1", "x/y:.1", "x/y:" + strings.Repeat("t", 129), strings.Repeat("x/", 2000), "http://x/y:1", "x y", "x\x00y", "x/y:1\n", "[::1/x:1",
	} {
		_, err := d.TryPull(ref, nil)
		if status.Code(err) != codes.InvalidArgument || len(err.Error()) > 1000 {
			t.Errorf("PullImage %.80q: %.300v", ref, err)
		}
	}
	if list := d.ListImages(); len(list) != 2 {
		t.Errorf("images: %v", list)
	}
}

// TestSEC54SecretsInWords: an address that is signed is repeated nowhere.
func TestSEC54SecretsInWords(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	var told []string
	for _, code := range []int{http.StatusForbidden, http.StatusNotFound, http.StatusBadRequest} {
		store := listenAs(t, "127.0.0.2", nil)
		store.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			w.WriteHeader(code)
			fmt.Fprintf(w, "no: http://%s%s for %s", q.Host, q.URL, fixture.Password)
		})
		for _, to := range []string{store.URL + "/blob?sig=SECRET&x=1", "http://key:SECRET@" + store.Listener.Addr().String() + "/blob", "http://127.0.0.2:1/gone?sig=SECRET", "bad scheme://x?sig=SECRET"} {
			r := fixture.ForTest(t)
			r.Inject(fixture.Fault{Match: "GET .*/blobs/", Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {to}}})
			_, err := d.TryPull(r.Ref("private:1"), harness.Account)
			if err == nil {
				t.Fatal("pulled without blobs")
			}
			told = append(told, err.Error())
		}
	}
	words := strings.Join(told, "\n") + harness.HostFile(t, d.LogFile())
	for _, secret := range []string{"SECRET", fixture.Password} {
		if i := strings.Index(words, secret); i >= 0 {
			t.Errorf("%s is told: %s", secret, words[max(0, i-200):i+50])
		}
	}
}

// TestSEC55CachedImage: that an image is here does not spare a caller the proof that it may have it.
func TestSEC55CachedImage(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t, harness.KeepsBlobs)
	r := fixture.ForTest(t)
	for _, name := range []string{"private:1", "token:1"} {
		_, err := d.TryPull(r.Ref(name), harness.Account)
		d.Must(err)
		for who, auth := range map[string]*cri.AuthConfig{"nobody": nil, "somebody else": {Username: fixture.Username, Password: "wrong word"}} {
			r.ResetRequests()
			_, err := d.TryPull(r.Ref(name), auth)
			harness.WantCode(t, err, codes.Unauthenticated)
			if len(r.Requests()) == 0 {
				t.Errorf("%s for %s: the registry was not asked", name, who)
			}
		}
	}
}
