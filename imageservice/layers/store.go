// Package layers unpacks the layers of images, and tracks which are unpacked. It neither downloads
// nor mounts them.
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
	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/internal/tree"
)

// Layer is an unpacked and verified layer. Only layers that a record lists are known to be on disk.
type Layer struct {
	DiffID digest.Digest `json:"diff_id"`
	Fixes  string        `json:"fixes,omitempty"` // see link.go
	Dir    string        `json:"dir"`             // name below layers/
	Bytes  uint64        `json:"bytes"`           // disk usage as of du
	Inodes uint64        `json:"inodes"`
	// its root hides all layers below, which overlayfs does not do for roots
	Opaque bool `json:"opaque,omitempty"`
}

func (l Layer) Key() string { return KeyOf(l.DiffID, l.Fixes) }

func KeyOf(diffID digest.Digest, fixes string) string {
	if fixes == "" {
		return string(diffID)
	}
	return string(diffID) + "+" + fixes
}

// Store owns layers/: the folders of unpacked layers, and the set of known layers.
type Store struct {
	Root string // layers/
	step step.Hook

	mu    sync.Mutex
	known map[string]*Layer // by Layer.Key: unpacked and verified, in a record or not
	last  uint64            // number of the newest folder
}

func NewStore(root string, step step.Hook) *Store {
	return &Store{Root: root, step: step, known: map[string]*Layer{}}
}

func (s *Store) Dir(name string) string { return filepath.Join(s.Root, name) }

// Files returns the folder with a layer's files.
func (s *Store) Files(name string) string { return filepath.Join(s.Root, name, "fs") }

// make creates layers/<n>/fs with the next free number n.
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

// Remove deletes a layer's folder with everything in it. It cannot be cancelled, because only the
// next Open would find the rest.
func (s *Store) Remove(name string) error { return tree.Remove(context.Background(), s.Dir(name)) }

// Taken records that a number is in use.
func (s *Store) Taken(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last, n)
}

// Latest returns the highest number used so far.
func (s *Store) Latest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Any returns an unpacked layer with this diff ID, with or without fixes, or nil.
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

// Set adds a layer of a record.
func (s *Store) Set(l *Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[l.Key()] = l
}

// Add adds an unpacked layer and returns it. If the same layer was added from another blob
// meanwhile, Add returns that one and deletes l, because a key has only one folder.
func (s *Store) Add(l *Layer) *Layer {
	s.mu.Lock()
	first := s.known[l.Key()]
	if first == nil {
		s.known[l.Key()] = l
	}
	s.mu.Unlock()
	if first != nil {
		if err := s.Remove(l.Dir); err != nil {
			log.L.WithError(err).WithField("layer", l.Dir).
				Warn("cannot delete the second copy of a layer that was unpacked twice")
		}
		return first
	}
	s.step.Pass("pull.unpacked")
	return l
}

// Take removes a layer from the set and returns it, or nil if it is not in the set. The caller
// deletes its folder.
func (s *Store) Take(key string) *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.known[key]
	delete(s.known, key)
	return l
}

// TakeAll removes all layers whose keys match fits, and returns them.
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

// All returns a copy of all known layers, by key.
func (s *Store) All() map[string]Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Layer, len(s.known))
	for key, l := range s.known {
		all[key] = *l
	}
	return all
}

// implied returns the implied directories of a layer; most layers have none.
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

// Check returns an error if the folder of a layer does not exist. It makes the root readable and
// searchable, see overlay.RootMode.
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
