package lease

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func prefixes(s string) (all []netip.Prefix) {
	for _, p := range strings.Split(s, ",") {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

func names(t *testing.T, f Folder) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(string(f))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestBounds(t *testing.T) {
	for subnet, want := range map[string]string{
		"10.83.0.0/16": "10.83.0.2 10.83.255.254", "10.0.0.0/30": "10.0.0.2 10.0.0.2", "10.0.0.128/25": "10.0.0.130 10.0.0.254",
		"fd85::/64": "fd85::2 fd85::ffff:ffff:ffff:ffff", "fd85::4/126": "fd85::6 fd85::7",
	} {
		first, last := bounds(netip.MustParsePrefix(subnet))
		if got := first.String() + " " + last.String(); got != want {
			t.Errorf("%s: %s, want %s", subnet, got, want)
		}
	}
}

// TestGoesRound: an address that was released is used again after all the others. Each file is one
// of host-local.
func TestGoesRound(t *testing.T) {
	f := Folder(filepath.Join(t.TempDir(), "net"))
	subnets := prefixes("10.0.0.0/29,fd00::/64")
	var got []string
	for range 7 {
		a, err := f.Take(t.Context(), Owner{"pod", "eth0"}, subnets)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a[0].String())
		data, err := os.ReadFile(f.path(a[1].String()))
		if err != nil || string(data) != "pod\r\neth0" {
			t.Fatalf("the lease of %s has %q, %v", a[1], data, err)
		}
		if err := f.Release(t.Context(), Owner{"pod", "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	if want := "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.2 10.0.0.3"; strings.Join(got, " ") != want {
		t.Errorf("addresses %v, want %s", got, want)
	}
	if left := names(t, f); !slices.Equal(left, []string{"last_reserved_ip.0", "last_reserved_ip.1", "lock"}) {
		t.Errorf("left: %v", left)
	}
}

// TestFull: a subnet without a free address gives none of the other either.
func TestFull(t *testing.T) {
	f := Folder(t.TempDir())
	subnets := prefixes("fd00::/64,10.0.0.0/30")
	if _, err := f.Take(t.Context(), Owner{"first", "eth0"}, subnets); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Take(t.Context(), Owner{"second", "eth0"}, subnets); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Fatal(err)
	}
	if got := names(t, f); !slices.Equal(got, []string{"10.0.0.2", "fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"}) {
		t.Errorf("leases %v", got)
	}
}

// TestReleaseAndCollect: leases of others, of other links and what is no lease stay. Old versions of
// host-local wrote the id alone.
func TestReleaseAndCollect(t *testing.T) {
	files := map[string]string{"10.0.0.2": "a\r\neth0", "10.0.0.3": "a", "10.0.0.4": "b\r\neth0", "10.0.0.5": "a\r\nnet1", "10.0.0.6": "", "last_reserved_ip.0": "a"}
	for name, row := range map[string]struct {
		do   func(Folder) error
		left string
	}{
		"release": {func(f Folder) error { return f.Release(t.Context(), Owner{"a", "eth0"}) }, "10.0.0.4 10.0.0.5 10.0.0.6 last_reserved_ip.0 lock"},
		"collect": {func(f Folder) error { return f.Collect(t.Context(), []Owner{{"a", "eth0"}}) }, "10.0.0.2 10.0.0.3 last_reserved_ip.0 lock"},
	} {
		f := Folder(t.TempDir())
		for file, content := range files {
			if err := os.WriteFile(f.path(file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(row.do(f), row.do(f)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(names(t, f), " "); got != row.left {
			t.Errorf("%s: left %s, want %s", name, got, row.left)
		}
	}
	if none := Folder(filepath.Join(t.TempDir(), "none")); none.Release(t.Context(), Owner{"a", "eth0"}) != nil {
		t.Error("a folder that does not exist cannot be released from")
	}
}

// TestDraftOfTheKilled: a process was killed when its draft had just become a lease. The next one
// does not write into that lease.
func TestDraftOfTheKilled(t *testing.T) {
	f := Folder(t.TempDir())
	if err := errors.Join(f.draft(Owner{"killed", "eth0"}), os.Link(f.path(newName), f.path("10.0.0.2"))); err != nil {
		t.Fatal(err)
	}
	a, err := f.Take(t.Context(), Owner{"next", "eth0"}, prefixes("10.0.0.0/24"))
	if err != nil || a[0].String() != "10.0.0.3" {
		t.Fatal(a, err)
	}
	if data, err := os.ReadFile(f.path("10.0.0.2")); err != nil || string(data) != "killed\r\neth0" {
		t.Errorf("%q %v", data, err)
	}
}

// TestConcurrentTakes: many at once get different addresses.
func TestConcurrentTakes(t *testing.T) {
	f := Folder(t.TempDir())
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			a, err := f.Take(t.Context(), Owner{string(rune('A' + i)), "eth0"}, prefixes("10.0.0.0/24"))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[a[0]] = true
		})
	}
	wg.Wait()
	if len(seen) != 50 {
		t.Errorf("%d addresses", len(seen))
	}
}

// TestLocked: a plugin that holds the lock is waited for, but not longer than the caller wants.
func TestLocked(t *testing.T) {
	f := Folder(t.TempDir())
	held, err := os.OpenFile(f.path(lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Release(ctx, Owner{"a", "eth0"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	taken := make(chan error, 1)
	go func() {
		_, err := f.Take(t.Context(), Owner{"a", "eth0"}, prefixes("10.0.0.0/24"))
		taken <- err
	}()
	held.Close()
	if err := <-taken; err != nil {
		t.Error(err)
	}
}
