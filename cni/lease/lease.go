package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	lockName   = "lock"
	lastPrefix = "last_reserved_ip."
	lineBreak  = "\r\n"
	// newName is a lease that has no address yet. Only the holder of the lock uses it.
	newName = lastPrefix + "new"
)

// Folder is the folder of one network's leases.
type Folder string

// Owner is who has a lease: a container id and the name of its link.
type Owner struct{ ID, Link string }

func (o Owner) text() string { return o.ID + lineBreak + o.Link }

// Take leases one free address of each subnet for the owner, who must have none. It goes round: an
// address that was released is used again as late as possible. If it fails, it leases nothing.
// ErrResourceExhausted when a subnet has no free address.
func (f Folder) Take(ctx context.Context, o Owner, subnets []netip.Prefix) ([]netip.Addr, error) {
	var all []netip.Addr
	err := f.locked(ctx, func() error {
		for i, s := range subnets {
			a, err := f.next(ctx, o, s, i)
			if err != nil {
				return errors.Join(fmt.Errorf("lease of %s: %w", s, err),
					f.remove(func(text string) bool { return text == o.text() }))
			}
			all = append(all, a)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// next leases the first free address after the one that was leased last.
func (f Folder) next(ctx context.Context, o Owner, subnet netip.Prefix, index int) (netip.Addr, error) {
	if err := f.draft(o); err != nil {
		return netip.Addr{}, err
	}
	defer os.Remove(f.path(newName))
	first, last := bounds(subnet)
	marker := f.path(lastPrefix + strconv.Itoa(index))
	start := first
	if data, err := os.ReadFile(marker); err == nil {
		if a, err := netip.ParseAddr(string(data)); err == nil && !a.Less(first) && a.Less(last) {
			start = a.Next()
		}
	}
	for a := start; ctx.Err() == nil; {
		err := os.Link(f.path(newName), f.path(a.String()))
		if err == nil {
			return a, f.mark(marker, a)
		}
		if !errors.Is(err, os.ErrExist) {
			return netip.Addr{}, err
		}
		if a = a.Next(); last.Less(a) {
			a = first
		}
		if a == start {
			return netip.Addr{}, fmt.Errorf("all addresses are in use: %w", errdefs.ErrResourceExhausted)
		}
	}
	return netip.Addr{}, ctx.Err()
}

// draft writes the file that becomes a lease. An earlier draft is removed and not written to: it
// may be a lease already.
func (f Folder) draft(o Owner) error {
	if err := os.Remove(f.path(newName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(f.path(newName), []byte(o.text()), 0o600)
}

func (f Folder) mark(marker string, a netip.Addr) error {
	return os.WriteFile(marker, []byte(a.String()), 0o600)
}

// bounds returns the first and the last address of a subnet for containers. host-local's gateway is
// the address before the first; the last one of IPv4 is for broadcasts.
func bounds(subnet netip.Prefix) (first, last netip.Addr) {
	end := subnet.Masked().Addr().AsSlice()
	for i := subnet.Bits(); i < len(end)*8; i++ {
		end[i/8] |= 0x80 >> (i % 8)
	}
	last, _ = netip.AddrFromSlice(end)
	if last.Is4() {
		last = last.Prev()
	}
	return subnet.Masked().Addr().Next().Next(), last
}

// Release takes back every lease of the owner, and those of files with the id alone, which old
// versions of host-local wrote. Idempotent.
func (f Folder) Release(ctx context.Context, o Owner) error {
	if _, err := os.Stat(string(f)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return f.locked(ctx, func() error {
		return f.remove(func(text string) bool { return text == o.text() || text == o.ID })
	})
}

// Collect takes back every lease of others than the given owners.
func (f Folder) Collect(ctx context.Context, inUse []Owner) error {
	keep := map[string]bool{}
	for _, o := range inUse {
		keep[o.text()], keep[o.ID] = true, true
	}
	return f.locked(ctx, func() error {
		return f.remove(func(text string) bool { return !keep[text] })
	})
}

// remove deletes the leases whose content matches.
func (f Folder) remove(match func(text string) bool) error {
	entries, err := os.ReadDir(string(f))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == lockName || strings.HasPrefix(e.Name(), lastPrefix) && e.Name() != newName {
			continue
		}
		data, err := os.ReadFile(f.path(e.Name()))
		if err == nil && match(strings.TrimSpace(string(data))) {
			err = os.Remove(f.path(e.Name()))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (f Folder) path(name string) string { return filepath.Join(string(f), name) }

// locked runs do while it holds the lock that host-local takes too. It creates the folder.
func (f Folder) locked(ctx context.Context, do func() error) error {
	if err := os.MkdirAll(string(f), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(f.path(lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := lock(ctx, file); err != nil {
		return fmt.Errorf("lock %s: %w", f.path(lockName), err)
	}
	defer file.Close() // unlocks it
	return do()
}

// lock locks the file before ctx ends, or closes it.
func lock(ctx context.Context, file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
		return closeOn(file, err)
	}
	done := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		return closeOn(file, err)
	case <-ctx.Done():
		go func() { <-done; file.Close() }()
		return ctx.Err()
	}
}

func closeOn(file *os.File, err error) error {
	if err != nil {
		file.Close()
	}
	return err
}
