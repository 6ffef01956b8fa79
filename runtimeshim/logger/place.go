package logger

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/step"
	"github.com/cribox/cribox/runtimeshim/crilog"
)

// place finds the file that is the log of a task. The file may be renamed or removed while it is in
// use.
type place struct {
	path   string // "" = output is dropped
	writer *crilog.Writer
	step   step.Hook
}

// open finds the log that was written to before, or opens a new one.
func (p *place) open() error {
	now, err := findLogFile(p.path)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	was := p.writer.LogID()
	if was == (crilog.FileID{}) && now.File == nil {
		return p.create()
	}
	if was == (crilog.FileID{}) || now.ID == was {
		return p.writer.OpenLog(now)
	}
	renamed, err := findRenamed(filepath.Dir(p.path), was)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return p.replace(now)
	case err != nil:
		now.Close()
		return err
	}
	// The log was rotated. An open intent belongs to the old file, and so does further output until
	// reopen has created the new one.
	err = p.writer.OpenLog(renamed)
	if now.File == nil {
		return err
	}
	if err == nil {
		err = p.writer.Resume()
	}
	if err != nil {
		now.Close()
		return err
	}
	return p.writer.Adopt(now)
}

// create creates the log of a new task.
func (p *place) create() error {
	l, created, err := openLogFile(p.path)
	if err != nil {
		return err
	}
	if created {
		p.step.Pass("logger.created")
	}
	return p.writer.OpenLog(l)
}

// replace is called when the last log was deleted: an open intent is written to the file that has
// its name now.
func (p *place) replace(now crilog.Log) error {
	if now.File == nil {
		return p.findFolder()
	}
	return p.writer.Replace(now)
}

// findFolder handles a task whose log was deleted, with its folder, while no logger was running. (A
// running logger would continue to write to the unnamed file.) Output is dropped until the folder
// exists again.
func (p *place) findFolder() error {
	if p.writer.Log().File != nil || p.path == "" {
		return nil
	}
	l, _, err := openLogFile(p.path)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.writer.Replace(l)
}

// reopen continues in the file at path, which it creates if necessary. Before that, leave must
// write to the old file what belongs there. On error nothing has changed.
func (p *place) reopen(leave func() error) error {
	if err := leave(); err != nil {
		return err
	}
	l, created, err := openLogFile(p.path)
	if err != nil {
		return err
	}
	if created {
		p.step.Pass("logger.created")
	}
	if l.ID == p.writer.Log().ID {
		l.Close()
		return nil
	}
	if err := p.writer.Switch(l); err != nil {
		if created {
			_ = unix.Unlink(p.path)
		}
		return err
	}
	p.step.Pass("logger.reopened")
	return nil
}

// removed is called when the current log has no name any more. If another file has its name, the
// kubelet has undone a rotation because it did not get our reply: the lines written since then
// belong into that file. Otherwise the log was deleted, and we continue to write to it until
// reopen.
func (p *place) removed(size int64) error {
	l, err := findLogFile(p.path)
	if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrInvalidArgument) {
		return nil
	}
	if err != nil {
		return err
	}
	if size <= mostMoved {
		if err := copyLog(l.File, p.writer.Log().File, size); err != nil {
			l.Close()
			return fmt.Errorf("write log %s: %w", p.path, err)
		}
	}
	return p.writer.Adopt(l)
}

const mostMoved = 16 << 20 // more than is written between a rotation and its undoing

// copyLog appends size bytes, all or nothing.
func copyLog(to, from crilog.File, size int64) error {
	st, err := to.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, size)
	if _, err = from.ReadAt(buf, 0); err == nil {
		err = to.Append(buf)
	}
	if err != nil {
		return errors.Join(err, to.Truncate(st.Size))
	}
	return nil
}
