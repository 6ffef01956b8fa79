package images

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"

	"github.com/cribox/cribox/crictl-tests/fixture"
	"github.com/cribox/cribox/crictl-tests/harness"
)

// TestPullWithTheNodesCredentials: a file and a helper have the password of the registry; the file says so from one pull to the next.
func TestPullWithTheNodesCredentials(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t, harness.KeepsBlobs)
	file, helpers := filepath.Join(d.Dir, "credentials.json"), filepath.Join(d.Dir, "helpers")
	d.Must(os.Mkdir(helpers, 0o700))
	d.Must(harness.WriteProgram(filepath.Join(helpers, "docker-credential-test"),
		fmt.Sprintf("#!/bin/sh\nread host\ntest \"$host\" = %q || exit 1\necho '{\"Username\":%q,\"Secret\":%q}'\n",
			d.Registry().Addr, fixture.Username, fixture.Password)))
	dropIn(d, fmt.Sprintf("[images]\ncredentials = %q\ncredential_helpers_dir = %q\n", file, helpers))
	d.Start()
	d.Empty = d.Ledger()
	private, token := d.Ref("private:1"), d.Ref("token:1")
	_, err := d.TryPull(private, nil)
	harness.WantCode(t, err, codes.Unauthenticated)
	d.Must(os.WriteFile(file, fmt.Appendf(nil, `{"auths": {%q: {"username": %q, "password": %q}}}`,
		d.Registry().Addr, fixture.Username, fixture.Password), 0o600))
	for _, ref := range []string{private, token} {
		_, err = d.TryPull(ref, nil)
		d.Must(err)
	}
	d.Must(os.WriteFile(file, fmt.Appendf(nil, `{"credHelpers": {%q: "test"}}`, d.Registry().Addr), 0o600))
	_, err = d.TryPull(private, nil)
	d.Must(err)
	d.Must(os.WriteFile(file, fmt.Appendf(nil, `{"credHelpers": {%q: "lost"}}`, d.Registry().Addr), 0o600))
	_, err = d.TryPull(private, nil)
	harness.WantCode(t, err, codes.Unauthenticated, "docker-credential-lost")
	if log, err := os.ReadFile(d.LogFile()); err != nil || strings.Contains(string(log), fixture.Password) {
		t.Errorf("the password is in the log (%v)", err)
	}
}

// TestSignaturesAreRequired: the kubelet learns by the first word and the code Unknown that a signature is missing. Signed, the image is
// pulled.
func TestSignaturesAreRequired(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t, harness.KeepsBlobs)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	d.Must(err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	d.Must(err)
	d.Must(os.WriteFile(filepath.Join(d.Dir, "key.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	policy := filepath.Join(d.Dir, "signatures.toml")
	d.Must(os.WriteFile(policy, []byte("[default]\nrequire = 'key'\nkeys = ['key.pub']\n"), 0o600))
	dropIn(d, fmt.Sprintf("[images]\nsignature_policy = %q\n", policy))
	d.Start()
	d.Empty = d.Ledger()
	r := fixture.ForTest(t)
	_, err = d.TryPull(r.Ref("busybox:1"), nil)
	harness.WantCode(t, err, codes.Unknown, "it has no signature")
	if !strings.Contains(fmt.Sprint(err), "desc = SignatureValidationFailed: ") {
		t.Errorf("the kubelet does not know %v", err)
	}
	if n := len(d.ListImages()); n > 0 {
		t.Errorf("%d images are listed", n)
	}
	img, err := r.Image("busybox:1")
	d.Must(err)
	text := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":%q},`+
		`"type":"cosign container image signature"}}`, img.Digest)
	sum := sha256.Sum256(text)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	d.Must(err)
	layer, err := fixture.NewLayer(text, fixture.None)
	d.Must(err)
	signature, err := fixture.FromLayers(v1.Config{}, func(m *v1.Manifest, _ *v1.ConfigFile) {
		m.Layers[0].MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
		m.Layers[0].Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
	}, layer)
	d.Must(err)
	d.Must(r.Add("busybox:sha256-"+img.Digest.Hex+".sig", signature))
	_, err = d.TryPull(r.Ref("busybox:1"), nil)
	d.Must(err)
}

// TestKeylessSignatures: a pod runs from an image that the identity of the policy has signed without a key. Another identity is refused, and
// so is everything where the program that verifies is missing.
func TestKeylessSignatures(t *testing.T) {
	t.Parallel()
	d := harness.PrepareDaemon(t, harness.KeepsBlobs)
	r := fixture.ForTest(t)
	const issuer, subject = "https://issuer.example", "builder@team.example"
	root := signWithoutKey(d, r, "busybox:1", issuer, subject)
	d.Must(os.WriteFile(filepath.Join(d.Dir, "root.json"), root, 0o600))
	policy := filepath.Join(d.Dir, "signatures.toml")
	write := func(top, subject string) {
		d.Must(os.WriteFile(policy, fmt.Appendf(nil, "%s\n[default]\nrequire = 'keyless'\ntrusted_root = 'root.json'\n"+
			"identities = [{issuer = %q, subject = %q}]\n[prefix.%q]\nrequire = 'accept'\n", top, issuer, subject, d.Registry().Addr), 0o600))
	}
	dropIn(d, fmt.Sprintf("[images]\nsignature_policy = %q\n", policy))
	d.Start()
	d.Empty = d.Ledger()
	for _, row := range []struct{ top, subject, reason string }{
		{"", "chief@team.example", "is not accepted by [default] of the signature policy"},
		{"keyless_verifier = '/lost/cribox-keyless'", subject, "cannot verify signatures without a key: cribox-keyless"},
	} {
		write(row.top, row.subject)
		_, err := d.TryPull(r.Ref("busybox:1"), nil)
		harness.WantCode(t, err, codes.Unknown, row.reason)
		if !strings.Contains(fmt.Sprint(err), "desc = SignatureValidationFailed: ") {
			t.Errorf("the kubelet does not know %v", err)
		}
		if n := len(d.ListImages()); n > 0 {
			t.Errorf("%d images are listed", n)
		}
	}
	write("", subject)
	ref := r.Ref("busybox:1")
	_, err := d.TryPull(ref, nil)
	d.Must(err)
	if got := d.RunPod().OutputOf(harness.OfImage(ref), harness.Shell("echo signed")); got != "signed\n" {
		t.Errorf("the container printed %q", got)
	}
}

// signWithoutKey adds to a registry the signature of an image, as cosign 3 does where a registry does not list referrers. It returns the
// trusted root of who certified the signer.
func signWithoutKey(d *harness.Daemon, r *fixture.Registry, name, issuer, subject string) (root []byte) {
	const kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
	img, err := r.Image(name)
	d.Must(err)
	out, err := harness.Command("keyless-fixture", issuer, subject, img.Digest.String()).Output()
	d.Must(err)
	var made struct{ TrustedRoot, Bundle json.RawMessage }
	d.Must(json.Unmarshal(out, &made))
	layer, err := fixture.NewLayer(made.Bundle, fixture.None)
	d.Must(err)
	bundle, err := fixture.FromLayers(v1.Config{}, func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].MediaType = kind }, layer)
	d.Must(err)
	repo, _, _ := strings.Cut(name, ":")
	d.Must(r.Add(repo+":"+bundle.Digest.String(), bundle))
	list := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"artifactType":%q}]}`,
		types.OCIImageIndex, types.OCIManifestSchema1, bundle.Digest, len(bundle.Manifest), kind)
	d.Must(r.Add(repo+":sha256-"+img.Digest.Hex, fixture.Document(string(types.OCIImageIndex), list)))
	return made.TrustedRoot
}
