package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

const (
	stateFile   = "state"
	askedFile   = "asked"
	askedSuffix = ".asked"
	tornSuffix  = ".torn"
)

// maxCopy is how large a file may be that is copied: the copies lie in memory.
const maxCopy = 64 << 10

// Store is the set of all records. Reads come from memory and never wait for the disk.
type Store struct {
	dir  string
	copy string // a second copy of each file, by the same names; "" for none
	seen func(old, next *Pod)

	mu      sync.RWMutex // guards what follows; never held across I/O
	pods    map[string]*entry
	changes uint64 // of what is shown
}

// entry is one pod. Its record is replaced as a whole and never changed in place, so a reader may
// keep what it got.
type entry struct {
	writing sync.Mutex // one writer of this pod at a time, held across the write of its file and while it is told
	record  *Pod       // guarded by Store.mu
}

// Torn is a folder that could not be read.
type Torn struct {
	ID  string
	Err error
	// Copied: the record comes from the copy. Unread: it stays where it is, and Again may find it
	// readable. Neither: it was damaged and has been set aside.
	Copied, Unread bool
}

// Open reads every record below dir, which it makes when it is missing. What is written from then
// on is written to the folder named copy as well, which need not survive a reboot ("" for none): it
// is read where dir cannot be, by a disk that fails.
//
// A record that is damaged is renamed to *.torn and returned. One that cannot be read is returned
// too, and nothing of it is touched. What a crash left of a record that was not written yet, or was
// being forgotten, is removed. An error means that this machine lacks what is needed to read, or
// that a newer version wrote the records. Then nothing may be concluded from what is missing.
func Open(dir, copy string) (*Store, []Torn, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("open pod records: %w", err)
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open pod records: %w", err)
	}
	s := &Store{dir: dir, copy: copy, pods: map[string]*entry{}, seen: func(_, _ *Pod) {}}
	var torn []Torn
	keep := map[string]bool{}
	for _, f := range found {
		if strings.HasSuffix(f.Name(), tornSuffix) {
			continue
		}
		t, err := s.load(f.Name())
		if err != nil {
			return nil, nil, fmt.Errorf("open pod records: %w", err)
		}
		if t.Err != nil {
			torn = append(torn, t)
		}
		keep[f.Name()] = t.Unread || s.pods[f.Name()] != nil
	}
	return s, torn, s.dropCopies(keep)
}

// load puts one record into memory, or says why that cannot be.
func (s *Store) load(id string) (Torn, error) {
	p, err := s.read(s.dir, id)
	switch {
	case err == nil:
		s.add(p)
		return Torn{}, nil
	case errors.Is(err, os.ErrNotExist):
		return Torn{}, os.RemoveAll(filepath.Join(s.dir, id))
	case errors.Is(err, errdefs.ErrDataLoss):
		return Torn{ID: id, Err: errors.Join(err, s.setAside(id))}, nil
	case errors.Is(err, errNewer) || errors.Is(classify(err), errdefs.ErrResourceExhausted):
		return Torn{}, err
	}
	if s.copy != "" {
		if p, copyErr := s.read(s.copy, id); copyErr == nil {
			s.add(p)
			return Torn{ID: id, Err: err, Copied: true}, nil
		}
	}
	return Torn{ID: id, Err: err, Unread: true}, nil
}

func (s *Store) add(p *Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[p.ID] = &entry{record: p}
	s.changes++
}

// Again reads a record that Open could not. It returns nil when there is none any more.
func (s *Store) Again(id string) (*Pod, error) {
	if _, ok := s.Get(id); !ok {
		p, err := s.read(s.dir, id)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		s.add(p)
	}
	p, _ := s.Get(id)
	return p, nil
}

// dropCopies removes the copies of what is not there any more.
func (s *Store) dropCopies(keep map[string]bool) error {
	if s.copy == "" {
		return nil
	}
	if err := os.MkdirAll(s.copy, 0o700); err != nil {
		return fmt.Errorf("open pod records: %w", err)
	}
	found, err := os.ReadDir(s.copy)
	if err != nil {
		return fmt.Errorf("open pod records: %w", err)
	}
	for _, f := range found {
		if !keep[f.Name()] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.copy, f.Name())))
		}
	}
	return err
}

