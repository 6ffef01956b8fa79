package tree

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Remove deletes a folder with everything in it, or a file. It returns nil if path does not exist.
// It deletes as much as it can, and returns the first error. It never deletes across a mount: a
// folder that is a mountpoint stays.
//
// A folder deeper than maxOpen levels is first moved to the top and then emptied. So deep trees
// need no more descriptors and no longer paths, and the next call can continue an interrupted one.
func Remove(ctx context.Context, path string) error {
	parent, err := unix.Open(filepath.Dir(path), openFlags&^unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	defer unix.Close(parent)
	if err := RemoveAt(ctx, parent, filepath.Base(path)); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// RemoveAt is Remove for a name in the folder that the descriptor parent refers to.
func RemoveAt(ctx context.Context, parent int, name string) error {
	switch err := unix.Unlinkat(parent, name, 0); err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR:
	default:
		return err
	}
	top, err := openFolder(parent, name)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(top)
	r := removal{ctx: ctx, top: top}
	err = r.empty(top, 0)
	for len(r.moved) > 0 && r.ctx.Err() == nil {
		err = first(err, r.emptyMoved())
	}
	err = first(err, ctx.Err())
	switch rerr := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); {
	case rerr == nil || rerr == unix.ENOENT:
		return nil
	case err != nil:
		return err
	default:
		return rerr
	}
}

// openFolder opens a folder. It returns an error for a link or a mountpoint.
func openFolder(parent int, name string) (int, error) {
	how := unix.OpenHow{Flags: openFlags, Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(parent, name, &how)
		if err == unix.EINTR || err == unix.EAGAIN && try < 1000 {
			continue
		}
		return fd, err
	}
}

type removal struct {
	ctx   context.Context
	top   int
	moved []uint64 // numbers of the folders that were moved to the top and not yet emptied
	last  uint64
	lists [maxOpen + 1]*listing // one for each depth, reused
}

// empty deletes the content of the folder dir, or moves it to the top. It returns the first error.
func (r *removal) empty(dir, depth int) error {
	for {
		some, err := r.emptyOnce(dir, depth)
		if !some || r.ctx.Err() != nil {
			return first(err, r.ctx.Err())
		}
		// If entries are deleted while a folder is read, the kernel may skip others.
		if _, err := unix.Seek(dir, 0, unix.SEEK_SET); err != nil {
			return err
		}
	}
}

// emptyOnce reads the folder once, and reports whether it deleted or moved anything.
func (r *removal) emptyOnce(dir, depth int) (some bool, err error) {
	if r.lists[depth] == nil {
		r.lists[depth] = newListing()
	}
	names := r.lists[depth]
	names.rest = nil
	for r.ctx.Err() == nil {
		name, _, lerr := names.next(dir)
		if lerr != nil || name == "" {
			return some, first(err, lerr)
		}
		switch rerr := r.one(dir, name, depth); rerr {
		case nil:
			some = true
		case unix.ENOENT:
		default:
			err = first(err, rerr)
		}
	}
	return some, err
}

func (r *removal) one(dir int, name string, depth int) error {
	if err := unix.Unlinkat(dir, name, 0); err != unix.EISDIR {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != unix.ENOTEMPTY && err != unix.EEXIST {
		return err
	}
	if depth == maxOpen {
		return r.move(dir, name)
	}
	fd, err := openFolder(dir, name)
	if err != nil {
		return err
	}
	err = r.empty(fd, depth+1)
	unix.Close(fd)
	if rerr := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); rerr == nil || err == nil {
		return rerr
	}
	return err
}

// move moves a folder to the top, and names it with the next number that is free: the tree itself
// may already contain such a name.
func (r *removal) move(dir int, name string) error {
	for {
		r.last++
		switch err := unix.Renameat(dir, name, r.top, number(r.last)); err {
		case nil:
			r.moved = append(r.moved, r.last)
			return nil
		case unix.ENOTEMPTY, unix.EEXIST, unix.ENOTDIR, unix.EISDIR:
		default:
			return err
		}
	}
}

func number(n uint64) string { return ".removing-" + strconv.FormatUint(n, 36) }

// emptyMoved deletes the folder that was moved to the top last. Taking the last one first keeps the
// number of moved folders small: at most one for each maxOpen levels of a path, and its siblings.
func (r *removal) emptyMoved() error {
	last := len(r.moved) - 1
	name := number(r.moved[last])
	r.moved = r.moved[:last]
	err := r.one(r.top, name, 0)
	if err == unix.ENOENT {
		return nil
	}
	return err
}

func first(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
