package imageservice

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/signature"
)

// signer has a key pair, and signs as cosign does.
type signer struct {
	crypto.Signer
	testing.TB
}

func newSigner(t testing.TB) *signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	imagetest.Must(t, err)
	return &signer{key, t}
}

// file writes the public key to a file.
func (s *signer) file() string {
	der, err := x509.MarshalPKIXPublicKey(s.Public())
	imagetest.Must(s, err)
	path := filepath.Join(s.TempDir(), "key.pub")
	imagetest.Must(s, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644))
	return path
}

func (s *signer) sign(message []byte) []byte {
	sum, hash := sha256.Sum256(message), crypto.SHA256
	signed := sum[:]
	if _, ok := s.Public().(ed25519.PublicKey); ok {
		signed, hash = message, 0
	}
	sig, err := s.Sign(rand.Reader, signed, hash)
	imagetest.Must(s, err)
	return sig
}

// payload is the text that cosign signs.
func payload(repository, d string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},`+
		`"type":"cosign container image signature"},"optional":null}`, repository, d)
}

// simple makes a layer of a signature in the older format.
func (s *signer) simple(r *imagetest.Registry, text []byte) ocispec.Descriptor {
	return r.PutBlob(signature.SimpleType, text, map[string]string{
		signature.SimpleAnnotation: base64.StdEncoding.EncodeToString(s.sign(text))})
}

// attach puts signatures of the older format to an image.
func attach(r *imagetest.Registry, image digest.Digest, layers ...ocispec.Descriptor) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: r.PutBlob(ocispec.MediaTypeImageConfig, []byte("{}"), nil), Layers: layers}
	r.PutManifest(strings.Replace(image.String(), ":", "-", 1)+".sig", m.MediaType, m)
}

// bundle makes a bundle with a statement about an image, and returns the descriptor of its manifest.
func (s *signer) bundle(r *imagetest.Registry, name, d, predicate string) ocispec.Descriptor {
	text := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":%q,"digest":{"sha256":%q}}],`+
		`"predicateType":%q,"predicate":{}}`, name, strings.TrimPrefix(d, "sha256:"), predicate)
	const kind = "application/vnd.in-toto+json"
	sig := s.sign(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(text), text))
	raw, err := json.Marshal(map[string]any{
		"mediaType":            signature.BundleType + ".v0.3+json",
		"verificationMaterial": map[string]any{"publicKey": map[string]string{"hint": "x"}},
		"dsseEnvelope": map[string]any{"payload": text, "payloadType": kind,
			"signatures": []any{map[string]any{"sig": sig}}},
	})
	imagetest.Must(s, err)
	return bundleManifest(r, raw)
}

func bundleManifest(r *imagetest.Registry, raw []byte) ocispec.Descriptor {
	kind := signature.BundleType + ".v0.3+json"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: kind, Config: r.PutBlob(ocispec.MediaTypeEmptyJSON, []byte("{}"), nil),
		Layers: []ocispec.Descriptor{r.PutBlob(kind, raw, nil)}}
	d := r.PutManifest("", m.MediaType, m)
	d.ArtifactType = kind
	return d
}

// refer lists bundles as referrers of an image: at a tag, or by the API if the registry has it.
func refer(r *imagetest.Registry, image digest.Digest, api bool, bundles ...ocispec.Descriptor) {
	list := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: bundles}
	if !api {
		r.PutManifest(strings.Replace(image.String(), ":", "-", 1), list.MediaType, list)
		return
	}
	body, _ := json.Marshal(list)
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/referrers/") {
			return false
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		if strings.HasSuffix(q.URL.Path, image.String()) {
			_, _ = w.Write(body) // a client that has left
		} else {
			fmt.Fprint(w, `{"schemaVersion":2,"manifests":[]}`)
		}
		return true
	})
}

// policy sets the signature policy.
func policy(t testing.TB, text string) func(*Config) {
	return func(c *Config) {
		c.SignaturePolicy = filepath.Join(t.TempDir(), "signatures.toml")
		imagetest.Must(t, os.WriteFile(c.SignaturePolicy, []byte(text), 0o644))
	}
}