// errNewer: a newer version wrote the record.
var errNewer = errors.New("use the version that wrote it")

// read returns the record of one folder in dir. os.ErrNotExist when there is none, ErrDataLoss when
// it is damaged.
func (s *Store) read(dir, id string) (*Pod, error) {
	b, err := os.ReadFile(filepath.Join(dir, id, stateFile))
	if err != nil {
		return nil, err
	}
	var p Pod
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("record of pod %s: %w: %w", id, err, errdefs.ErrDataLoss)
	}
	if p.Format > Format {
		return nil, fmt.Errorf("record of pod %s has format %d; this version reads formats up to %d: %w",
			id, p.Format, Format, errNewer)
	}
	if p.Format < 1 || p.ID != id {
		return nil, fmt.Errorf("record of pod %s says it is pod %q in format %d: %w", id, p.ID, p.Format, errdefs.ErrDataLoss)
	}
	p = p.clone()
	return &p, nil
}

// setAside keeps what could not be read for whoever wants to look, in place of an earlier one of
// the same name.
func (s *Store) setAside(id string) error {
	to := filepath.Join(s.dir, id+tornSuffix)
	return errors.Join(os.RemoveAll(to), os.Rename(filepath.Join(s.dir, id), to), s.removeCopy(id))
}

// Observe makes the store call seen after every change that it shows from now on, with the record
// before and after: nil before the first and after the last. Calls for one pod come in the order of
// its changes, and the next one waits, so seen does nothing that takes time. Observe comes before
// the first change.
func (s *Store) Observe(seen func(old, next *Pod)) { s.seen = seen }

// Create remembers a new pod and what was asked for. On error nothing is left.
func (s *Store) Create(p Pod, asked []byte) error {
	p.Format = Format
	p = p.clone()
	folder := filepath.Join(s.dir, p.ID)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return fmt.Errorf("record pod %s: %w", p.ID, classify(err))
	}
	if s.copy != "" {
		_ = os.MkdirAll(filepath.Join(s.copy, p.ID), 0o700) // without it there is no copy, and the pod runs all the same
	}
	err := s.writeFile(p.ID, askedFile, asked)
	if err == nil {
		err = s.write(&p)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("record pod %s: %w", p.ID, err), os.RemoveAll(folder), s.removeCopy(p.ID))
	}
	e := &entry{record: &p}
	e.writing.Lock()
	defer e.writing.Unlock()
	s.mu.Lock()
	s.pods[p.ID] = e
	s.changes++
	s.mu.Unlock()
	s.seen(nil, &p)
	return nil
}

// Get returns the pod's record. The caller may keep it, and changes nothing in it.
func (s *Store) Get(id string) (*Pod, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.pods[id]
	if !ok {
		return nil, false
	}
	return e.record, true
}

// List returns every record, in no order.
func (s *Store) List() []*Pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*Pod, 0, len(s.pods))
	for _, e := range s.pods {
		all = append(all, e.record)
	}
	return all
}

// Changes counts the changes of what Get and List return. As long as it is the same, so is List.
func (s *Store) Changes() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changes
}

// Update changes a pod's record: change gets a copy and may refuse. The file is written first and
// shown afterwards, so that what is shown was written. ErrNotFound when there is no such pod; an
// error of change or of the disk leaves the record as it was.
func (s *Store) Update(id string, change func(*Pod) error) (*Pod, error) {
	return s.update(id, change, false)
}

// ForceUpdate is Update for acts that must go on when the disk is full (stop and remove): the change is
// shown even when it could not be written, and the error of the disk is returned beside the new
// record.
func (s *Store) ForceUpdate(id string, change func(*Pod) error) (*Pod, error) {
	return s.update(id, change, true)
}

