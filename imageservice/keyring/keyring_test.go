package keyring

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// TestFind checks which entry is used for a repository.
func TestFind(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials.json")
	write(t, file, `{"auths": {
		"registry.example":            {"username": "all", "password": "x"},
		"registry.example/team":       {"username": "team", "password": "x"},
		"registry.example/team/app":   {"username": "app", "password": "x"},
		"*.example":                   {"username": "wild", "password": "x"},
		"r*.zone.example":             {"username": "glob", "password": "x"},
		"port.example:5000":           {"username": "port", "password": "x"},
		"[::1]:5000":                  {"username": "six", "password": "x"},
		"http://plain.example:80/v2/": {"username": "plain", "password": "x"},
		"https://index.docker.io/v1/": {"username": "hub", "password": "x"},
		"bad[.example.org":            {"username": "bad", "password": "x"},
		"empty.example.org":           {}
	}, "HttpHeaders": {"User-Agent": "x"}}`, 0o600)
	for _, row := range []struct{ host, repository, want string }{
		{"registry.example", "app", "all"},
		{"registry.example:443", "app", "all"},
		{"REGISTRY.example", "app", "all"},
		{"registry.example", "team/other", "team"},
		{"registry.example", "team", "team"},
		{"registry.example", "team/app", "app"},
		{"registry.example", "teams/app", "all"},
		{"registry.example:5000", "app", ""},
		{"other.example", "app", "wild"},
		{"a.b.example", "app", ""},
		{"r1.zone.example", "app", "glob"},
		{"s1.zone.example", "app", ""},
		{"port.example:5000", "app", "port"},
		{"port.example", "app", "wild"},
		{"[::1]:5000", "app", "six"},
		{"[::1]", "app", ""},
		{"plain.example", "app", "plain"},
		{"docker.io", "library/app", "hub"},
		{"registry-1.docker.io", "library/app", "hub"},
		{"bad[.example.org", "app", ""},
		{"empty.example.org", "app", ""},
		{"registry.example.evil.org", "app", ""},
	} {
		e, err := New(file, "").Find(t.Context(), row.host, row.repository)
		if err != nil {
			t.Errorf("%s/%s: %v", row.host, row.repository, err)
		}
		got := ""
		if e != nil {
			got = e.Username
		}
		if got != row.want {
			t.Errorf("%s/%s: %q, want %q", row.host, row.repository, got, row.want)
		}
	}
}

// TestFiles checks files that are missing, empty or wrong. No error quotes the file.
func TestFiles(t *testing.T) {
	for name, row := range map[string]struct{ text, want string }{
		"empty":      {"", ""},
		"no entry":   {"{}", ""},
		"not JSON":   {`{"auths": {"x": wonderland`, "is not JSON"},
		"wrong type": {`{"auths": {"x": "wonderland"}}`, "not in the format"},
		"old":        {`{"https://index.docker.io/v1/": {"auth": "wonderland"}}`, ".dockercfg"},
		"too large":  {strings.Repeat("wonderland", maxFile/10+1), "more than"},
	} {
		file := filepath.Join(t.TempDir(), "credentials.json")
		write(t, file, row.text, 0o600)
		e, err := New(file, "").Find(t.Context(), "x", "app")
		switch {
		case e != nil, row.want == "" && err != nil:
			t.Errorf("%s: %v, %v", name, e, err)
		case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
			t.Errorf("%s: %v", name, err)
		case err != nil && (strings.Contains(err.Error(), "wonderland") || !strings.Contains(err.Error(), file)):
			t.Errorf("%s: the error quotes the file, or does not name it: %v", name, err)
		}
	}
	for _, k := range []*Keyring{nil, New("", ""), New("/nowhere/credentials.json", "")} {
		if e, err := k.Find(t.Context(), "x", "app"); e != nil || err != nil {
			t.Errorf("without a file: %v, %v", e, err)
		}
	}
}

// TestHelpers runs credential helpers of every kind.
func TestHelpers(t *testing.T) {
	helpers := t.TempDir()
	script := func(name, text string) {
		write(t, filepath.Join(helpers, "docker-credential-"+name), "#!/bin/sh\nread server\n"+text, 0o755)
	}
	script("good", `test "$1" = get && echo "{\"ServerURL\":\"$server\",\"Username\":\"u@$server\",\"Secret\":\"s\"}"`)
	script("token", `echo '{"Username":"<token>","Secret":"wonderland"}'`)
	script("none", "echo credentials not found in native keychain\nexit 1\n")
	script("fails", "echo wonderland\necho wonderland >&2\nexit 3\n")
	script("chatty", "echo wonderland\n")
	script("endless", "while echo wonderland; do :; done\n")
	file := filepath.Join(t.TempDir(), "credentials.json")
	write(t, file, `{"credsStore": "good", "auths": {"stored.example": {},
		"both.example": {"username": "file", "password": "x"}, "both.example/team": {"username": "longer", "password": "x"}},
		"credHelpers": {"both.example": "token", "none.example": "none", "fails.example": "fails",
		"chatty.example": "chatty", "endless.example": "endless", "away.example": "away", "path.example": "../evil"}}`, 0o600)
	for _, row := range []struct{ host, repository, user, token, fails string }{
		{"stored.example", "app", "u@stored.example", "", ""},
		{"unknown.example", "app", "u@unknown.example", "", ""},
		{"docker.io", "library/app", "u@https://index.docker.io/v1/", "", ""},
		{"both.example", "app", "", "wonderland", ""},
		{"both.example", "team/app", "longer", "", ""},
		{"none.example", "app", "", "", ""},
		{"fails.example", "app", "", "", "of fails.example: docker-credential-fails: exit status 3"},
		{"chatty.example", "app", "", "", "the answer of docker-credential-chatty for chatty.example has no credentials"},
		{"endless.example", "app", "", "", "docker-credential-endless: its answer has more than"},
		{"away.example", "app", "", "", "docker-credential-away"},
		{"path.example", "app", "", "", `"../evil" is not the name of a credential helper`},
	} {
		e, err := New(file, helpers).Find(t.Context(), row.host, row.repository)
		if e == nil {
			e = &Entry{}
		}
		if e.Username != row.user || e.IdentityToken != row.token {
			t.Errorf("%s/%s: %q and token %q", row.host, row.repository, e.Username, e.IdentityToken)
		}
		if (err == nil) != (row.fails == "") || err != nil &&
			(!strings.Contains(err.Error(), row.fails) || strings.Contains(err.Error(), "wonderland")) {
			t.Errorf("%s/%s: %v", row.host, row.repository, err)
		}
	}
	t.Setenv("PATH", helpers+":"+os.Getenv("PATH"))
	if e, err := New(file, "").Find(t.Context(), "stored.example", "app"); err != nil || e == nil {
		t.Errorf("a helper in PATH: %v, %v", e, err)
	}
}
