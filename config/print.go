package config

import (
	"bytes"

	"github.com/pelletier/go-toml/v2"
)

// Print returns the configuration as a file that can be used as it is, each key below its
// documentation.
func (c Config) Print() ([]byte, error) {
	var b bytes.Buffer
	e := toml.NewEncoder(&b)
	e.SetIndentTables(false)
	if err := e.Encode(c); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Values returns the configuration as tables by their keys in the file.
func (c Config) Values() any {
	all := map[string]any{}
	b, err := toml.Marshal(c)
	if err == nil {
		err = toml.Unmarshal(b, &all)
	}
	if err != nil {
		return err.Error() // for a person; it was read as such a file
	}
	return all
}
