package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cribox/cribox/config"
)

// execute runs the command line and returns what it printed, and the configuration that it gave to
// the command whose name is ran.
func execute(t *testing.T, args ...string) (printed, ran string, c config.Config, err error) {
	t.Helper()
	note := func(name string) Run {
		return func(_ context.Context, read config.Config, _ io.Writer) error {
			ran, c = name, read
			return nil
		}
	}
	var out strings.Builder
	root := New("1.2.3", Commands{Serve: note("serve"), Check: note("check"), Config: note("config"), Shutdown: note("shutdown")})
	root.SetArgs(args)
	root.SetOut(&out)
	err = root.ExecuteContext(context.Background())
	return out.String(), ran, c, err
}

// TestCommands: each command gets the configuration of its flags.
func TestCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("log_level = 'debug'\nroot = '/from-file'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"serve", "check", "config", "shutdown"} {
		_, ran, c, err := execute(t, name, "--config", file, "--state=/s", "--root", "/r")
		if err != nil || ran != name || c.State != "/s" || c.Root != "/r" || c.Listen != "unix:///s/cribox.sock" || c.LogLevel != "debug" {
			t.Errorf("%s: ran %q with %+v, %v", name, ran, c, err)
		}
		_, _, c, err = execute(t, name, "--config", file, "--listen", "unix:///l")
		if err != nil || c.Root != "/from-file" || c.Listen != "unix:///l" {
			t.Errorf("%s --listen: %+v, %v", name, c, err)
		}
	}
}

// TestErrors: a wrong command line runs nothing, and the error says what to do.
func TestErrors(t *testing.T) {
	for args, want := range map[string]string{
		"no-such-verb":                  "unknown command \"no-such-verb\"; `cribox help` lists them",
		"srve":                          `unknown command "srve"; did you mean serve?`,
		"serve now":                     "serve takes no argument \"now\"; `cribox serve --help`",
		"serve -config x":               "flags have two dashes; `cribox serve --help`",
		"serve --nope":                  "unknown flag: --nope; `cribox serve --help`",
		"check --state":                 "flag needs an argument: --state",
		"version x":                     "version takes no argument",
		"serve --config /no/such/file":  "/no/such/file",
		"serve --config= --listen tcp:": `"tcp:" is not a unix:///PATH address`,
	} {
		printed, ran, _, err := execute(t, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || ran != "" || printed != "" {
			t.Errorf("%s: ran %q, printed %q, error %v, want %s", args, ran, printed, err, want)
		}
	}
}

// TestHelp: help is printed where it is asked for, names all flags, and speaks of no helper process
// as of a command.
func TestHelp(t *testing.T) {
	for args, want := range map[string][]string{
		"":              {"Usage:", "Examples:", "serve", "check", "config", "shutdown", "version"},
		"help":          {"Usage:", "serve"},
		"--help":        {"Usage:", "serve"},
		"-h":            {"Usage:", "serve"},
		"serve --help":  {"cribox serve [flags]", "Examples:", "--config FILE", "--listen unix:///PATH", "--root", "--state", config.DefaultFile},
		"help shutdown": {"cribox shutdown [flags]", "Examples:"},
		"version":       {"cribox 1.2.3 go"},
		"--version":     {"cribox 1.2.3 go"},
	} {
		printed, ran, _, err := execute(t, strings.Fields(args)...)
		if err != nil || ran != "" {
			t.Errorf("%q: ran %q, %v", args, ran, err)
		}
		for _, w := range want {
			if !strings.Contains(printed, w) {
				t.Errorf("%q does not print %q:\n%s", args, w, printed)
			}
		}
		for line := range strings.Lines(printed) {
			if strings.HasPrefix(line, "  shim") || strings.HasPrefix(line, "  logger") || strings.HasPrefix(line, "  completion") {
				t.Errorf("%q lists %s", args, line)
			}
		}
	}
}
