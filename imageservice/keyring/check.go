package keyring

import (
	"fmt"
	"os"
	"slices"
)

// Check looks for what would fail when credentials are needed: a file that cannot be read, or that
// others than its owner can read, and helpers that are missing. It runs no helper. A file that is
// missing is in order: there is then nothing to find.
func (k *Keyring) Check() (present bool, problems []error) {
	info, err := os.Stat(k.file)
	if k.file == "" || os.IsNotExist(err) {
		return false, nil
	}
	doc, err := k.read()
	if err != nil {
		return true, []error{fmt.Errorf("read %s: %w", k.file, err)}
	}
	if info.Mode().Perm()&0o077 != 0 {
		problems = append(problems, fmt.Errorf("%s has mode %04o: others than its owner can use the credentials in it",
			k.file, info.Mode().Perm()))
	}
	names := []string{}
	if doc.Store != "" {
		names = append(names, doc.Store)
	}
	for _, name := range doc.Helpers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if _, err := k.program(name); err != nil {
			problems = append(problems, err)
		}
	}
	return true, problems
}
