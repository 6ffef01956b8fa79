package node

import (
	"path/filepath"
	"slices"
	"strings"
)

// MissingPaths says what happens to a mount whose host path does not exist.
type MissingPaths struct {
	Refuse bool     // it is refused; otherwise a folder is made there
	Never  []string // paths at and below which none is ever made
}

// Forbids returns the entry that forbids to make path, "" for none.
func (p MissingPaths) Forbids(path string) string {
	i := slices.IndexFunc(p.Never, func(never string) bool {
		never = filepath.Clean(never)
		return never == "/" || path == never || strings.HasPrefix(path, never+"/")
	})
	if i < 0 {
		return ""
	}
	return p.Never[i]
}