// wantRefused checks that an image is refused as the kubelet understands it, for a reason, and that
// nothing of it is left.
func wantRefused(t testing.TB, c *Images, r *imagetest.Registry, name, reason string) {
	t.Helper()
	_, err := c.Pull(t.Context(), r.Ref(name), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: pull ") || !strings.Contains(err.Error(), reason) {
		t.Errorf("%v, want one with %q", err, reason)
	}
	if images := c.List(); len(images) > 0 {
		t.Errorf("%d images are listed", len(images))
	}
	left, err := filepath.Glob(filepath.Join(c.cfg.Root, "content", "blobs", "*", "*"))
	imagetest.Must(t, err)
	if len(left) > 0 {
		t.Errorf("blobs are left: %v", left)
	}
}

// TestSignedImages checks that images with a signature of the policy's key are pulled, in each format
// and with each kind of key.
func TestSignedImages(t *testing.T) {
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	imagetest.Must(t, err)
	rivest, err := rsa.GenerateKey(rand.Reader, 2048)
	imagetest.Must(t, err)
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	imagetest.Must(t, err)
	for name, s := range map[string]*signer{
		"P-256": newSigner(t), "P-384": {curve, t}, "Ed25519": {edwards, t}, "RSA": {rivest, t},
	} {
		for _, format := range []string{"simple", "bundle", "bundle at a tag", "beside others"} {
			r := imagetest.NewRegistry(t)
			_, desc := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100))}, nil)
			d, repository := desc.Digest.String(), r.Host()+"/app"
			switch other := newSigner(t); format {
			case "simple":
				attach(r, desc.Digest, s.simple(r, payload(repository, d)))
			case "bundle":
				refer(r, desc.Digest, true, s.bundle(r, "", d, signature.SignPredicate))
			case "bundle at a tag":
				refer(r, desc.Digest, false, s.bundle(r, "", d, signature.SignPredicate))
			case "beside others":
				attach(r, desc.Digest, other.simple(r, payload(repository, d)), s.simple(r, payload(repository, d)))
			}
			c := newImages(t, policy(t, fmt.Sprintf("[default]\nrequire = 'refuse'\n[prefix.%q]\nrequire = 'key'\nkeys = [%q, %q]\n",
				r.Host(), newSigner(t).file(), s.file())))
			if _, err := c.Pull(t.Context(), r.Ref("app:1"), nil); err != nil {
				t.Errorf("%s, %s: %v", name, format, err)
			}
		}
	}
}

