package migrate

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Source is a runtime that a node moves away from.
type Source string

// The runtimes that a Plan can be made of.
const (
	Containerd Source = "containerd"
	CRIO       Source = "crio"
)

// Kind says what becomes of a setting.
type Kind string

// Kinds of lines.
const (
	Taken   Kind = "taken"
	Same    Kind = "same"
	Missing Kind = "missing"
)

// Line says what becomes of one setting, or of one file.
type Line struct {
	Kind Kind   `json:"kind"`
	From string `json:"from"`           // the key and its value, in the words of the other runtime
	To   string `json:"to,omitempty"`   // a setting of cribox
	Note string `json:"note,omitempty"` // why, or what to do
}

// File is a file to be written.
type File struct {
	Path    string      `json:"path"`
	Content []byte      `json:"-"`
	Mode    fs.FileMode `json:"-"`
}

// Plan is what a migration does.
type Plan struct {
	Source Source   `json:"source"`
	Read   []string `json:"read"` // the files that it was made of
	Lines  []Line   `json:"lines"`
	Files  []File   `json:"files"`

	Pulls []string `json:"pulls,omitempty"` // images that have to be pulled again

	StoreRoot string `json:"storeRoot,omitempty"` // folder of containerd, which has its images
	Sandbox   string `json:"-"`                   // its image of pause containers
	Discarded bool   `json:"-"`                   // containerd keeps no layers of images that are unpacked

	settings   map[string]any // of cribox, by keys such as "images.downloads"
	policyPath string         // of CRI-O's policy about signatures, if its configuration names one
}

// Options say where a plan reads, and where it writes.
type Options struct {
	Host       string // folder in which the paths of the other runtime are looked for; "" is the host's root
	ConfigFile string // of the other runtime; "" is its default
	DropIns    string // folder of cribox for files that add to its configuration
	Registries string // folder of cribox with hosts.toml files

	// Credentials and Policy are the files that cribox reads now, "" for none.
	Credentials, Policy string

	Valid func(dropIn []byte) error // nil if cribox takes the file with settings
}

// path returns where a path of the other runtime is.
func (o Options) path(p string) string { return filepath.Join(cmp.Or(o.Host, "/"), p) }

func (p *Plan) add(kind Kind, from, to, format string, args ...any) {
	p.Lines = append(p.Lines, Line{Kind: kind, From: from, To: to, Note: fmt.Sprintf(format, args...)})
}

// take sets a key of cribox.
func (p *Plan) take(from, key string, value any) {
	if p.settings == nil {
		p.settings = map[string]any{}
	}
	p.settings[key] = value
	p.add(Taken, from, key+" = "+text(value), "")
}

// append adds to a list of cribox.
func (p *Plan) append(from, key, value string) {
	old, _ := p.settings[key].([]string)
	if slices.Contains(old, value) {
		return
	}
	p.take(from, key, append(slices.Clone(old), value))
	p.Lines[len(p.Lines)-1].To = key + " += " + text(value)
}

// text is a value as TOML writes it.
func text(value any) string {
	b, err := toml.Marshal(map[string]any{"v": value})
	if err != nil || strings.Contains(string(b), "[v]") {
		return fmt.Sprint(value)
	}
	return strings.TrimSpace(strings.TrimPrefix(string(b), "v = "))
}

// fileName is the file with the settings that are taken.
func (o Options) fileName(s Source) string { return filepath.Join(o.DropIns, "50-"+string(s)+".toml") }

// encode returns settings as a file.
func (p *Plan) encode(settings map[string]any) ([]byte, error) {
	tree := map[string]any{}
	for _, key := range sortedKeys(settings) {
		at, parts := tree, keyParts(key)
		for _, part := range parts[:len(parts)-1] {
			next, ok := at[part].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[part] = next
			}
			at = next
		}
		at[parts[len(parts)-1]] = settings[key]
	}
	b, err := toml.Marshal(tree)
	head := fmt.Sprintf("# Written by `cribox migrate %s`; `cribox migrate %s --undo` removes it.\n", p.Source, p.Source)
	return append([]byte(head), b...), err
}

// check takes back the settings that cribox refuses. Those of runtimes belong together.
func (p *Plan) check(o Options) error {
	groups := map[string]map[string]any{}
	for key, value := range p.settings {
		group := key
		if key == "default_runtime" || strings.HasPrefix(key, "runtimes") {
			group = "runtimes"
		}
		if groups[group] == nil {
			groups[group] = map[string]any{}
		}
		groups[group][key] = value
	}
	for _, group := range sortedKeys(groups) {
		b, err := p.encode(groups[group])
		if err != nil {
			return err
		}
		if err := o.Valid(b); err != nil {
			for key := range groups[group] {
				delete(p.settings, key)
				p.refused(key, err)
			}
		}
	}
	return nil
}

// refused makes the lines of a key that was taken say that it is not.
func (p *Plan) refused(key string, err error) {
	parts := keyParts(key)
	begin := key
	if len(parts) > 2 {
		begin = fmt.Sprintf("[%s.%s] %s", parts[0], parts[1], parts[2])
	}
	for i := range p.Lines {
		if l := &p.Lines[i]; l.Kind == Taken && strings.HasPrefix(l.To, begin+" ") {
			l.Kind, l.Note = Missing, fmt.Sprintf("cribox refuses %s: %v", l.To, err)
			l.To = ""
		}
	}
}

// keyParts splits a key at dots, or at zeros where a part has a dot itself.
func keyParts(key string) []string {
	if strings.Contains(key, "\x00") {
		return strings.Split(key, "\x00")
	}
	return strings.Split(key, ".")
}

// finish adds the file with the settings, and sorts the lines and files.
func (p *Plan) finish(o Options) error {
	if o.Valid != nil {
		if err := p.check(o); err != nil {
			return err
		}
	}
	if len(p.settings) > 0 {
		b, err := p.encode(p.settings)
		if err != nil {
			return err
		}
		p.Files = append(p.Files, File{Path: o.fileName(p.Source), Content: b, Mode: 0o644})
	}
	order := []Kind{Taken, Same, Missing}
	slices.SortStableFunc(p.Lines, func(a, b Line) int {
		return cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind))
	})
	slices.SortFunc(p.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
