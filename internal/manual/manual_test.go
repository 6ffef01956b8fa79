package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cribox/cribox/config"
)

func written(t *testing.T) map[string]string {
	t.Helper()
	all, err := files("1.2.3", time.Unix(1796000000, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for name, content := range all {
		text[name] = string(content)
	}
	return text
}

// keys returns the names of all keys below the type, tables included.
func keys(of reflect.Type) (names []string) {
	if of.Kind() == reflect.Map {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct {
		return nil
	}
	for i := range of.NumField() {
		if name := of.Field(i).Tag.Get("toml"); name != "" {
			names = append(append(names, name), keys(of.Field(i).Type)...)
		}
	}
	return names
}

// TestEveryKey: the page and the example have every key of the configuration.
func TestEveryKey(t *testing.T) {
	all := written(t)
	page := strings.NewReplacer(`\_`, "_", `\-`, "-", `\fB`, "", `\fP`, "", `\fR`, "").Replace(all["man/cribox-config.toml.5"])
	names := keys(reflect.TypeFor[config.Config]())
	if len(names) < 30 {
		t.Fatalf("only %d keys: %v", len(names), names)
	}
	for _, name := range names {
		if !strings.Contains(page, "\n"+name+" = ") && !strings.Contains(page, "["+name) {
			t.Errorf("cribox-config.toml(5) does not have %s", name)
		}
		if !strings.Contains(all["config.toml"], "\n#"+name+" = ") && !strings.Contains(all["config.toml"], "["+name+"]") {
			t.Errorf("the example does not have %s", name)
		}
	}
}

// TestExample: the example changes nothing, and with every key uncommented it means the same.
func TestExample(t *testing.T) {
	example := written(t)["config.toml"]
	var without strings.Builder
	for line := range strings.Lines(example) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			line = rest
		}
		if len(line) > 181 {
			t.Errorf("too long: %s", line)
		}
		without.WriteString(line)
	}
	for name, text := range map[string]string{"as it is": example, "uncommented": without.String()} {
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Read(config.Flags{File: file})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, want := c.Values(), config.Default().Values(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s it means\n%v, want\n%v", name, got, want)
		}
	}
}

// TestFiles: there is a page for each command, and a completion for each shell; nothing depends on
// when they are written.
func TestFiles(t *testing.T) {
	all := written(t)
	for _, verb := range []string{"", "-serve", "-check", "-config", "-shutdown", "-version"} {
		page := all["man/cribox"+verb+".8"]
		if !strings.Contains(page, `"8" "Nov 2026" "cribox 1.2.3"`) || !strings.Contains(page, ".SH EXAMPLE") {
			t.Errorf("cribox%s(8) is\n%s", verb, page)
		}
	}
	for _, name := range []string{"completions/cribox.bash", "completions/_cribox", "completions/cribox.fish"} {
		if !strings.Contains(all[name], "cribox") {
			t.Errorf("%s is %q", name, all[name])
		}
	}
	if again := written(t); !reflect.DeepEqual(all, again) {
		t.Error("written again, the files differ")
	}
}
