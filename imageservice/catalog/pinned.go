package catalog

import (
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

// PinnedNames are the names of images that are reported as pinned: those of the configuration, in
// which a * stands for any text, and those that were added.
type PinnedNames struct {
	patterns atomic.Pointer[[]*regexp.Regexp]
	added    atomic.Pointer[[]string]
}

// SetAdded replaces the names that were added.
func (p *PinnedNames) SetAdded(names []string) { p.added.Store(&names) }

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
	if added := p.added.Load(); added != nil && slices.Contains(*added, name) {
		return true
	}
	return slices.ContainsFunc(*p.patterns.Load(), func(r *regexp.Regexp) bool { return r.MatchString(name) })
}
