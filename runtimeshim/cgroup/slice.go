package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Ledger finds the OOM kills of scopes that systemd has removed. With cgroup version 2 it does so as
// soon as the last process is dead, perhaps before anybody has read the counter; a file that is
// still open then cannot be read either. The slice stays, and its counter includes those of all that
// is or was in it. What it has counted, and neither its present cgroups nor those whose end is known
// have, is of a scope that is gone.
type Ledger struct {
	mu     sync.Mutex
	slices map[string]*sliceAccount // by folder
	turn   int                      // of changes, so that no account is made from an old reading
}

// sliceAccount is what is known of the scopes of tasks in one slice.
type sliceAccount struct {
	settled uint64 // kills in cgroups that are gone, of which nobody will ask
	scopes  map[string]*scopeAccount
}

type scopeAccount struct {
	kills uint64 // the most that were seen, or attributed
	ended bool   // nobody will ask for its kills again
}

// reading is what the kernel says about a slice at one moment.
type reading struct {
	total uint64            // kills in the slice, ever
	live  map[string]uint64 // by cgroup that is in it
}

func newLedger() *Ledger { return &Ledger{slices: map[string]*sliceAccount{}} }

// place returns slice and name of the scope with this memory.events. Not ok for other cgroups, which
// only we remove.
func place(file string) (slice, scope string, ok bool) {
	dir := filepath.Dir(file)
	ok = filepath.Base(file) == "memory.events" && strings.HasSuffix(dir, ".scope")
	return filepath.Dir(dir), filepath.Base(dir), ok
}

// Begin must be called before a task starts. It may be called again.
func (l *Ledger) Begin(file string) {
	slice, scope, ok := place(file)
	if !ok {
		return
	}
	l.forgetSlices()
	l.update(slice, func(r reading) {
		a := l.slices[slice]
		if a == nil {
			a = &sliceAccount{scopes: map[string]*scopeAccount{}, settled: less(r.total, sum(r.live))}
			l.slices[slice] = a
		}
		a.settle(r)
		if a.scopes[scope] == nil {
			a.scopes[scope] = &scopeAccount{}
		}
	})
}

// Kills returns the kills in a scope that may be gone; 0 if Begin was not called.
func (l *Ledger) Kills(file string) (kills uint64) {
	slice, scope, ok := place(file)
	if !ok {
		return 0
	}
	l.update(slice, func(r reading) {
		if a := l.slices[slice]; a != nil && a.scopes[scope] != nil {
			kills = a.of(scope, r)
		}
	})
	return kills
}

// End says that nobody will ask for this scope's kills again, of which so many are known.
func (l *Ledger) End(file string, kills uint64) {
	slice, scope, _ := place(file)
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.slices[slice]; a != nil && a.scopes[scope] != nil {
		a.scopes[scope].ended = true
		a.scopes[scope].kills = max(a.scopes[scope].kills, kills)
		l.turn++
	}
}

// settle takes in a reading. Once every scope that somebody will ask for is in the slice, all other
// kills are of cgroups that nobody asks for.
func (a *sliceAccount) settle(r reading) {
	missing := false
	for name, s := range a.scopes {
		n, present := r.live[name]
		switch {
		case present:
			s.kills = max(s.kills, n)
		case s.ended:
			a.settled += s.kills
			delete(a.scopes, name)
		default:
			missing = true
		}
	}
	rest := less(r.total, sum(r.live))
	if r.total < a.settled { // the slice is a new one, which counts from 0
		a.settled = rest
	} else if !missing {
		a.settled = max(a.settled, rest)
	}
}

// of returns the kills of a scope. If several are gone whose kills nobody has read, each gets one.
func (a *sliceAccount) of(scope string, r reading) uint64 {
	a.settle(r)
	s := a.scopes[scope]
	if _, present := r.live[scope]; present {
		return s.kills
	}
	known, others := a.settled+sum(r.live), false
	for name, s := range a.scopes {
		if _, present := r.live[name]; !present {
			known += s.kills
			others = others || name != scope && !s.ended
		}
	}
	switch lost := less(r.total, known); {
	case lost > 0 && others:
		s.kills++
	case lost > 0:
		s.kills += lost
	}
	return s.kills
}

// ledgerTries limits how often a slice is read again that changes meanwhile.
const ledgerTries = 5

// update reads a slice and gives the reading to change, which runs under the lock.
func (l *Ledger) update(slice string, change func(reading)) {
	for try := 0; ; try++ {
		l.mu.Lock()
		turn := l.turn
		l.mu.Unlock()
		r := readSlice(slice)
		l.mu.Lock()
		if turn == l.turn || try == ledgerTries {
			l.turn++
			change(r)
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
	}
}

// readSlice reads the counters of a slice and of all that is in it, until the sum does not change
// meanwhile. A slice that is not there has counted nothing.
func readSlice(slice string) (r reading) {
	count := func(dir string) uint64 {
		text, _ := os.ReadFile(filepath.Join(dir, "memory.events"))
		return ParseOOMKills(text)
	}
	r.total = count(slice)
	for range ledgerTries {
		r.live = map[string]uint64{}
		entries, _ := os.ReadDir(slice)
		for _, e := range entries {
			if e.IsDir() {
				r.live[e.Name()] = count(filepath.Join(slice, e.Name()))
			}
		}
		again := count(slice)
		if again == r.total {
			break
		}
		r.total = again
	}
	return r
}

// forgetSlices drops the accounts of slices that are gone and of which nobody will ask.
func (l *Ledger) forgetSlices() {
	var idle []string
	l.mu.Lock()
	for slice, a := range l.slices {
		if a.idle() {
			idle = append(idle, slice)
		}
	}
	l.mu.Unlock()
	for _, slice := range idle {
		if _, err := os.Lstat(slice); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		l.mu.Lock()
		if a := l.slices[slice]; a != nil && a.idle() {
			delete(l.slices, slice)
		}
		l.mu.Unlock()
	}
}

func (a *sliceAccount) idle() bool {
	for _, s := range a.scopes {
		if !s.ended {
			return false
		}
	}
	return true
}

func sum(counts map[string]uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// less returns a - b, and 0 when b is larger.
func less(a, b uint64) uint64 { return a - min(a, b) }
