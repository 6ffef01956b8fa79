package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/cribox/cribox/imageservice/catalog"
	"github.com/cribox/cribox/imageservice/imageref"
)

// pinsFile has the names that were pinned while the daemon ran, in the root folder.
const pinsFile = "pinned.json"

// Pin pins a name, whether or not there is such an image yet, until Unpin. It is durable. Pinned
// images are reported as such, so that a kubelet does not remove them when the disk is full.
// ErrInvalidArgument for what is no name of an image.
func (s *Images) Pin(name string) error {
	return s.changePins(name, func(pins []string, name string) ([]string, error) {
		if slices.Contains(pins, name) {
			return pins, nil
		}
		return append(slices.Clone(pins), name), nil
	})
}

// Unpin undoes Pin. ErrFailedPrecondition for a name that the configuration pins; ErrNotFound for
// one that is not pinned.
func (s *Images) Unpin(name string) error {
	return s.changePins(name, func(pins []string, name string) ([]string, error) {
		left := slices.DeleteFunc(slices.Clone(pins), func(p string) bool { return p == name })
		switch {
		case len(left) < len(pins):
			return left, nil
		case s.catalog.Pinned.Match(name):
			return nil, fmt.Errorf("unpin %s: the configuration pins it (images.pinned, pause_image): %w",
				name, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("unpin %s: it is not pinned: %w", name, errdefs.ErrNotFound)
	})
}

func (s *Images) changePins(name string, change func(pins []string, name string) ([]string, error)) error {
	t, err := imageref.Parse(name)
	if err != nil {
		return err
	}
	s.pinning.Lock()
	defer s.pinning.Unlock()
	pins, err := change(s.pins, t.String())
	if err != nil {
		return err
	}
	if err := s.writePins(pins); err != nil {
		return fmt.Errorf("record the pinned images: %w", err)
	}
	s.pins = pins
	s.catalog.Pinned.SetAdded(pins)
	return nil
}

// writePins replaces the file, and returns when it is on disk.
func (s *Images) writePins(pins []string) error {
	raw, err := json.Marshal(pins)
	if err != nil {
		return err
	}
	err = catalog.ReplaceFile(filepath.Join(s.cfg.Root, pinsFile), raw, func() { s.cfg.Step.Pass("pins.written") })
	if err == nil {
		s.cfg.Step.Pass("pins.replaced")
	}
	return err
}

// readPins reads the file. A damaged one costs the pins, and not the start.
func (s *Images) readPins(ctx context.Context) {
	path := filepath.Join(s.cfg.Root, pinsFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(raw, &s.pins)
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("file", path).
			Error("cannot read which images were pinned; pin them again (cribox image pin)")
		return
	}
	s.catalog.Pinned.SetAdded(s.pins)
}
