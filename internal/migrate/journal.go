package migrate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cribox/cribox/internal/step"
)

// Journal says what migrations have written and pinned, so that it can be undone.
type Journal struct {
	Source  Source              `json:"source"`
	Files   map[string][]string `json:"files"`   // their paths, and the SHA-256 of each content that was written
	Folders []string            `json:"folders"` // that were made
	Pins    []string            `json:"pins"`    // images that were pinned

	path string
	hook step.Hook
}

// OpenJournal reads the journal of migrations from a runtime in a folder for drop-ins. It may be
// missing. hook is passed each step that changes something.
func OpenJournal(folder string, source Source, hook step.Hook) (*Journal, error) {
	j := &Journal{Source: source, Files: map[string][]string{}, hook: hook,
		path: filepath.Join(folder, ".migrated-"+string(source)+".json")} // the daemon reads *.toml only
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		err = json.Unmarshal(b, j)
	}
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", j.path, err)
	}
	return j, nil
}

// Path returns where the journal is.
func (j *Journal) Path() string { return j.path }

// Empty reports whether there is nothing to undo.
func (j *Journal) Empty() bool { return len(j.Files)+len(j.Folders)+len(j.Pins) == 0 }

// Result says what became of a file.
type Result struct {
	Path string `json:"path"`
	Done string `json:"done"` // "written", "unchanged", "kept", "removed", "gone"
	Note string `json:"note,omitempty"`
}

// Write writes the files. It replaces those that the journal knows and nobody has changed since; any
// other file that exists is kept as it is. Each file is in the journal before it is written.
func (j *Journal) Write(files []File) ([]Result, error) {
	all := []Result{}
	for _, f := range files {
		r, err := j.plan(f)
		if err != nil {
			return all, err
		}
		all = append(all, r)
	}
	if !slices.ContainsFunc(all, func(r Result) bool { return r.Done == "written" }) {
		return all, nil
	}
	if err := j.save(); err != nil {
		return nil, err
	}
	for i, r := range all {
		if r.Done != "written" {
			continue
		}
		if err := replace(r.Path, files[i].Content, files[i].Mode); err != nil {
			return all[:i], err
		}
		j.hook.Pass("migrate.written")
	}
	return all, nil
}

// Preview says what Write would do.
func (j *Journal) Preview(files []File) (all []Result, err error) {
	copied := &Journal{Files: maps.Clone(j.Files)}
	for _, f := range files {
		r, err := copied.plan(f)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// plan decides about one file, and notes it in the journal if it is to be written.
func (j *Journal) plan(f File) (Result, error) {
	r := Result{Path: f.Path, Done: "written"}
	old, err := os.ReadFile(f.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return r, err
	case bytes.Equal(old, f.Content):
		r.Done = "unchanged"
		return r, nil
	case !slices.Contains(j.Files[f.Path], sum(old)):
		r.Done, r.Note = "kept", "it is not of this migration, or was changed since: compare it yourself"
		return r, nil
	}
	if one := sum(f.Content); !slices.Contains(j.Files[f.Path], one) {
		j.Files[f.Path] = append(slices.Clone(j.Files[f.Path]), one)
	}
	j.addFolders(filepath.Dir(f.Path))
	return r, nil
}

// addFolders notes the folders that have to be made, the outermost first.
func (j *Journal) addFolders(dir string) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) || slices.Contains(j.Folders, dir) {
		return
	}
	j.addFolders(filepath.Dir(dir))
	j.Folders = append(j.Folders, dir)
}

// Pinned notes that an image is going to be pinned.
func (j *Journal) Pinned(name string) error {
	if slices.Contains(j.Pins, name) {
		return nil
	}
	j.Pins = append(j.Pins, name)
	return j.save()
}

// Undo removes the files that nobody has changed, the folders that are empty then, and at last the
// journal, unless something is left.
func (j *Journal) Undo() ([]Result, error) {
	all := []Result{}
	var errs []error
	for _, path := range sortedKeys(j.Files) {
		r, err := j.remove(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, r)
	}
	if len(errs) > 0 {
		return all, errors.Join(errs...)
	}
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return all, err
	}
	for _, dir := range slices.Backward(j.Folders) {
		_ = os.Remove(dir) // fails for one that is not empty, which stays
	}
	return all, nil
}

func (j *Journal) remove(path string) (Result, error) {
	r := Result{Path: path, Done: "removed"}
	_ = os.Remove(unfinished(path)) // of a migration that was killed
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.Done = "gone"
		return r, nil
	case err != nil:
		return r, err
	case !slices.Contains(j.Files[path], sum(b)):
		r.Done, r.Note = "kept", "it was changed since it was written"
		return r, nil
	}
	err = os.Remove(path)
	j.hook.Pass("migrate.removed")
	return r, err
}

func (j *Journal) save() error {
	j.addFolders(filepath.Dir(j.path))
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := replace(j.path, append(b, '\n'), 0o644); err != nil {
		return err
	}
	j.hook.Pass("migrate.journal")
	return nil
}

// unfinished is the name of a file until it is whole. The daemon does not read such files.
func unfinished(path string) string {
	return filepath.Join(filepath.Dir(path), ".new-"+filepath.Base(path))
}

// replace writes a file at once, or not at all.
func replace(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(unfinished(path), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
