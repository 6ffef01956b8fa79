package migrate

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxFile is how many bytes a file of settings has at most.
const maxFile = 4 << 20

// readTOML reads a file as nested maps.
func readTOML(path string) (map[string]any, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	if err := toml.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a file of settings", path)
	}
	return os.ReadFile(path)
}

// exists reports whether the folder has entries, or the file is there.
func exists(path string) bool {
	entries, err := os.ReadDir(path)
	if err == nil {
		return len(entries) > 0
	}
	_, err = os.Stat(path)
	return err == nil
}

// merge sets the keys of over in under; tables are merged, and lists replaced unless join says so.
func merge(under, over map[string]any, join bool) {
	for k, v := range over {
		switch new := v.(type) {
		case map[string]any:
			if old, ok := under[k].(map[string]any); ok {
				merge(old, new, join)
				continue
			}
		case []any:
			if old, ok := under[k].([]any); ok && join {
				under[k] = append(slices.Clone(old), new...)
				continue
			}
		}
		under[k] = v
	}
}

// setting is one key of the other runtime.
type setting struct {
	path  []string
	value any
}

// settings returns the keys that are set in a table, in the order of their names. Lists of tables
// are values.
func settingsOf(m map[string]any, below ...string) (all []setting) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		path := append(slices.Clone(below), k)
		if inner, ok := m[k].(map[string]any); ok {
			all = append(all, settingsOf(inner, path...)...)
			continue
		}
		all = append(all, setting{path, m[k]})
	}
	return all
}

// String is how the setting stands in the file, but in one line.
func (s setting) String() string {
	parts := make([]string, len(s.path))
	for i, p := range s.path {
		parts[i] = p
		if strings.ContainsAny(p, ".:/*") {
			parts[i] = `"` + p + `"`
		}
	}
	value := text(s.value)
	if (secret.MatchString(s.path[len(s.path)-1]) || slices.Contains(s.path, "headers")) && !s.unset() {
		value = "(not shown)"
	}
	return strings.Join(parts, ".") + " = " + value
}

// secret matches names of settings whose values nobody else should see.
var secret = regexp.MustCompile(`(?i)password|^auth|token|secret`)

// unset reports whether the value means nothing: such keys are in files that were printed whole.
func (s setting) unset() bool {
	switch v := s.value.(type) {
	case string:
		return v == ""
	case bool:
		return !v
	case int64:
		return v == 0
	case float64:
		return v == 0
	case []any:
		return len(v) == 0
	}
	return false
}

func (s setting) text() string   { v, _ := s.value.(string); return v }
func (s setting) yes() bool      { v, _ := s.value.(bool); return v }
func (s setting) number() int64  { v, _ := s.value.(int64); return v }
func (s setting) list() []string { return stringsOf(s.value) }

func stringsOf(v any) (all []string) {
	list, _ := v.([]any)
	for _, one := range list {
		if s, ok := one.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

// like reports whether the setting's path is the pattern, in which * stands for any part. It returns
// what the first one stands for.
func (s setting) like(pattern string) (star string, ok bool) {
	parts := strings.Split(pattern, ".")
	if len(parts) != len(s.path) {
		return "", false
	}
	for i, part := range parts {
		switch {
		case part == "*" && star == "":
			star = s.path[i]
		case part != "*" && part != s.path[i]:
			return "", false
		}
	}
	return star, true
}

// rule says what becomes of a setting. star is what stands for the * of the key.
type rule struct {
	key string
	act func(p *Plan, s setting, star string)
}

// apply uses the first rule that matches; a setting without a rule has no counterpart.
func (p *Plan) apply(rules []rule, s setting) {
	for _, r := range rules {
		if star, ok := s.like(r.key); ok {
			r.act(p, s, star)
			return
		}
	}
	if !s.unset() {
		p.add(Missing, s.String(), "", "cribox has no such setting")
	}
}

// Rules that several keys share.

func takes(key string) func(*Plan, setting, string) {
	return func(p *Plan, s setting, _ string) {
		if !s.unset() {
			p.take(s.String(), key, s.value)
		}
	}
}

// takesBool is takes for a key that is true by default in cribox.
func takesBool(key string) func(*Plan, setting, string) {
	return func(p *Plan, s setting, _ string) {
		if s.yes() {
			same("the default of cribox is the same")(p, s, "")
			return
		}
		p.take(s.String(), key, false)
	}
}

func same(note string) func(*Plan, setting, string) {
	return func(p *Plan, s setting, _ string) {
		if !s.unset() {
			p.add(Same, s.String(), "", "%s", note)
		}
	}
}

func missing(note string) func(*Plan, setting, string) {
	return func(p *Plan, s setting, _ string) {
		if !s.unset() {
			p.add(Missing, s.String(), "", "%s", note)
		}
	}
}

// sameIf is same for one value and missing for the others that are set.
func sameIf(value any, is, other string) func(*Plan, setting, string) {
	return func(p *Plan, s setting, star string) {
		if fmt.Sprint(s.value) == fmt.Sprint(value) {
			same(is)(p, s, star)
			return
		}
		missing(other)(p, s, star)
	}
}

// filesIn returns the files and folders in a folder, which may be missing.
func filesIn(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []string
	for _, e := range entries {
		all = append(all, filepath.Join(folder, e.Name()))
	}
	return all, err
}
