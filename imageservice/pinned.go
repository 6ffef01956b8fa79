package imageservice

import (
	"regexp"
	"slices"
	"strings"
)

// SetPinned says anew which images are reported as pinned: those with a tag or digest reference that fits one of the names. A name is fully
// qualified, and * in it stands for any characters.
func (c *Images) SetPinned(names []string) {
	all := make([]*regexp.Regexp, 0, len(names))
	for _, name := range names {
		all = append(all, regexp.MustCompile("^"+strings.ReplaceAll(regexp.QuoteMeta(name), `\*`, ".*")+"$")) // quoted, so it compiles
	}
	c.pinNames.Store(&all)
}

func (c *Images) pinned(name string) bool {
	return slices.ContainsFunc(*c.pinNames.Load(), func(r *regexp.Regexp) bool { return r.MatchString(name) })
}
