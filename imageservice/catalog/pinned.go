package catalog

import (
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

// PinnedNames are the names of images that are reported as pinned; a * stands for any text.
type PinnedNames struct {
	patterns atomic.Pointer[[]*regexp.Regexp]
}

// Set implements Images.SetPinned.
func (p *PinnedNames) Set(names []string) {
	all := make([]*regexp.Regexp, 0, len(names))
	for _, name := range names {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(name), `\*`, ".*") // always compiles, because it is quoted
		all = append(all, regexp.MustCompile("^"+pattern+"$"))
	}
	p.patterns.Store(&all)
}

// Match reports whether a name is pinned. Set must have been called.
func (p *PinnedNames) Match(name string) bool {
	return slices.ContainsFunc(*p.patterns.Load(), func(r *regexp.Regexp) bool { return r.MatchString(name) })
}
