package runtimeshim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// open begins to read. A folder that was replaced by another of the same name
// is a new task.
func (t *logTask) open() error {
	if t.attached {
		if t.sameFIFO() {
			return nil
		}
		t.release()
		return errGone
	}
	if err := t.attach(); err != nil || t.p.done {
		t.release()
		return err
	}
	t.unarmed = anybody
	t.wake(tick)
	return nil
}

func (t *logTask) sameFIFO() bool {
	var now unix.Stat_t
	st, err := fstat(t.streams[0].fifo)
	return err == nil && unix.Stat(t.dir().stdout(), &now) == nil && st.Ino == now.Ino && st.Dev == now.Dev
}

// resume takes up a task that a logger before us has left. One that has no log
// or no FIFO is still being made, or is deleted: nothing to do.
func (t *logTask) resume() {
	if t.gone || t.attached {
		return
	}
	err := t.attach()
	switch {
	case errors.Is(err, errdefs.ErrNotFound), errors.Is(err, errdefs.ErrInvalidArgument):
		t.release()
	case err != nil:
		t.backOff(err)
	case t.p.done:
		t.release()
	default:
		t.unarmed = anybody
		t.wake(tick)
	}
}

// attach opens what the task folder holds and the log. Nothing is open after
// an error. ErrNotFound: the task folder or the folder of the log is not there.
func (t *logTask) attach() (err error) {
	defer func() {
		if err != nil {
			t.detach()
		}
	}()
	var rec logRecord
	if err := readJSON(t.dir().log(), &rec); err != nil {
		return fmt.Errorf("log of %s: %w", t.id, err)
	}
	t.path, t.limit = rec.Path, rec.Limit
	if t.record, t.p, err = loadProgress(t.dir().at("progress")); err != nil {
		return err
	}
	if t.p.done {
		t.attached = true
		return nil
	}
	if err := t.openSpools(rec.Terminal); err != nil {
		return err
	}
	if t.path != "" {
		t.matchSpools()
		if err := t.openLog(); err != nil {
			return err
		}
	}
	for i, s := range t.streams {
		if s != nil {
			t.l.watch(t, i, s.fifo)
		}
	}
	t.attached = true
	return nil
}

func (t *logTask) openSpools(terminal bool) error {
	for i, name := range streamNames {
		if terminal && i > 0 {
			continue
		}
		file := ""
		if t.path != "" {
			file = t.dir().at(name + ".spool")
		}
		s, err := openSpool(t.dir().at(name), file)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("output of %s: %v: %w", t.id, err, errdefs.ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("output of %s: %w", t.id, err)
		}
		t.streams[i] = s
	}
	return nil
}

// matchSpools: a spool shorter than what the record says of it was emptied by
// compact, which happens only when all of it is in the log.
func (t *logTask) matchSpools() {
	in := &t.p.intent
	for i, s := range t.streams {
		if s == nil {
			continue
		}
		if in.length > 0 && in.stream == i && s.size < in.to {
			*in = intent{}
			t.p.off[i], t.dirty = 0, true
		}
		if s.size < t.p.off[i] {
			t.p.off[i], t.dirty = 0, true
		}
		s.off = t.p.off[i]
	}
}

// openLog finds the log of a task that was open before, or opens a new one.
func (t *logTask) openLog() error {
	now, err := findLogFile(t.path)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	if t.p.log == (fileID{}) || now.id == t.p.log {
		t.log = now
		return t.findLog()
	}
	was, err := findRenamed(filepath.Dir(t.path), t.p.log)
	if err == nil {
		// Rotated. What was begun belongs into the old file, and so does what
		// comes, until reopen has made the new one.
		t.log = was
		if now.fd < 0 {
			return nil
		}
		if err := t.settle(); err != nil {
			closeFD(&now.fd)
			return err
		}
		return t.adopt(now)
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		closeFD(&now.fd)
		return err
	}
	return t.replaceLog(now)
}

// replaceLog: the file we wrote is deleted. What was begun is made again in
// the one that has its name now.
func (t *logTask) replaceLog(now logFile) error {
	t.log = now
	if now.fd < 0 {
		return t.findFolder()
	}
	st, err := fstat(now.fd)
	if err != nil {
		return err
	}
	t.p.log, t.p.intent.before = now.id, st.Size
	return t.save()
}

// findLog makes the log of a new task, if there is none, and records it.
func (t *logTask) findLog() error {
	if t.log.fd >= 0 && t.log.id == t.p.log {
		return nil
	}
	if t.log.fd < 0 {
		f, created, err := openLogFile(t.path)
		if err != nil {
			return err
		}
		t.log = f
		if created {
			t.l.step("logger.created")
		}
	}
	t.p.log = t.log.id
	return t.save()
}

// findFolder serves a task whose log was deleted, with its folder, while no
// logger ran. Had one run, it would go on writing to a file without a name;
// so output is dropped, until the folder is there again.
func (t *logTask) findFolder() error {
	if t.log.fd >= 0 || t.path == "" {
		return nil
	}
	f, _, err := openLogFile(t.path)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.replaceLog(f)
}

// reopen goes on in a new file at the log's path: the old one was renamed.
// What was read so far goes to the old one. On error nothing has changed.
func (t *logTask) reopen() error {
	if !t.attached {
		err := t.attach()
		if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrInvalidArgument) {
			t.release()
			return err
		}
		if err != nil {
			t.backOff(err) // it may have been waiting for that already
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		t.unarmed = anybody
		t.wake(tick)
	}
	if t.path == "" {
		return nil
	}
	if t.p.done {
		f, _, err := openLogFile(t.path)
		closeFD(&f.fd)
		t.release()
		return err
	}
	if err := t.leaveLog(); err != nil {
		return err
	}
	f, created, err := openLogFile(t.path)
	if err != nil {
		return err
	}
	if created {
		t.l.step("logger.created")
	}
	if f.id == t.log.id {
		closeFD(&f.fd)
		return nil
	}
	if err := t.switchLog(f); err != nil {
		if created {
			_ = unix.Unlink(t.path)
		}
		return err
	}
	t.l.step("logger.reopened")
	if t.stuck != 0 {
		t.wake(tick) // what could not be written to the old file may fit into the new one
	}
	return nil
}

// switchLog is adopt that goes back to the old log on error.
func (t *logTask) switchLog(f logFile) error {
	old := t.p.log
	t.p.log = f.id
	if err := t.save(); err != nil {
		t.p.log = old
		closeFD(&f.fd)
		return err
	}
	closeFD(&t.log.fd)
	t.log = f
	return nil
}

// leaveLog writes to the log what was read so far. What does not fit there is
// taken back and will be in the next one: rotation is how a full disk gets room.
func (t *logTask) leaveLog() error {
	err := t.settle()
	for i, s := range t.streams {
		if s != nil && err == nil {
			err = t.commit(i, false)
		}
	}
	if err == nil {
		err = t.tell()
	}
	in := t.p.intent
	if err == nil || in.length == 0 || t.log.fd < 0 {
		return err
	}
	st, serr := fstat(t.log.fd)
	if serr == nil && st.Size > in.before {
		serr = retry(func() error { return unix.Ftruncate(t.log.fd, in.before) })
	}
	if serr != nil {
		return fmt.Errorf("leave log %s: %w", t.path, serr)
	}
	t.p.intent = intent{}
	if err := t.save(); err != nil {
		t.p.intent = in
		return err
	}
	return nil
}
