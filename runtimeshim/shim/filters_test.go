package shim

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cribox/cribox/runtimeshim/oci"
	"github.com/cribox/cribox/runtimeshim/place"
	"github.com/cribox/cribox/runtimeshim/statedir"
)

func keyNumber(n int) place.Key { return place.Key{byte(n), byte(n >> 8)} }

// TestFiltersOutliveTheShim: what one shim has learned the next one knows, whole or not at all.
func TestFiltersOutliveTheShim(t *testing.T) {
	e := env{state: statedir.Root(t.TempDir())}
	want := &place.Filter{Flags: 4, Code: []uint64{1<<64 - 1, 6}}
	newFilters(e).taken(keyNumber(1), want)
	next := newFilters(e)
	if got := next.of(keyNumber(1)); got == nil || got.Flags != want.Flags || !slices.Equal(got.Code, want.Code) || next.wants(keyNumber(1)) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for i, text := range []string{"", "{}", `{"flags": 4, "code": []}`, `{"flags": 2, "code": [6]}`, `{"flags": 4, "code": [6`, `{"flags": 4, "code": [-1]}`} {
		key := keyNumber(100 + i)
		if err := os.WriteFile(e.state.Filter(key.String()), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := next.of(key); got != nil || !next.wants(key) {
			t.Errorf("%q was read as %+v", text, got)
		}
	}
	for i := range 3 * maxFilters {
		next.taken(keyNumber(1000+i), want)
	}
	files, err := os.ReadDir(e.state.Filters())
	if err != nil || len(files) > maxFilters || len(next.known) > maxFilters {
		t.Errorf("%d files, %d in memory, %v", len(files), len(next.known), err)
	}
	info, err := os.Stat(e.state.Filter(keyNumber(1000 + 3*maxFilters - 1).String()))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the newest: %v, %v", info, err)
	}
}

// TestSEC82FailuresExpire: a container that makes reading its filter fail does not decide for all later ones with its profile.
func TestSEC82FailuresExpire(t *testing.T) {
	f := newFilters(env{state: statedir.Root(t.TempDir())})
	now := time.Now()
	f.now = func() time.Time { return now }
	for i := range maxFailures {
		if !f.wants(keyNumber(1)) {
			t.Errorf("not wanted after %d failures", i)
		}
		f.failure(keyNumber(1))
	}
	if f.wants(keyNumber(1)) || !f.wants(keyNumber(2)) {
		t.Errorf("after %d failures: %v; another: %v", maxFailures, f.wants(keyNumber(1)), f.wants(keyNumber(2)))
	}
	now = now.Add(failuresCount + time.Second)
	if !f.wants(keyNumber(1)) {
		t.Error("the failures count for ever")
	}
	for i := range 3 * maxFilters {
		f.failure(keyNumber(i))
	}
	if len(f.failed) > maxFilters {
		t.Errorf("%d profiles that failed are remembered", len(f.failed))
	}
}

// TestSEC82NotStarted: a command whose native program cannot be started is left to the runtime.
func TestSEC82NotStarted(t *testing.T) {
	e := &execution{x: &execs{driver: oci.NewDriver(statedir.Root(t.TempDir()), false)}}
	why, err := e.runJob(t.Context(), &place.Job{Argv: []string{"/proc/self/fd/nothing"}})
	if why == "" || err != nil {
		t.Errorf("got %q, %v", why, err)
	}
	if _, err := e.x.driver.RunProgram(t.Context(), []string{"/nothing"}, nil, oci.Command{}); !errors.Is(err, oci.ErrNotStarted) {
		t.Errorf("got %v", err)
	}
}
