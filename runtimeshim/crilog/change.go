package crilog

import "fmt"

// Changing the log that a Writer writes to. The Writer takes ownership of a Log passed to it, and
// closes it even on error.

// OpenLog starts with l, which may be empty, and records its id if that is a different one.
func (w *Writer) OpenLog(l Log) error {
	w.log = l
	if l.File == nil || l.ID == w.p.log {
		return nil
	}
	w.p.log = l.ID
	return w.save()
}

// Adopt continues in l. No intent may be open.
func (w *Writer) Adopt(l Log) error {
	old := w.log
	w.log, w.p.log = l, l.ID
	if old.File != l.File {
		old.Close()
	}
	return w.save()
}

// Replace continues in l because the recorded log was deleted: an open intent is written to l
// again.
func (w *Writer) Replace(l Log) error {
	w.log = l
	st, err := l.Stat()
	if err != nil {
		return err
	}
	w.p.log, w.p.intent.before = l.ID, st.Size
	return w.save()
}

// Switch is like Adopt, but keeps the old log on error.
func (w *Writer) Switch(l Log) error {
	old := w.p.log
	w.p.log = l.ID
	if err := w.save(); err != nil {
		w.p.log = old
		l.Close()
		return err
	}
	w.log.Close()
	w.log = l
	return nil
}

// Leave writes what is in the spools to the log, before a Switch. What does not fit is truncated
// off again and goes to the next log: when a disk is full, rotation is what frees space.
func (w *Writer) Leave(commit func(stream int) error) error {
	err := w.Resume()
	for i, s := range w.spools {
		if s != nil && err == nil {
			err = commit(i)
		}
	}
	if err == nil {
		err = w.noticeBeforeLeaving()
	}
	in := w.p.intent
	if err == nil || in.length == 0 || w.log.File == nil {
		return err
	}
	st, failed := w.log.Stat()
	if failed == nil && st.Size > in.before {
		failed = w.log.Truncate(in.before)
	}
	if failed != nil {
		return fmt.Errorf("leave the log: %w", failed)
	}
	w.p.intent = intent{}
	if err := w.save(); err != nil {
		w.p.intent = in
		return err
	}
	return nil
}