func (s *Store) update(id string, change func(*Pod) error, insist bool) (*Pod, error) {
	s.mu.RLock()
	e, ok := s.pods[id]
	s.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("pod %s: %w", id, errdefs.ErrNotFound)
	}
	e.writing.Lock()
	defer e.writing.Unlock()

	s.mu.RLock()
	current, ok := s.pods[id]
	old := e.record
	s.mu.RUnlock()
	if !ok || current != e {
		return nil, fmt.Errorf("pod %s: %w", id, errdefs.ErrNotFound)
	}
	next := old.clone()
	if err := change(&next); err != nil {
		return old, err
	}
	err := s.write(&next)
	if err != nil {
		err = fmt.Errorf("record pod %s: %w", id, err)
		if !insist {
			return old, err
		}
	}
	s.mu.Lock()
	e.record = &next
	s.changes++
	s.mu.Unlock()
	s.seen(old, &next)
	return &next, err
}

// Remove forgets a pod and its files. An unknown pod is no error.
func (s *Store) Remove(id string) error {
	s.mu.RLock()
	e, ok := s.pods[id]
	s.mu.RUnlock()
	if !ok {
		return nil
	}
	e.writing.Lock()
	defer e.writing.Unlock()
	// The record goes first: what a crash leaves of the folder then is no record, and Open removes
	// it.
	folder := filepath.Join(s.dir, id)
	if err := errors.Join(removeIfThere(filepath.Join(folder, stateFile)), os.RemoveAll(folder),
		s.removeCopy(id)); err != nil {
		return fmt.Errorf("forget pod %s: %w", id, err)
	}
	s.mu.Lock()
	current := s.pods[id]
	if current == e {
		delete(s.pods, id)
		s.changes++
	}
	s.mu.Unlock()
	if current == e {
		s.seen(e.record, nil)
	}
	return nil
}

// Asked returns the request of the pod, or of its container cid when that is not empty, from the
// copy where it cannot be read otherwise.
func (s *Store) Asked(id, cid string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, id, askedName(cid)))
	if err == nil {
		return b, nil
	}
	if s.copy != "" {
		if b, copyErr := os.ReadFile(filepath.Join(s.copy, id, askedName(cid))); copyErr == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("request of pod %s %s: %w", id, cid, err)
}

// SetAsked keeps a container's request.
func (s *Store) SetAsked(id, cid string, asked []byte) error {
	if err := s.writeFile(id, askedName(cid), asked); err != nil {
		return fmt.Errorf("record container %s: %w", cid, err)
	}
	return nil
}

// DropAsked forgets a container's request. A missing one is no error.
func (s *Store) DropAsked(id, cid string) error {
	err := removeIfThere(filepath.Join(s.dir, id, askedName(cid)))
	if s.copy != "" {
		err = errors.Join(err, removeIfThere(filepath.Join(s.copy, id, askedName(cid))))
	}
	if err != nil {
		return fmt.Errorf("forget container %s: %w", cid, err)
	}
	return nil
}

func askedName(cid string) string {
	if cid == "" {
		return askedFile
	}
	return cid + askedSuffix
}

func (s *Store) write(p *Pod) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return s.writeFile(p.ID, stateFile, b)
}

// writeFile replaces a file as a whole: a reader after a crash finds the old bytes or the new ones.
// The copy has the same bytes, or is not there.
func (s *Store) writeFile(id, name string, b []byte) error {
	if err := replace(filepath.Join(s.dir, id, name), b); err != nil {
		return classify(err)
	}
	if s.copy != "" {
		path := filepath.Join(s.copy, id, name)
		if len(b) > maxCopy || replace(path, b) != nil {
			_ = os.Remove(path) // an old one is worse than none
		}
	}
	return nil
}

func replace(path string, b []byte) error {
	err := os.WriteFile(path+".tmp", b, 0o600)
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return errors.Join(err, removeIfThere(path+".tmp"))
	}
	return nil
}

func (s *Store) removeCopy(id string) error {
	if s.copy == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(s.copy, id))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
