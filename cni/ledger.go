package cni

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// recordFormat is the version of record.
const recordFormat = 1

// record has what a DEL needs, as it was passed to the ADD.
type record struct {
	Format    int    `json:"format"`
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	NetNS     string `json:"netns"`
	Network   string `json:"network"`
	// Default: all plugins are ours, so the record is a file and not a line.
	Default      bool            `json:"default"`
	Conf         []byte          `json:"conf"` // exactly the list's bytes
	Args         [][2]string     `json:"args"`
	Capabilities json.RawMessage `json:"capabilities"`
}

// debt is an ADD that was begun and not undone. Record and line are immutable; the ledger's mutex
// guards the rest.
type debt struct {
	record
	line     *line // in the book; nil = it has a file of its own
	attached bool  // the ADD succeeded in the life of this process
	unread   bool  // the file could not be read yet: the record is a guess
	failed   bool  // the ADD failed in the life of this process: nobody uses the attachment
}

// ledger keeps the debts: in memory for lookups, on disk for the time after a crash.
type ledger struct {
	dir  string // of the files of the default network
	book *book

	mu   sync.Mutex
	odd  error // why an attachment may be missing here, or differ from its record; nil = complete
	owed map[string]*debt
}

// openLedger reads the debts. An unreadable record does not affect others: as a file it counts as a
// debt of the default network, as a line as a debt of the configured network.
func openLedger(ctx context.Context, file, dir string) (*ledger, error) {
	l := &ledger{dir: dir, owed: map[string]*debt{}}
	if err := l.readFiles(ctx); err != nil {
		return nil, err
	}
	b, debts, err := openBook(ctx, file)
	if err != nil {
		return nil, err
	}
	l.book = b
	l.suspect(b.odd)
	for _, d := range debts {
		if before := l.owed[d.Pod]; before != nil && before.line == nil {
			// An older attachment with the same id, cleared before the line was written.
			_ = os.Remove(l.file(d.Pod))
		}
		l.owed[d.Pod] = d
	}
	return l, nil
}

func (l *ledger) readFiles(ctx context.Context) error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("read network records: %w", err)
	}
	for _, e := range entries {
		if !podID.MatchString(e.Name()) || !e.Type().IsRegular() {
			log.G(ctx).WithField("file", filepath.Join(l.dir, e.Name())).Warn("ignoring a file that is not a network record")
			l.suspect(fmt.Errorf("%s is not a network record", filepath.Join(l.dir, e.Name())))
			continue
		}
		d := &debt{record: record{Pod: e.Name(), Default: true}}
		if err := l.load(ctx, d); err != nil {
			log.G(ctx).WithError(err).WithField("pod", d.Pod).Warn("cannot read a network record now; will read it again before its DEL")
			d.unread = true
			l.suspect(err)
		}
		l.owed[d.Pod] = d
	}
	return nil
}

// load reads the record of a debt that has a file of its own. A damaged record counts as one of the
// default network. ErrUnavailable when the file cannot be read now.
func (l *ledger) load(ctx context.Context, d *debt) error {
	data, err := os.ReadFile(l.file(d.Pod))
	if err != nil {
		return fmt.Errorf("network record of pod %s: %w: %w", d.Pod, err, errdefs.ErrUnavailable)
	}
	pod := d.Pod
	if err := d.parse(pod, data); err != nil {
		log.G(ctx).WithError(err).WithField("pod", pod).Warn("network record is damaged; treating it as one of the default network")
		d.record = record{Pod: pod, Default: true}
		l.suspect(fmt.Errorf("the network record of pod %s is damaged", pod))
	}
	return nil
}

func (d *debt) parse(pod string, data []byte) error {
	if err := json.Unmarshal(data, &d.record); err != nil {
		return err
	}
	if d.Pod != pod || d.Format < 1 || d.Format > recordFormat {
		return fmt.Errorf("record of pod %q has unknown format %d: %w", d.Pod, d.Format, errdefs.ErrDataLoss)
	}
	return nil
}

func (l *ledger) file(pod string) string { return filepath.Join(l.dir, pod) }

// begin writes the record; after that the ADD may run. The pod must have no debt.
func (l *ledger) begin(ctx context.Context, r record) error {
	d := &debt{record: r}
	data, err := json.Marshal(&d.record)
	if err != nil {
		return err
	}
	if r.Default {
		err = os.WriteFile(l.file(r.Pod), data, 0o600)
		if err != nil {
			_ = os.Remove(l.file(r.Pod))
		}
	} else {
		d.line, err = l.book.add(ctx, r.Pod, data)
	}
	if err != nil {
		return fmt.Errorf("record network of pod %s: %w", r.Pod, diskError(err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owed[r.Pod] = d
	return nil
}

// settle stores the outcome of an ADD in memory. After a restart only its beginning is known.
func (l *ledger) settle(pod string, attached bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.owed[pod]; d != nil {
		d.attached, d.failed = attached, !attached
	}
}

// clear removes a debt. If the disk write fails, the debt is paid a second time after a restart,
// which is harmless, so the error is only for the log.
func (l *ledger) clear(ctx context.Context, pod string) error {
	l.mu.Lock()
	d := l.owed[pod]
	delete(l.owed, pod)
	l.mu.Unlock()
	if d == nil {
		return nil
	}
	if d.line != nil {
		return l.book.strike(ctx, d.line)
	}
	if err := os.Remove(l.file(pod)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// read is get for callers that need the record: it reads one that could not be read before.
func (l *ledger) read(ctx context.Context, pod string) (debt, bool, error) {
	d, ok := l.get(pod)
	if !d.unread {
		return d, ok, nil
	}
	err := l.load(ctx, &d)
	return d, ok, err
}

// doubt returns the reason why an attachment may be missing from the ledger, or nil.
func (l *ledger) doubt() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.odd
}

// suspect stores the first reason for doubt.
func (l *ledger) suspect(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.odd = cmp.Or(l.odd, err)
}

// get returns a copy of the pod's debt.
func (l *ledger) get(pod string) (debt, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.owed[pod]
	if d == nil {
		return debt{}, false
	}
	return *d, true
}

// choose returns the ids of the matching debts, sorted.
func (l *ledger) choose(match func(*debt) bool) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for id, d := range l.owed {
		if match(d) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (l *ledger) ids() []string { return l.choose(func(*debt) bool { return true }) }

// abandoned returns failed attachments of the same pod under other ids: those of earlier attempts.
func (l *ledger) abandoned(r record) []string {
	return l.choose(func(d *debt) bool {
		return d.failed && d.Pod != r.Pod && d.UID == r.UID && d.Name == r.Name && d.Namespace == r.Namespace
	})
}

// ofNetwork returns the debts of a network; damaged records count for every network.
func (l *ledger) ofNetwork(name string) []string {
	return l.choose(func(d *debt) bool { return d.Network == name || d.Network == "" })
}

func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
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

// trimHole removes the zeros that a write which never reached the disk left before one that did.
func trimHole(line []byte) []byte { return bytes.TrimLeft(line, "\x00") }
