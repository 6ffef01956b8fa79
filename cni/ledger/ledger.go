// Package ledger remembers which network attachments are to be released; it runs no plugin.
//
// The record of an attachment is written before its ADD and removed after its DEL, so that a restart
// knows what to release, and how. Records of the default network are files of their own, all others
// are lines of a journal, which is synced.
package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Format is the version of Record.
const Format = 1

// ValidID matches the ids of pods that have records.
var ValidID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Record has what a DEL needs, as it was passed to the ADD.
type Record struct {
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

// Debt is an ADD that was begun and not undone. Record and line are immutable; the ledger's mutex
// guards the rest.
type Debt struct {
	Record
	Attached bool  // the ADD succeeded in the life of this process
	line     *line // in the journal; nil = it has a file of its own
	unread   bool  // the file could not be read yet: the record is a guess
	failed   bool  // the ADD failed in the life of this process: nobody uses the attachment
}

// Ledger keeps the debts: in memory for lookups, on disk for the time after a crash.
type Ledger struct {
	dir     string // of the files of the default network
	journal *journal

	mu   sync.Mutex
	gap  error // why an attachment may be missing here, or differ from its record; nil = complete
	owed map[string]*Debt
}

// Open reads the debts: lines of file, and files in dir. An unreadable record does not affect
// others: as a file it counts as a debt of the default network, as a line as a debt of the
// configured network.
func Open(ctx context.Context, file, dir string) (*Ledger, error) {
	l := &Ledger{dir: dir, owed: map[string]*Debt{}}
	if err := l.readFiles(ctx); err != nil {
		return nil, err
	}
	j, debts, err := openJournal(ctx, file)
	if err != nil {
		return nil, err
	}
	l.journal = j
	l.incomplete(j.gap)
	for _, d := range debts {
		if before := l.owed[d.Pod]; before != nil && before.line == nil {
			// An older attachment with the same id, cleared before the line was written.
			_ = os.Remove(l.file(d.Pod))
		}
		l.owed[d.Pod] = d
	}
	return l, nil
}

func (l *Ledger) readFiles(ctx context.Context) error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("read network records: %w", err)
	}
	for _, e := range entries {
		if !ValidID.MatchString(e.Name()) || !e.Type().IsRegular() {
			log.G(ctx).WithField("file", filepath.Join(l.dir, e.Name())).Warn("ignoring a file that is not a network record")
			l.incomplete(fmt.Errorf("%s is not a network record", filepath.Join(l.dir, e.Name())))
			continue
		}
		d := &Debt{Record: Record{Pod: e.Name(), Default: true}}
		if err := l.load(ctx, d); err != nil {
			log.G(ctx).WithError(err).WithField("pod", d.Pod).
				Warn("cannot read a network record now; will read it again before its DEL")
			d.unread = true
			l.incomplete(err)
		}
		l.owed[d.Pod] = d
	}
	return nil
}

// load reads the record of a debt that has a file of its own. A damaged record counts as one of the
// default network. ErrUnavailable when the file cannot be read now.
func (l *Ledger) load(ctx context.Context, d *Debt) error {
	data, err := os.ReadFile(l.file(d.Pod))
	if err != nil {
		return fmt.Errorf("network record of pod %s: %w: %w", d.Pod, err, errdefs.ErrUnavailable)
	}
	pod := d.Pod
	if err := d.parse(pod, data); err != nil {
		log.G(ctx).WithError(err).WithField("pod", pod).
			Warn("network record is damaged; treating it as one of the default network")
		d.Record = Record{Pod: pod, Default: true}
		l.incomplete(fmt.Errorf("the network record of pod %s is damaged", pod))
	}
	return nil
}

func (d *Debt) parse(pod string, data []byte) error {
	if err := json.Unmarshal(data, &d.Record); err != nil {
		return err
	}
	if d.Pod != pod || d.Format < 1 || d.Format > Format {
		return fmt.Errorf("record of pod %q has unknown format %d: %w", d.Pod, d.Format, errdefs.ErrDataLoss)
	}
	return nil
}

func (l *Ledger) file(pod string) string { return filepath.Join(l.dir, pod) }

// Begin writes the record; after that the ADD may run. The pod must have no debt.
func (l *Ledger) Begin(ctx context.Context, r Record) error {
	d := &Debt{Record: r}
	data, err := json.Marshal(&d.Record)
	if err != nil {
		return err
	}
	if r.Default {
		err = os.WriteFile(l.file(r.Pod), data, 0o600)
		if err != nil {
			_ = os.Remove(l.file(r.Pod))
		}
	} else {
		d.line, err = l.journal.add(ctx, r.Pod, data)
	}
	if err != nil {
		return fmt.Errorf("record network of pod %s: %w", r.Pod, diskError(err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owed[r.Pod] = d
	return nil
}

// SetOutcome stores in memory whether the ADD succeeded. After a restart only its beginning is known.
func (l *Ledger) SetOutcome(pod string, attached bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.owed[pod]; d != nil {
		d.Attached, d.failed = attached, !attached
	}
}

// Clear removes a debt. If the disk write fails, the attachment is released a second time after a
// restart, which is harmless, so the error is only for the log.
func (l *Ledger) Clear(ctx context.Context, pod string) error {
	l.mu.Lock()
	d := l.owed[pod]
	delete(l.owed, pod)
	l.mu.Unlock()
	if d == nil {
		return nil
	}
	if d.line != nil {
		return l.journal.strike(ctx, d.line)
	}
	if err := os.Remove(l.file(pod)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Read is Get for callers that need the record: it reads one that could not be read before.
func (l *Ledger) Read(ctx context.Context, pod string) (Debt, bool, error) {
	d, ok := l.Get(pod)
	if !d.unread {
		return d, ok, nil
	}
	err := l.load(ctx, &d)
	return d, ok, err
}

// Complete returns the reason why an attachment may be missing from the ledger, or nil.
func (l *Ledger) Complete() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gap
}

// incomplete stores the first reason why an attachment may be missing.
func (l *Ledger) incomplete(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gap = cmp.Or(l.gap, err)
}

// Get returns a copy of the pod's debt.
func (l *Ledger) Get(pod string) (Debt, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.owed[pod]
	if d == nil {
		return Debt{}, false
	}
	return *d, true
}

// choose returns the ids of the matching debts, sorted.
func (l *Ledger) choose(match func(*Debt) bool) []string {
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

// IDs returns the ids of all pods with a debt.
func (l *Ledger) IDs() []string { return l.choose(func(*Debt) bool { return true }) }

// Abandoned returns failed attachments of the same pod under other ids: those of earlier attempts.
func (l *Ledger) Abandoned(r Record) []string {
	return l.choose(func(d *Debt) bool {
		return d.failed && d.Pod != r.Pod && d.UID == r.UID && d.Name == r.Name && d.Namespace == r.Namespace
	})
}

// OfNetwork returns the debts of a network; damaged records count for every network.
func (l *Ledger) OfNetwork(name string) []string {
	return l.choose(func(d *Debt) bool { return d.Network == name || d.Network == "" })
}

func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}
