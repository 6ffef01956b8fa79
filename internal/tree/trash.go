package tree

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Trash is a folder of things to delete. Adding something takes one rename, whatever its size; a
// goroutine deletes it in the background. If the process is killed first, the next process that
// opens the folder deletes the rest.
type Trash struct {
	dir  string
	wake chan struct{}
}

// The shortest and the longest pause between two attempts to delete what could not be deleted.
const (
	againAfter  = 10 * time.Second
	againAtMost = 5 * time.Minute
)

// OpenTrash creates dir if it is missing, and deletes its content in the background until ctx ends.
// Paths that are put there should be on the same filesystem.
func OpenTrash(ctx context.Context, dir string) (*Trash, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("trash folder: %w", err)
	}
	t := &Trash{dir: dir, wake: make(chan struct{}, 1)}
	go t.run(ctx)
	return t, nil
}

// Put removes path: when it returns nil, path does not exist any more. It also returns nil if path
// did not exist. If path cannot be renamed (full disk, other filesystem), Put deletes it before it
// returns.
func (t *Trash) Put(ctx context.Context, path string) error {
	err := unix.Rename(path, filepath.Join(t.dir, rand.Text()))
	switch {
	case err == nil:
		t.look()
		return nil
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		if _, serr := os.Lstat(path); errors.Is(serr, unix.ENOENT) || errors.Is(serr, unix.ENOTDIR) {
			return nil
		}
	}
	return Remove(ctx, path)
}

// Waiting returns how many things are to be deleted yet.
func (t *Trash) Waiting() (int, error) {
	entries, err := os.ReadDir(t.dir)
	return len(entries), err
}

func (t *Trash) look() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run empties the trash whenever something is put in. After an error it retries, with a pause that
// doubles each time until something new is put in.
func (t *Trash) run(ctx context.Context) {
	wait := againAfter
	for {
		var again <-chan time.Time
		if err := t.empty(ctx); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("step", "trash").Warn("what was removed still takes space; will be tried again")
			again = time.After(wait)
			wait = min(2*wait, againAtMost)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-t.wake:
			wait = againAfter
		}
	}
}

// empty deletes the current content of the trash, and returns the first error.
func (t *Trash) empty(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	f, err := os.Open(t.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, name := range names {
		err = first(err, Remove(ctx, filepath.Join(t.dir, name)))
	}
	return err
}
