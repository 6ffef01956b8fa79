// Package imports loads the archives of images that lie in a folder, at the start and when they
// appear. It changes nothing in the folder.
//
// What has been loaded is in a record, so that a start reads only what is new, has changed, or has
// lost its images. A file whose name begins with a dot or ends in .part or .tmp is not finished.
package imports

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Config is the configuration of Open.
type Config struct {
	Folder string // of the archives; it is made
	Record string // file with what has been loaded
	// Load loads an archive and returns the IDs of its images.
	Load func(ctx context.Context, r io.Reader) (ids []string, err error)
	// Has reports whether an image is on the node.
	Has func(id string) bool
}

// loaded is what the record says of a file.
type loaded struct {
	Size   int64     `json:"size"`
	Time   time.Time `json:"time"` // of the last change
	Images []string  `json:"images"`
}

func (l loaded) is(info os.FileInfo) bool {
	return l.Size == info.Size() && l.Time.Equal(info.ModTime())
}

// Folder is a folder that is being watched.
type Folder struct {
	Config
	events *os.File          // an inotify instance
	record map[string]loaded // by name
	failed map[string]loaded // tried again after a change, and at the next start
}

// Open makes the folder and watches it: what appears from now on is seen by Run, which has to be
// called. It returns an error if the folder cannot be watched.
func Open(ctx context.Context, c Config) (*Folder, error) {
	if err := os.MkdirAll(c.Folder, 0o700); err != nil {
		return nil, err
	}
	events, err := watch(c.Folder)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", c.Folder, err)
	}
	f := &Folder{Config: c, events: events, record: map[string]loaded{}, failed: map[string]loaded{}}
	if raw, err := os.ReadFile(c.Record); err == nil {
		if err := json.Unmarshal(raw, &f.record); err != nil {
			log.G(ctx).WithError(err).WithField("file", c.Record).
				Warn("the record of loaded archives is damaged; loading all of them again")
		}
	}
	return f, nil
}

func watch(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_ATTRIB); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// Run loads archives until ctx ends, and then watches no more. It returns an error if the kernel
// reports no more changes; an archive that cannot be loaded is only logged.
func (f *Folder) Run(ctx context.Context) error {
	changes := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { f.events.Close() })
	defer stop()
	go f.read(changes)
	for {
		if err := f.scan(ctx); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("folder", f.Folder).Warn("cannot read the folder of archives")
		}
		select {
		case _, ok := <-changes:
			if !ok && ctx.Err() == nil {
				return fmt.Errorf("watch %s: the kernel reports no more changes", f.Folder)
			}
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// read puts a value into changes after files have changed. It closes changes when the kernel
// reports no more, which is so once events is closed.
func (f *Folder) read(changes chan<- struct{}) {
	defer close(changes)
	for buf := make([]byte, 64<<10); ; {
		if _, err := f.events.Read(buf); err != nil {
			return
		}
		select {
		case changes <- struct{}{}:
		default: // a scan is due already
		}
	}
}

// scan loads what is new.
func (f *Folder) scan(ctx context.Context) error {
	entries, err := os.ReadDir(f.Folder)
	if err != nil {
		return err
	}
	present := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || unfinished(name) {
			continue
		}
		present[name] = true
		if f.failed[name].is(info) || f.record[name].is(info) && f.hasAll(name) {
			continue
		}
		if err := f.load(ctx, name, info); err != nil {
			return err
		}
	}
	for name := range f.record {
		if !present[name] {
			delete(f.record, name) // its images stay
		}
	}
	return nil
}

func unfinished(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".part") || strings.HasSuffix(name, ".tmp")
}

func (f *Folder) hasAll(name string) bool {
	for _, id := range f.record[name].Images {
		if !f.Has(id) {
			return false
		}
	}
	return true
}

// load loads one archive. It returns an error only when ctx has ended.
func (f *Folder) load(ctx context.Context, name string, info os.FileInfo) error {
	began := time.Now()
	ids, err := f.loadFile(ctx, name)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	now := loaded{Size: info.Size(), Time: info.ModTime(), Images: ids}
	logger := log.G(ctx).WithField("archive", filepath.Join(f.Folder, name))
	if err != nil {
		logger.WithError(err).Warn("cannot load an archive of images; it is tried again when the file changes")
		f.failed[name] = now
		return nil
	}
	delete(f.failed, name)
	f.record[name] = now
	logger.WithField("images", ids).WithField("took", time.Since(began).Round(time.Millisecond).String()).
		Info("loaded an archive of images")
	if err := f.save(); err != nil {
		logger.WithError(err).Warn("cannot record that an archive was loaded; the next start loads it again")
	}
	return nil
}

func (f *Folder) loadFile(ctx context.Context, name string) ([]string, error) {
	file, err := os.OpenFile(filepath.Join(f.Folder, name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return f.Load(ctx, file)
}

// save replaces the record.
func (f *Folder) save() error {
	raw, err := json.Marshal(f.record)
	if err != nil {
		return err
	}
	next := f.Record + ".tmp"
	if err := os.WriteFile(next, raw, 0o600); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, f.Record)
}