// TestSEC84Signatures checks that nothing but a signature for exactly this image by a key of the
// policy is accepted.
func TestSEC84Signatures(t *testing.T) {
	s, stranger := newSigner(t), newSigner(t)
	const repository = "reg.example/app"
	for name, row := range map[string]struct {
		put    func(r *imagetest.Registry, image digest.Digest)
		reason string
	}{
		"unsigned": {func(*imagetest.Registry, digest.Digest) {}, "it has no signature"},
		"another key": {func(r *imagetest.Registry, d digest.Digest) {
			attach(r, d, stranger.simple(r, payload(repository, d.String())))
		}, "no key of the policy"},
		"another digest": {func(r *imagetest.Registry, d digest.Digest) {
			attach(r, d, s.simple(r, payload(repository, digest.FromString("other").String())))
		}, "the signature is for sha256:"},
		"no digest": {func(r *imagetest.Registry, d digest.Digest) {
			attach(r, d, s.simple(r, payload(repository, "")))
		}, "the signature is for "},
		"another text": {func(r *imagetest.Registry, d digest.Digest) {
			attach(r, d, s.simple(r, []byte(strings.Replace(string(payload(repository, d.String())), "cosign container", "a", 1))))
		}, "the signed text is a"},
		"changed text": {func(r *imagetest.Registry, d digest.Digest) {
			good := s.simple(r, payload(repository, digest.FromString("other").String()))
			attach(r, d, r.PutBlob(signature.SimpleType, payload(repository, d.String()), good.Annotations))
		}, "no key of the policy"},
		"truncated text": {func(r *imagetest.Registry, d digest.Digest) {
			l := s.simple(r, payload(repository, d.String()))
			r.Blobs[l.Digest] = r.Blobs[l.Digest][:20]
			attach(r, d, l)
		}, "is not what its descriptor says"},
		"text that is no JSON": {func(r *imagetest.Registry, d digest.Digest) {
			attach(r, d, s.simple(r, payload(repository, d.String())[:50]))
		}, "is not JSON"},
		"a large text": {func(r *imagetest.Registry, d digest.Digest) {
			attach(r, d, s.simple(r, append(payload(repository, d.String()), make([]byte, 10<<20)...)))
		}, "more than 262144"},
		"a large text that says it is small": {func(r *imagetest.Registry, d digest.Digest) {
			l := s.simple(r, append(payload(repository, d.String()), make([]byte, 10<<20)...))
			l.Size = 1000
			attach(r, d, l)
		}, "more than 262144"},
		"no signature in the annotation": {func(r *imagetest.Registry, d digest.Digest) {
			attach(r, d, r.PutBlob(signature.SimpleType, payload(repository, d.String()), nil))
		}, "no key of the policy"},
		"a path for a digest": {func(r *imagetest.Registry, d digest.Digest) {
			l := s.simple(r, payload(repository, d.String()))
			l.Digest = "sha256:../../x"
			attach(r, d, l)
		}, "invalid digest"},
		"bundle by another key": {func(r *imagetest.Registry, d digest.Digest) {
			refer(r, d, true, stranger.bundle(r, "", d.String(), signature.SignPredicate))
		}, "no key of the policy"},
		"bundle for another digest": {func(r *imagetest.Registry, d digest.Digest) {
			refer(r, d, true, s.bundle(r, "", digest.FromString("other").String(), signature.SignPredicate))
		}, "the signature is for "},
		"attestation": {func(r *imagetest.Registry, d digest.Digest) {
			refer(r, d, true, s.bundle(r, "", d.String(), "https://cosign.sigstore.dev/attestation/vuln/v1"))
		}, "not a signature"},
		"bundle without an envelope": {func(r *imagetest.Registry, d digest.Digest) {
			refer(r, d, true, bundleManifest(r, []byte(`{"mediaType":"`+signature.BundleType+`.v0.3+json"}`)))
		}, "no signed envelope"},
		"a large bundle": {func(r *imagetest.Registry, d digest.Digest) {
			refer(r, d, true, bundleManifest(r, make([]byte, 10<<20)))
		}, "more than 262144"},
	} {
		t.Run(name, func(t *testing.T) {
			r := imagetest.NewRegistry(t)
			_, desc := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100))}, nil)
			row.put(r, desc.Digest)
			c := newImages(t, policy(t, fmt.Sprintf("[default]\nrequire = 'key'\nkeys = [%q]\n", s.file())))
			wantRefused(t, c, r, "app:1", row.reason)
		})
	}
}

// TestSEC84MovedTag checks that the signature of what a tag pointed to before does not count, that an
// image which is here is checked again, and that exactly what was checked is pulled.
func TestSEC84MovedTag(t *testing.T) {
	s, r := newSigner(t), imagetest.NewRegistry(t)
	_, signed := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100))}, nil)
	attach(r, signed.Digest, s.simple(r, payload("", signed.Digest.String())))
	c := newImages(t, policy(t, fmt.Sprintf("[default]\nrequire = 'key'\nkeys = [%q]\n", s.file())))
	first := c.mustPull(t, r.Ref("app:1"))
	good := r.Manifests["1"]
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 200))}, nil)
	if _, err := c.Pull(t.Context(), r.Ref("app:1"), nil); err == nil || !strings.Contains(err.Error(), "SignatureValidationFailed") {
		t.Errorf("the tag was moved: %v", err)
	}
	if images := c.List(); len(images) != 1 || images[0].ID != first.ID || len(images[0].RepoTags) != 1 {
		t.Errorf("after a refused pull: %+v", images)
	}
	// The tag is moved again while the signature is looked for.
	bad := r.Manifests["1"]
	r.Mu.Lock()
	r.Manifests["1"] = good
	r.Mu.Unlock()
	r.Intercept(func(_ http.ResponseWriter, q *http.Request) bool {
		if strings.HasSuffix(q.URL.Path, ".sig") {
			r.Mu.Lock()
			r.Manifests["1"] = bad
			r.Mu.Unlock()
		}
		return false
	})
	c = newImages(t, policy(t, fmt.Sprintf("[default]\nrequire = 'key'\nkeys = [%q]\n", s.file())))
	if again := c.mustPull(t, r.Ref("app:1")); again.ID != first.ID {
		t.Errorf("image %s was checked and %s was pulled", first.ID, again.ID)
	}
	// The signature is withdrawn: the image that is here is not pulled again.
	r.Mu.Lock()
	r.Manifests["1"] = good
	delete(r.Manifests, strings.Replace(signed.Digest.String(), ":", "-", 1)+".sig")
	r.Mu.Unlock()
	if _, err := c.Pull(t.Context(), r.Ref("app:1"), nil); err == nil || len(c.List()) != 1 {
		t.Errorf("a second pull without the signature: %v, %d images", err, len(c.List()))
	}
}

