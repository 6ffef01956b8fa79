package crilog

import "fmt"

// Changes of the log that is written to. A Log that is handed over is the
// Writer's to close, also on error.

// OpenLog begins with a log, nil for none, and records it unless it is the recorded one.
func (w *Writer) OpenLog(l Log) error {
	w.log = l
	if l.File == nil || l.ID == w.p.log {
		return nil
	}
	w.p.log = l.ID
	return w.save()
}

// Adopt goes on in l. No intent may be open.
func (w *Writer) Adopt(l Log) error {
	old := w.log
	w.log, w.p.log = l, l.ID
	if old.File != l.File {
		old.Close()
	}
	return w.save()
}

// Replace begins with l because the recorded log is deleted: what was begun is made again in l.
func (w *Writer) Replace(l Log) error {
	w.log = l
	st, err := l.Stat()
	if err != nil {
		return err
	}
	w.p.log, w.p.intent.before = l.ID, st.Size
	return w.save()
}

// Switch is Adopt that stays with the old log on error.
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

// Leave writes to the log what the spools hold, before a Switch. What does not
// fit there is taken back and will be in the next one: rotation is how a full
// disk gets room.
func (w *Writer) Leave(commit func(stream int) error) error {
	err := w.Resume()
	for i, s := range w.spools {
		if s != nil && err == nil {
			err = commit(i)
		}
	}
	if err == nil {
		err = w.writeNotice()
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
