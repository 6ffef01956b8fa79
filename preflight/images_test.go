package preflight

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/config"
)

// TestCheckCredentials checks the rows about the file of credentials and its helpers.
func TestCheckCredentials(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "docker-credential-there"), "#!/bin/sh\n", 0o700)
	for name, row := range map[string]struct {
		text string
		mode os.FileMode
		what string // of the one finding, "" for one that is in order
	}{
		"in order":       {`{"auths": {"a.test": {"auth": "eA=="}}, "credHelpers": {"b.test": "there"}}`, 0o600, ""},
		"syntax":         {`{"auths": {`, 0o600, "it is not JSON"},
		"old format":     {`{"a.test": {"auth": "eA=="}}`, 0o600, ".dockercfg"},
		"mode":           {`{}`, 0o644, "has mode 0644: others than its owner can use"},
		"missing helper": {`{"credHelpers": {"b.test": "away", "c.test": "away"}}`, 0o600, "docker-credential-away: no such file"},
		"missing store":  {`{"credsStore": "away"}`, 0o600, "docker-credential-away: no such file"},
		"bad name":       {`{"credsStore": "../x"}`, 0o600, "is not the name of a credential helper"},
	} {
		file := filepath.Join(t.TempDir(), "credentials.json")
		put(t, file, row.text, row.mode)
		c := config.Config{Images: config.Images{Credentials: file, HelpersDir: dir}}
		wantFinding(t, name, lookImages(t.Context(), c), "credentials of the node", row.what)
	}
	c := config.Config{Images: config.Images{Credentials: filepath.Join(dir, "none.json")}}
	if found := lookImages(t.Context(), c); len(found) > 0 {
		t.Errorf("no file: %+v", found)
	}
	c.Images.Credentials = dir
	wantFinding(t, "a folder", lookImages(t.Context(), c), "credentials of the node", "read "+dir+": ")
}

// TestCheckPolicy checks the rows about the signature policy and what it names.
func TestCheckPolicy(t *testing.T) {
	const key = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"
	const keyless = "[default]\nrequire = 'keyless'\ntrusted_root = 'root.json'\nidentities = [{issuer = 'a', subject = 'b'}]\n"
	dir := t.TempDir()
	put(t, filepath.Join(dir, "good.pub"), key, 0o644)
	put(t, filepath.Join(dir, "bad.pub"), "no key", 0o644)
	put(t, filepath.Join(dir, "root.json"), "{}", 0o644)
	put(t, filepath.Join(dir, "verifier"), "#!/bin/sh\n", 0o755)
	put(t, filepath.Join(dir, "own"), "#!/bin/sh\n", 0o700)
	for name, row := range map[string]struct {
		text string
		mode os.FileMode
		what string
	}{
		"in order":       {"[default]\nrequire = 'key'\nkeys = ['good.pub']\n", 0o644, ""},
		"keyless":        {"keyless_verifier = '" + dir + "/verifier'\n" + keyless, 0o644, ""},
		"syntax":         {"[default\n", 0o644, "line 1"},
		"unknown key":    {"[default]\nrequires = 'key'\n", 0o644, "line 2: unknown key"},
		"mode":           {"[default]\nrequire = 'refuse'\n", 0o666, "has mode 0666: others than its owner can change it"},
		"no key":         {"[default]\nrequire = 'key'\nkeys = ['lost.pub']\n", 0o644, "lost.pub: no such file"},
		"bad key":        {"[prefix.'a.test/b']\nrequire = 'key'\nkeys = ['bad.pub']\n", 0o644, "it has no PUBLIC KEY"},
		"no verifier":    {"keyless_verifier = '/lost'\n" + keyless, 0o644, "cannot verify signatures without a key: stat /lost"},
		"closed program": {"keyless_verifier = '" + dir + "/own'\n" + keyless, 0o644, "the user nobody may not execute it"},
	} {
		file := filepath.Join(dir, "signatures.toml")
		put(t, file, row.text, row.mode)
		c := config.Config{Images: config.Images{SignaturePolicy: file}}
		wantFinding(t, name, lookImages(t.Context(), c), "signature", row.what)
	}
	lost := filepath.Join(dir, "none.toml")
	c := config.Config{Images: config.Images{SignaturePolicy: lost}}
	wantFinding(t, "no file", lookImages(t.Context(), c), "signature policy: ", lost+": no such file")
}

// put writes a file, whatever the umask is.
func put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// wantFinding checks that there is one finding about the subject: with the text and a remedy, or
// without a remedy if text is "".
func wantFinding(t *testing.T, name string, found []Finding, about, text string) {
	t.Helper()
	if len(found) != 1 || found[0].Fatal || (found[0].Remedy == "") != (text == "") ||
		!strings.Contains(found[0].What, text) || !strings.Contains(found[0].What, about) {
		t.Errorf("%s: %+v, want one about %q with %q", name, found, about, text)
	}
}
