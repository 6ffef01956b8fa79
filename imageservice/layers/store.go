// Package layers unpacks the layers of images and knows which of them are here; it neither
// downloads nor mounts.
package layers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/cribox/cribox/imageservice/overlay"
	"github.com/cribox/cribox/internal/tree"
)

// Layer is an unpacked and verified layer. It is proven to be on disk only when a record lists it.
type Layer struct {
	DiffID digest.Digest `json:"diff_id"`
	Fixes  string        `json:"fixes,omitempty"` // see link.go
	Dir    string        `json:"dir"`             // below layers/
	Bytes  uint64        `json:"bytes"`           // what du says
	Inodes uint64        `json:"inodes"`
	Opaque bool          `json:"opaque,omitempty"` // its root hides every layer below, which overlayfs does not do by itself
}

func (l Layer) Key() string { return KeyOf(l.DiffID, l.Fixes) }

func KeyOf(diffID digest.Digest, fixes string) string {
	if fixes == "" {
		return string(diffID)
	}
	return string(diffID) + "+" + fixes
}

// Store owns layers/: the folders of unpacked layers, and which of them are known.
type Store struct {
	Root string // layers/
	step func(string)

	mu    sync.Mutex
	known map[string]*Layer // by layerKey: unpacked and verified, listed in a record or not
	last  uint64            // of the latest directory
}

func NewStore(root string, step func(string)) *Store {
	return &Store{Root: root, step: step, known: map[string]*Layer{}}
}

func (s *Store) Dir(name string) string { return filepath.Join(s.Root, name) }

// Files is the folder of a layer's files.
func (s *Store) Files(name string) string { return filepath.Join(s.Root, name, "fs") }

// make takes the next free number n and makes layers/<n>/fs.
func (s *Store) make() (string, error) {
	for {
		s.mu.Lock()
		s.last++
		name := strconv.FormatUint(s.last, 10)
		s.mu.Unlock()
		switch err := os.Mkdir(s.Dir(name), 0o700); {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return "", err
		default:
			return name, os.Mkdir(s.Files(name), 0o755)
		}
	}
}

// Remove deletes the folder of a layer, whatever is in it. It goes on to the end: what is left over
// is found by the next Open only.
func (s *Store) Remove(name string) error { return tree.Remove(context.Background(), s.Dir(name)) }

// Taken says that a number is in use.
func (s *Store) Taken(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last, n)
}

// Latest is the highest number in use so far.
func (s *Store) Latest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Any returns an unpacked layer of this diff id, with or without fixes.
func (s *Store) Any(diffID digest.Digest) *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.known {
		if l.DiffID == diffID {
			return l
		}
	}
	return nil
}

func (s *Store) ByKey(key string) *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[key]
}

// Set makes a layer of a record known.
func (s *Store) Set(l *Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[l.Key()] = l
}

// Add makes an unpacked layer known to everybody and returns it. Where another blob has become the
// same layer meanwhile, that one is returned and l is deleted: there is one folder for a key.
func (s *Store) Add(l *Layer) *Layer {
	s.mu.Lock()
	first := s.known[l.Key()]
	if first == nil {
		s.known[l.Key()] = l
	}
	s.mu.Unlock()
	if first != nil {
		if err := s.Remove(l.Dir); err != nil {
			log.L.WithError(err).WithField("layer", l.Dir).Warn("layer that was unpacked twice could not be deleted")
		}
		return first
	}
	s.step("pull.unpacked")
	return l
}

// Take makes a layer unknown and returns it, nil when it was not known. The caller deletes its
// folder.
func (s *Store) Take(key string) *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.known[key]
	delete(s.known, key)
	return l
}

// TakeAll is take of every layer whose key fits.
func (s *Store) TakeAll(fits func(key string) bool) (taken []*Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, l := range s.known {
		if fits(key) {
			taken = append(taken, l)
			delete(s.known, key)
		}
	}
	return taken
}

// All returns every layer that is known, by key.
func (s *Store) All() map[string]Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Layer, len(s.known))
	for key, l := range s.known {
		all[key] = *l
	}
	return all
}

// implied returns the directories that a layer made up; most layers have none.
func (s *Store) implied(name string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(s.Dir(name), "implied"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var implied []string
	if err := json.Unmarshal(b, &implied); err != nil {
		return nil, fmt.Errorf("layers/%s/implied: %w", name, err)
	}
	return implied, nil
}

// Check tells whether the folder of a layer is there, and gives its root the mode that it has now,
// see rootMode.
func (s *Store) Check(name string) error {
	info, err := os.Lstat(s.Files(name))
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("layer %s is not a directory", name)
	}
	if info.Mode()&overlay.RootMode == overlay.RootMode {
		return nil
	}
	return os.Chmod(s.Files(name), info.Mode()|overlay.RootMode) // an older version unpacked it
}
