package logger

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// open starts reading. If the folder was replaced by another of the same name, that is a new task.
func (t *logTask) open() error {
	if t.writer != nil {
		if t.streams[0].isAt(t.dir().Stdout()) {
			return nil
		}
		t.release()
		return errGone
	}
	if err := t.attach(); err != nil || t.writer.Done() {
		t.release()
		return err
	}
	t.unarmed = anybody
	t.wake(tick)
	return nil
}

// resume continues a task that an earlier logger has left. It ignores a task without a log record
// or FIFO, which is still being created or already being deleted.
func (t *logTask) resume() {
	if t.gone || t.writer != nil {
		return
	}
	err := t.attach()
	switch {
	case errors.Is(err, errdefs.ErrNotFound), errors.Is(err, errdefs.ErrInvalidArgument):
		t.release()
	case err != nil:
		t.backOff(err)
	case t.writer.Done():
		t.release()
	default:
		t.unarmed = anybody
		t.wake(tick)
	}
}

// attach opens the files in the task folder and the log. After an error nothing is open.
// ErrNotFound: the task folder or the folder of the log does not exist.
func (t *logTask) attach() (err error) {
	defer func() {
		if err != nil {
			t.detach()
		}
	}()
	var rec statedir.LogRecord
	if err := statedir.ReadJSON(t.dir().Log(), &rec); err != nil {
		return fmt.Errorf("log of %s: %w", t.id, err)
	}
	if err := t.openWriter(rec); err != nil || t.writer.Done() {
		return err
	}
	spools, err := t.openSources(rec)
	if err != nil {
		return err
	}
	if rec.Path != "" {
		t.writer.TakeSpools(spools)
		if err := t.place.open(); err != nil {
			return err
		}
	}
	for i, s := range t.streams {
		if s != nil {
			t.l.watch(t, i, s.fifo)
		}
	}
	return nil
}

// openWriter creates the Writer, with the progress recorded so far.
func (t *logTask) openWriter(rec statedir.LogRecord) error {
	path := t.dir().At("progress")
	fd, err := unixfd.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	t.writer, err = crilog.NewWriter(crilog.Owner{
		Step: t.l.step, Now: time.Now, Removed: func(size int64) error { return t.place.removed(size) },
		Full: func() { t.logger().Warn("log has reached its size limit; output is dropped until it is rotated") },
		Lost: func(err error) { t.logger().WithError(err).Error("log lines were lost") },
	}, rec.Limit, &diskFile{fd, path})
	if err != nil {
		return fmt.Errorf("progress %s: %w", path, err)
	}
	t.place = place{path: rec.Path, writer: t.writer, step: t.l.step}
	return nil
}

// openSources opens the FIFOs, and the spools, which it returns. detach closes all of it, even
// after an error.
func (t *logTask) openSources(rec statedir.LogRecord) (spools [2]*crilog.Spool, err error) {
	for i, name := range crilog.StreamNames {
		if rec.Terminal && i > 0 {
			continue
		}
		file := ""
		if rec.Path != "" {
			file = t.dir().At(name + ".spool")
		}
		s, err := openSource(t.dir().At(name), file)
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%v: %w", err, errdefs.ErrNotFound)
		}
		if err != nil {
			for _, s := range spools {
				if s != nil {
					s.Close()
				}
			}
			return spools, fmt.Errorf("output of %s: %w", t.id, err)
		}
		t.streams[i], spools[i] = s, s.spool
	}
	return spools, nil
}

// reopen continues in a new file at the log's path, because the old one was renamed. What was read
// so far goes to the old file. On error nothing has changed.
func (t *logTask) reopen() error {
	if t.writer == nil {
		err := t.attach()
		if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrInvalidArgument) {
			t.release()
			return err
		}
		if err != nil {
			t.backOff(err) // it may already have been waiting for that
			return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		t.unarmed = anybody
		t.wake(tick)
	}
	if t.place.path == "" {
		return nil
	}
	if t.writer.Done() {
		l, _, err := openLogFile(t.place.path)
		l.Close()
		t.release()
		return err
	}
	err := t.place.reopen(func() error {
		return t.writer.Leave(func(i int) error { return t.commit(i, false) })
	})
	if err == nil && t.stuck != 0 {
		t.wake(tick) // what could not be written to the old file may fit into the new one
	}
	return err
}
