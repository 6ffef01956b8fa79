package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/runtimeshim/place"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

// filters remembers the seccomp filters that runtimes have made of profiles. They are also kept in
// the state folder, for a later shim: then no container is started that its filter could be read
// from.
type filters struct {
	env
	now func() time.Time

	mu     sync.Mutex
	known  map[place.Key]*place.Filter
	failed map[place.Key]failures
}

// failures of reading the filter of one profile.
type failures struct {
	n    int
	last time.Time
}

// Limits of what is remembered: pods have one of very few profiles. A container can make reading
// its filter fail, but not for good.
const (
	maxFilters    = 32
	maxFailures   = 3
	failuresCount = 10 * time.Minute
)

func newFilters(e env) *filters {
	return &filters{env: e, now: time.Now, known: map[place.Key]*place.Filter{}, failed: map[place.Key]failures{}}
}

// of returns the filter of a profile, nil if it is not known.
func (f *filters) of(k place.Key) *place.Filter {
	f.mu.Lock()
	have := f.known[k]
	f.mu.Unlock()
	if have != nil {
		return have
	}
	filter := &place.Filter{}
	err := statedir.ReadJSON(f.state.Filter(k.String()), filter)
	if err == nil && !filter.Valid() {
		err = fmt.Errorf("%s has no filter: %w", f.state.Filter(k.String()), errdefs.ErrDataLoss)
	}
	if err != nil {
		if !errdefs.IsNotFound(err) {
			log.L.WithError(err).Warn("cannot read a seccomp filter that an earlier shim has kept")
		}
		return nil
	}
	f.remember(k, filter)
	return filter
}

// wants reports whether the filter of a profile is missing and can be taken.
func (f *filters) wants(k place.Key) bool {
	if f.of(k) != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	had := f.failed[k]
	if had.n >= maxFailures && f.now().Sub(had.last) > failuresCount {
		delete(f.failed, k)
		return true
	}
	return had.n < maxFailures
}

// failure remembers that a filter could not be taken.
func (f *filters) failure(k place.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other := range f.failed {
		if len(f.failed) < maxFilters {
			break
		}
		delete(f.failed, other)
	}
	f.failed[k] = failures{f.failed[k].n + 1, f.now()}
}

// taken remembers a filter, also for later shims.
func (f *filters) taken(k place.Key, filter *place.Filter) {
	f.remember(k, filter)
	err := f.keep(k, filter)
	if err != nil {
		log.L.WithError(err).Warn("cannot keep a seccomp filter for later shims")
	}
}

func (f *filters) remember(k place.Key, filter *place.Filter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other := range f.known {
		if len(f.known) < maxFilters {
			break
		}
		delete(f.known, other)
	}
	delete(f.failed, k)
	f.known[k] = filter
}

// keep writes a filter into the state folder, in the place of the oldest if there are too many.
func (f *filters) keep(k place.Key, filter *place.Filter) error {
	if err := os.Mkdir(f.state.Filters(), 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	have, err := os.ReadDir(f.state.Filters())
	if err != nil {
		return err
	}
	if len(have) >= maxFilters {
		var oldest os.FileInfo
		for _, e := range have {
			if st, err := e.Info(); err == nil && (oldest == nil || st.ModTime().Before(oldest.ModTime())) {
				oldest = st
			}
		}
		if oldest != nil {
			_ = os.Remove(filepath.Join(f.state.Filters(), oldest.Name()))
		}
	}
	return statedir.WriteJSON(f.state.Filter(k.String()), filter)
}
