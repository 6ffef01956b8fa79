package imageservice

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/imagetest"
	"github.com/cribox/cribox/imageservice/signature"
)

// statement is the text of a signature without a key.
func statement(d digest.Digest, predicate string) string {
	return fmt.Sprintf(`{"subject":[{"digest":{"sha256":%q}}],"predicateType":%q}`, d.Encoded(), predicate)
}

// keylessPolicy sets a policy that requires signatures without a key, and makes script the program
// that verifies them.
func keylessPolicy(t testing.TB, script string) func(*Config) {
	dir, err := os.MkdirTemp("", "verifier") // nobody may pass through, unlike the folders of t.TempDir
	imagetest.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	imagetest.Must(t, os.Chmod(dir, 0o755))
	imagetest.Must(t, os.WriteFile(filepath.Join(dir, "root.json"), []byte(`{"root": 1}`), 0o600))
	verifier := filepath.Join(dir, "verifier")
	if script != "" {
		imagetest.Must(t, os.WriteFile(verifier, []byte("#!/bin/sh\nread request\n"+script+"\n"), 0o755))
	}
	return func(c *Config) {
		c.SignaturePolicy = filepath.Join(dir, "signatures.toml")
		imagetest.Must(t, os.WriteFile(c.SignaturePolicy, fmt.Appendf(nil, "keyless_verifier = %q\n[default]\n"+
			"require = 'keyless'\ntrusted_root = 'root.json'\nidentities = [{issuer = 'https://issuer.example', subject_regexp = '.*@x'}]\n",
			verifier), 0o644))
	}
}

// TestKeyless checks that a bundle is accepted if the program says so and gives a signature of the
// image, and what becomes of other answers.
func TestKeyless(t *testing.T) {
	r := imagetest.NewRegistry(t)
	_, desc := r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100))}, nil)
	answer := func(accepted bool, reason, payload string) string {
		b, _ := json.Marshal(map[string]any{"accepted": accepted, "reason": reason, "payload": []byte(payload)})
		return fmt.Sprintf("echo '%s'", b)
	}
	good := statement(desc.Digest, signature.SignPredicate)
	bundle := []byte(`{"of": "the test"}`)
	refer(r, desc.Digest, true, bundleManifest(r, bundle))
	for name, row := range map[string]struct{ script, reason string }{
		"refused":                {answer(false, "wrong identity", good), "wrong identity"},
		"another image":          {answer(true, "", statement(digest.FromString("x"), signature.SignPredicate)), "the signature is for"},
		"attestation":            {answer(true, "", statement(desc.Digest, "https://slsa.dev/provenance/v1")), "not a signature"},
		"no statement":           {answer(true, "", ""), "not JSON"},
		"as nobody":              {"test $(id -u) != 0 && " + answer(false, "it is nobody", ""), "it is nobody"},
		"without an environment": {`test -z "$HOME" && ` + answer(false, "empty", ""), "empty"},
	} {
		t.Run(name, func(t *testing.T) { wantRefused(t, newImages(t, keylessPolicy(t, row.script)), r, "app:1", row.reason) })
	}
	for name, script := range map[string]string{
		"missing": "", "fails": "exit 1", "no JSON": "echo yes", "endless": "while echo x; do :; done",
	} {
		_, err := newImages(t, keylessPolicy(t, script)).Pull(t.Context(), r.Ref("app:1"), nil)
		if err == nil || !strings.Contains(err.Error(), signature.ErrVerifier.Error()) ||
			!strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") {
			t.Errorf("a verifier that is %s: %v", name, err)
		}
	}
	// The script answers "accepted" only if the request has everything.
	script := ""
	for _, part := range []string{`"digest":"` + desc.Digest.String() + `"`, `"trustedRoot":{"root":1}`, `"bundle":{"of":"the test"}`,
		`"identities":[{"issuer":"https://issuer.example","issuer_regexp":"","subject":"","subject_regexp":".*@x"}]`} {
		script += fmt.Sprintf("case $request in *'%s'*) ;; *) exit 1 ;; esac\n", part)
	}
	c := newImages(t, keylessPolicy(t, script+answer(true, "", good)))
	c.mustPull(t, r.Ref("app:1"))
	// A signature of the older format does not count.
	other := imagetest.NewRegistry(t)
	_, desc = other.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 300))}, nil)
	attach(other, desc.Digest, newSigner(t).simple(other, payload("", desc.Digest.String())))
	wantRefused(t, newImages(t, keylessPolicy(t, script)), other, "app:1", "in bundles only")
}

// TestPolicyFiles checks that a policy with an error refuses every pull.
func TestPolicyFiles(t *testing.T) {
	r := imagetest.NewRegistry(t)
	r.Build("1", []imagetest.Layer{imagetest.Gzip(imagetest.Noise(t, 100))}, nil)
	const rule = "[default]\nrequire = "
	for name, row := range map[string]struct{ text, reason string }{
		"no requirement":    {"[prefix.'x.test']\nmode = 'warn'\n", `require: "" is not one of`},
		"unknown":           {rule + "'signed'\n", `"signed" is not one of`},
		"mode":              {rule + "'refuse'\nmode = 'off'\n", "neither refuse nor warn"},
		"no keys":           {rule + "'key'\n", "names no keys"},
		"keys for nothing":  {rule + "'accept'\nkeys = ['k']\n", "keys would have no effect"},
		"root for nothing":  {rule + "'key'\nkeys = ['k']\ntrusted_root = 'r'\n", "trusted_root and identities would"},
		"match for nothing": {rule + "'refuse'\nmatch_repository = true\n", "match_repository would"},
		"no root":           {rule + "'keyless'\nidentities = [{issuer = 'a', subject = 'b'}]\n", "no trusted_root"},
		"no identity":       {rule + "'keyless'\ntrusted_root = 'r'\n", "no identities"},
		"half an identity":  {rule + "'keyless'\ntrusted_root = 'r'\nidentities = [{issuer = 'a'}]\n", "either subject or"},
		"two of a kind": {rule + "'keyless'\ntrusted_root = 'r'\nidentities = [{issuer = 'a', issuer_regexp = 'a', subject = 'b'}]\n",
			"either issuer or"},
		"bad regexp": {rule + "'keyless'\ntrusted_root = 'r'\nidentities = [{issuer = 'a', subject_regexp = '('}]\n", "subject_regexp: "},
		"verifier":   {"keyless_verifier = 'x'\n", "not an absolute path"},
		"prefix":     {"[prefix.library]\nrequire = 'accept'\n", "a prefix is a registry"},
		"wildcard":   {"[prefix.'*.test']\nrequire = 'accept'\n", "without wildcards"},
		"no TOML":    {"[default\n", "line 1"},
	} {
		_, err := newImages(t, policy(t, row.text)).Pull(t.Context(), r.Ref("app:1"), nil)
		if err == nil || !strings.Contains(err.Error(), row.reason) || !strings.Contains(err.Error(), "signatures.toml") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
