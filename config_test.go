package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigErrorsNameKeyAndLine(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no TOML", "listen = \n", "line 1"},
		{"unknown key", "root = '/r'\nlog_lvel = 'info'\n", `line 2: unknown key "log_lvel"`},
		{"unknown key in a table", "[network]\n\ndefalt = true\n", `line 3: unknown key "network.defalt"`},
		{"unknown table", "[netwrk]\ndefault = true\n", "netwrk"},
		{"wrong type", "[network]\ndefault = 'yes'\n", "line 2"},
		{"bad level", "root = '/r'\n\nlog_level = 'loud'\n", `line 3: key "log_level"`},
		{"relative root", "root = 'var'\n", `line 1: key "root"`},
		{"not unix", "listen = 'tcp://127.0.0.1:1'\n", `line 1: key "listen"`},
		{"handler that is none", "default_runtime = 'kata'\n", `line 1: key "default_runtime"`},
		{"bad subnet", "[network]\nsubnet = '10.0.0.0'\n", `line 2: key "network.subnet"`},
		{"bad pause image", "pause_image = 'UPPER CASE'\n", `key "pause_image"`},
		{"state too long for sockets", "state = '/run/" + strings.Repeat("long", 30) + "'\n", `key "state"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeConfig(t, c.text)
			_, err := configure("serve", []string{"--config", path})
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %q does not name %s and %q", err, path, c.want)
			}
		})
	}
}

func TestMissingConfigFile(t *testing.T) {
	if _, err := configure("serve", []string{"--config", "/nowhere/config.toml"}); err == nil {
		t.Fatal("a configuration that was named and is missing was accepted")
	}
}

func TestFlagsWin(t *testing.T) {
	path := writeConfig(t, "root = '/file/root'\nstate = '/file/state'\n")
	c, err := configure("serve", []string{"--config", path, "--root", "/flag/root", "--state", "/flag/state"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/flag/root" || c.State != "/flag/state" || c.Listen != "unix:///flag/state/cribox.sock" {
		t.Fatalf("%+v", c)
	}
}

// What `cribox config` prints can be used as a file, says the same, and documents every key.
func TestPrintedConfigIsAConfig(t *testing.T) {
	want := defaultConfig()
	b, err := want.print()
	if err != nil {
		t.Fatal(err)
	}
	got, err := loadConfig(writeConfig(t, string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("printed and read again:\n%+v\nwant\n%+v", got, want)
	}
	keys, comments := 0, 0
	for line := range strings.Lines(string(b)) {
		switch {
		case strings.HasPrefix(line, "#"):
			comments++
		case strings.Contains(line, "="):
			keys++
		}
	}
	if comments < keys {
		t.Fatalf("%d keys, %d comments:\n%s", keys, comments, b)
	}
}

func TestInstancesDiffer(t *testing.T) {
	a, b := defaultConfig(), defaultConfig()
	b.State = "/run/other"
	if a.instance() == b.instance() || len(a.instance()) != 6 {
		t.Fatalf("instances %q and %q", a.instance(), b.instance())
	}
}

// The documentation shows the defaults as they are.
func TestDocumentedConfig(t *testing.T) {
	doc, err := os.ReadFile("docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	b, err := defaultConfig().print()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "```toml\n"+string(b)+"```") {
		t.Fatalf("docs/configuration.md does not hold what `cribox config` prints:\n%s", b)
	}
}
