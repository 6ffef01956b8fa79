package config

import (
	"bytes"

	"github.com/pelletier/go-toml/v2"
)

// Print returns the configuration as a valid TOML file, with each key's documentation above it.
func (c Config) Print() ([]byte, error) {
	var b bytes.Buffer
	e := toml.NewEncoder(&b)
	e.SetIndentTables(false)
	if err := e.Encode(c); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Values returns the configuration as nested maps, by the names of its keys in the file.
func (c Config) Values() any {
	all := map[string]any{}
	b, err := toml.Marshal(c)
	if err == nil {
		err = toml.Unmarshal(b, &all)
	}
	if err != nil {
		return err.Error() // cannot happen, and only people read the result
	}
	return all
}
