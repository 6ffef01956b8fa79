package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Flags are the values from the command line. They override the files.
type Flags struct {
	File                string // empty: read no file
	Listen, Root, State string // empty: use the value of the files
}

// Read returns the configuration from the files and the flags, after checking it. Errors contain
// the file, the line and the key.
func Read(f Flags) (Config, error) {
	c := Default()
	if f.File != "" {
		var err error
		if c, err = load(f.File); err != nil {
			return c, err
		}
	}
	c.flags = f
	if f.State != "" {
		if f.Listen == "" && c.Listen == Default().Listen {
			c.Listen = "unix://" + f.State + "/cribox.sock"
		}
		c.State = f.State
	}
	c.Listen, c.Root = cmp.Or(f.Listen, c.Listen), cmp.Or(f.Root, c.Root)
	return c, c.validate(cmp.Or(f.File, DefaultFile))
}

// Reread reads the files again, with the flags that c was read with.
func (c Config) Reread() (Config, error) { return Read(c.flags) }

// load reads the file at path and then path.d/*.toml, in the order of their names. Each key that a
// file sets overrides its default and earlier files. Only the default file and the folder may be
// missing.
func load(path string) (Config, error) {
	c := Default()
	if err := c.read(path); err != nil && (path != DefaultFile || !errors.Is(err, os.ErrNotExist)) {
		return c, err
	}
	entries, err := os.ReadDir(path + ".d")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return c, fmt.Errorf("configuration: %w", err)
	}
	for _, e := range entries { // ReadDir sorts them by name
		if strings.HasPrefix(e.Name(), ".") || filepath.Ext(e.Name()) != ".toml" {
			continue
		}
		if err := c.read(filepath.Join(path+".d", e.Name())); err != nil {
			return c, err
		}
	}
	return c, nil
}

// read sets the keys of c that the file contains.
func (c *Config) read(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	c.files = append(c.files, path)
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return explain(path, err)
	}
	return nil
}

// explain returns a decoder's error with the file, the line and the key.
func explain(path string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var all []error
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			all = append(all, fmt.Errorf("configuration %s, line %d: unknown key %q", path, row, strings.Join(e.Key(), ".")))
		}
		return errors.Join(all...)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, _ := bad.Position()
		key := ""
		if len(bad.Key()) > 0 {
			key = fmt.Sprintf("key %q: ", strings.Join(bad.Key(), "."))
		}
		return fmt.Errorf("configuration %s, line %d: %s%s", path, row, key, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return fmt.Errorf("configuration %s: %w", path, err)
}
