package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// folder is the configuration folder. It keeps the last result and compares names, sizes, times and
// inodes at each read. That takes some tens of microseconds, and needs no watch, which would be
// lost when the folder is removed.
type folder struct {
	dir      string
	own      *bridgeNetwork
	fallback bool // use the default network when the folder is empty

	mu    sync.Mutex
	seen  reading
	began uint64 // number of the last reading started
}

// reading is the result of reading the folder once.
type reading struct {
	number uint64 // in order of starting; a late result does not replace a newer one
	mark   string // fingerprint of everything that was read
	fresh  bool   // something changed so recently that another change may not alter the fingerprint
	net    *network
	err    error
}

// racyAge is the age of a file below which two changes may have the same time stamp (kernel ticks,
// coarse file systems).
const racyAge = 2 * time.Second

const maxFolderEntries = 1000 // per folder; more is an error

// read returns the current network of the folder, or the reason why there is none.
func (f *folder) read(ctx context.Context) (*network, error) {
	f.mu.Lock()
	f.began++
	number, seen := f.began, f.seen
	f.mu.Unlock()

	files, mark, fresh, err := f.look(ctx)
	if err == nil && seen.number > 0 && !seen.fresh && seen.mark == mark {
		return seen.net, seen.err
	}
	now := reading{number: number, mark: mark, fresh: fresh}
	switch {
	case err == nil:
		now.net, now.err = f.choose(ctx, files, seen.net)
		now.fresh = now.fresh || errors.Is(now.err, errUnreadable)
	case f.stands(seen.net): // unreadable now, but known from before
		now.net, now.fresh = seen.net, true
	default:
		now.err, now.fresh = fmt.Errorf("network folder %s: %w", f.dir, err), true
	}
	f.mu.Lock()
	if number > f.seen.number {
		f.seen = now
	}
	f.mu.Unlock()
	return now.net, now.err
}

// stands reports whether a network that was read earlier may still be used: not if it is ours and
// our subnet has changed.
func (f *folder) stands(before *network) bool {
	return before != nil && (!before.ours || joinPrefixes(before.subnets) == joinPrefixes(f.own.subnets()))
}

// choose returns the network of the first valid file. If the current network's file exists but
// cannot be parsed, the network stays.
func (f *folder) choose(ctx context.Context, files []string, before *network) (*network, error) {
	var refused []error
	for _, name := range files {
		w, err := f.parseFile(ctx, name)
		if err == nil {
			return w, nil
		}
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		unreadable := errors.Is(err, errUnreadable)
		if f.stands(before) && (unreadable || before.file == name) {
			return before, nil
		}
		if unreadable { // it may be the network, so those after it cannot be used
			return nil, fmt.Errorf("network folder %s: %s: %w", f.dir, name, err)
		}
		refused = append(refused, fmt.Errorf("%s: %w", name, err))
	}
	if len(refused) > 0 {
		return nil, fmt.Errorf("no usable network in %s: %w", f.dir, errors.Join(refused...))
	}
	if f.fallback {
		return f.own.network(ctx, f.own.subnets())
	}
	return nil, fmt.Errorf("no network configuration in %s", f.dir)
}

// look lists the configuration files, sorted, and returns a fingerprint of everything that
// determines the network.
func (f *folder) look(ctx context.Context) (files []string, mark string, fresh bool, err error) {
	var m strings.Builder
	fmt.Fprintf(&m, "%v\n", f.own.subnets())
	if f.own.wanted.Load() { // nft is not run on a host that does not use the default network
		fmt.Fprintf(&m, "%t %d\n", f.own.masq.works(ctx), f.own.uplinkMTU())
	}
	entries, err := readNames(f.dir)
	if err != nil {
		return nil, "", false, err
	}
	for _, e := range entries {
		if e.IsDir() {
			fresh = f.lookAside(&m, e.Name()) || fresh
			continue
		}
		if !isConf(e.Name()) {
			continue
		}
		files = append(files, e.Name())
		fresh = fingerprint(&m, filepath.Join(f.dir, e.Name())) || fresh
	}
	return files, m.String(), fresh, nil
}

// lookAside adds a folder of side plugins to the fingerprint.
func (f *folder) lookAside(m *strings.Builder, name string) (fresh bool) {
	entries, err := readNames(filepath.Join(f.dir, name))
	if err != nil {
		return true
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".conf" {
			fresh = fingerprint(m, filepath.Join(f.dir, name, e.Name())) || fresh
		}
	}
	return fresh
}

func isConf(name string) bool {
	switch filepath.Ext(name) {
	case ".conf", ".conflist", ".json":
		return true
	}
	return false
}

// readNames lists a folder, sorted; empty if the folder does not exist.
func readNames(dir string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if len(entries) > maxFolderEntries {
		return nil, fmt.Errorf("more than %d entries", maxFolderEntries)
	}
	return entries, err
}

// fingerprint adds a file to the fingerprint m. It follows links, as reading does.
func fingerprint(m *strings.Builder, path string) (fresh bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		fmt.Fprintf(m, "%s %v\n", path, err)
		return true
	}
	fmt.Fprintf(m, "%s %d %d %o %d %d %d\n", path, st.Dev, st.Ino, st.Mode, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
	return time.Since(time.Unix(0, st.Ctim.Nano())).Abs() < racyAge
}

// writeFile replaces a small file atomically, without a sync.
func writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// readOptional reads a file; nil if it does not exist.
func readOptional(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return data, err
}
