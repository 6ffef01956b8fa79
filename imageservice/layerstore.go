package imageservice

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

// layer is an unpacked and verified layer. It is proven to be on disk only when a record lists it.
type layer struct {
	DiffID digest.Digest `json:"diff_id"`
	Fixes  string        `json:"fixes,omitempty"` // see link.go
	Dir    string        `json:"dir"`             // below layers/
	Bytes  uint64        `json:"bytes"`           // what du says
	Inodes uint64        `json:"inodes"`
	Opaque bool          `json:"opaque,omitempty"` // its root hides every layer below, which overlayfs does not do by itself
}

func (l layer) key() string { return layerKey(l.DiffID, l.Fixes) }

func layerKey(diffID digest.Digest, fixes string) string {
	if fixes == "" {
		return string(diffID)
	}
	return string(diffID) + "+" + fixes
}

// layerStore owns layers/: the folders of unpacked layers, and which of them are known.
type layerStore struct {
	root string // layers/
	step func(string)

	mu    sync.Mutex
	known map[string]*layer // by layerKey: unpacked and verified, listed in a record or not
	last  uint64            // of the latest directory
}

func newLayerStore(root string, step func(string)) *layerStore {
	return &layerStore{root: root, step: step, known: map[string]*layer{}}
}

func (s *layerStore) dir(name string) string { return filepath.Join(s.root, name) }

// files is the folder of a layer's files.
func (s *layerStore) files(name string) string { return filepath.Join(s.root, name, "fs") }

// make takes the next free number n and makes layers/<n>/fs.
func (s *layerStore) make() (string, error) {
	for {
		s.mu.Lock()
		s.last++
		name := strconv.FormatUint(s.last, 10)
		s.mu.Unlock()
		switch err := os.Mkdir(s.dir(name), 0o700); {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return "", err
		default:
			return name, os.Mkdir(s.files(name), 0o755)
		}
	}
}

// remove deletes the folder of a layer, whatever is in it. It goes on to the end: what is left over is found by the next Open only.
func (s *layerStore) remove(name string) error { return tree.Remove(context.Background(), s.dir(name)) }

// taken says that a number is in use.
func (s *layerStore) taken(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last, n)
}

// latest is the highest number in use so far.
func (s *layerStore) latest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// any returns an unpacked layer of this diff id, with or without fixes.
func (s *layerStore) any(diffID digest.Digest) *layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.known {
		if l.DiffID == diffID {
			return l
		}
	}
	return nil
}

func (s *layerStore) byKey(key string) *layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[key]
}

// set makes a layer of a record known.
func (s *layerStore) set(l *layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[l.key()] = l
}

// add makes an unpacked layer known to everybody and returns it. Where another blob has become the same layer meanwhile, that one is
// returned and l is deleted: there is one folder for a key.
func (s *layerStore) add(l *layer) *layer {
	s.mu.Lock()
	first := s.known[l.key()]
	if first == nil {
		s.known[l.key()] = l
	}
	s.mu.Unlock()
	if first != nil {
		if err := s.remove(l.Dir); err != nil {
			log.L.WithError(err).WithField("layer", l.Dir).Warn("layer that was unpacked twice could not be deleted")
		}
		return first
	}
	s.step("pull.unpacked")
	return l
}

// take makes a layer unknown and returns it, nil when it was not known. The caller deletes its folder.
func (s *layerStore) take(key string) *layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.known[key]
	delete(s.known, key)
	return l
}

// takeAll is take of every layer whose key fits.
func (s *layerStore) takeAll(fits func(key string) bool) (taken []*layer) {
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

// all returns every layer that is known, by key.
func (s *layerStore) all() map[string]layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]layer, len(s.known))
	for key, l := range s.known {
		all[key] = *l
	}
	return all
}

// implied returns the directories that a layer made up; most layers have none.
func (s *layerStore) implied(name string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir(name), "implied"))
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

// check tells whether the folder of a layer is there, and gives its root the mode that it has now, see rootMode.
func (s *layerStore) check(name string) error {
	info, err := os.Lstat(s.files(name))
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("layer %s is not a directory", name)
	}
	if info.Mode()&overlay.RootMode == overlay.RootMode {
		return nil
	}
	return os.Chmod(s.files(name), info.Mode()|overlay.RootMode) // an older version unpacked it
}