// TestSEC84Repository checks that a signature for another repository counts only if the policy does
// not compare repositories.
func TestSEC84Repository(t *testing.T) {
	s := newSigner(t)
	for _, row := range []struct {
		named string
		ok    bool
	}{{"%s/app", true}, {"%s/app:1", true}, {"%s/other", false}, {"elsewhere.example/app", false}, {"", false}} {
		named := strings.ReplaceAll(row.named, "%s", "127.0.0.1:%d")
		for _, format := range []string{"simple", "bundle"} {
			r := imagetest.NewRegistry(t)
			_, desc := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100))}, nil)
			name := strings.ReplaceAll(named, "127.0.0.1:%d", r.Host())
			if format == "simple" {
				attach(r, desc.Digest, s.simple(r, payload(name, desc.Digest.String())))
			} else {
				refer(r, desc.Digest, true, s.bundle(r, name, desc.Digest.String(), signature.SignPredicate))
			}
			text := fmt.Sprintf("[default]\nrequire = 'key'\nkeys = [%q]\n", s.file())
			c := newImages(t, policy(t, text+"match_repository = true\n"))
			if row.ok {
				c.mustPull(t, r.Ref("app:1"))
			} else {
				wantRefused(t, c, r, "app:1", "the signature is for repository")
			}
			newImages(t, policy(t, text)).mustPull(t, r.Ref("app:1"))
		}
	}
}

// TestSignaturePolicy checks which rule an image has, and what becomes of it.
func TestSignaturePolicy(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100))}, nil)
	key := newSigner(t).file()
	c := newImages(t, policy(t, fmt.Sprintf("[default]\nrequire = 'refuse'\n"+
		"[prefix.'%[1]s/open']\nrequire = 'accept'\n[prefix.'%[1]s/open/closed']\nrequire = 'key'\nkeys = [%[2]q]\n"+
		"[prefix.'%[1]s/noted']\nrequire = 'key'\nkeys = [%[2]q]\nmode = 'warn'\n"+
		"[prefix.'%[1]s/lost']\nrequire = 'key'\nkeys = ['/nowhere/key.pub']\n", r.Host(), key)))
	wantRefused(t, c, r, "app:1", "[default] of the signature policy accepts no image of")
	wantRefused(t, c, r, "opener/app:1", "accepts no image of")
	wantRefused(t, c, r, "open/closed/app:1", "it has no signature")
	if _, err := c.Pull(t.Context(), r.Ref("lost/app:1"), nil); err == nil || !strings.Contains(err.Error(), "/nowhere/key.pub") {
		t.Errorf("without the key: %v", err)
	}
	for _, name := range []string{"open:1", "open/app:1", "open/closedness:1", "noted/app:1"} {
		c.mustPull(t, r.Ref(name))
	}
	// A registry that does not answer about signatures is not an image without one.
	r.Intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if strings.HasSuffix(q.URL.Path, ".sig") {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	if _, err := c.Pull(t.Context(), r.Ref("open/closed:1"), nil); err == nil || strings.Contains(err.Error(), "SignatureValidationFailed") ||
		!strings.Contains(err.Error(), "403") {
		t.Errorf("the registry does not show signatures: %v", err)
	}
	imagetest.Must(t, os.WriteFile(c.cfg.SignaturePolicy, []byte("[default]\nrequire = 'accept'\nkey = 'x'\n"), 0o644))
	if _, err := c.Pull(t.Context(), r.Ref("open:1"), nil); err == nil || !strings.Contains(err.Error(), `line 3: unknown key "default.key"`) {
		t.Errorf("with a misspelt key: %v", err)
	}
	imagetest.Must(t, os.Remove(c.cfg.SignaturePolicy))
	if _, err := c.Pull(t.Context(), r.Ref("open:1"), nil); err == nil || !strings.Contains(err.Error(), c.cfg.SignaturePolicy) {
		t.Errorf("without the file: %v", err)
	}
}
