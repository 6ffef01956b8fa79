package crilog

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// Owner is what a Writer asks and tells. All but Step must be set.
type Owner struct {
	Step func(name string) // called after each side effect; nil = none
	Now  func() time.Time
	// Removed is called before a write to a log of so many bytes that has no name any more: it may
	// call Adopt with the log that is there instead.
	Removed func(size int64) error
	Full    func()      // the log has reached its limit
	Lost    func(error) // lines cannot be written, now or later
}

// Writer carries two spools into one log. It is not safe for concurrent use.
// After an error everything is as if it was killed: Resume goes on.
type Writer struct {
	owner  Owner
	limit  int64 // bytes of the log; 0 = none
	record File
	spools [2]*Spool
	log    Log

	p     progress
	dirty bool // p must be saved before anything else
}

// Buffer is memory that a Writer uses for the time of a call: Raw for what it
// reads, Out, of at least MaxLine bytes, for what it writes.
type Buffer struct{ Raw, Out []byte }

// NewWriter reads from record, which is its own from now on, how far an
// earlier Writer has come.
func NewWriter(owner Owner, limit int64, record File) (*Writer, error) {
	if owner.Step == nil {
		owner.Step = func(string) {}
	}
	w := &Writer{owner: owner, limit: limit, record: record}
	if err := w.p.load(record); err != nil {
		record.Close()
		return nil, err
	}
	return w, nil
}

// Close closes all files.
func (w *Writer) Close() {
	for _, s := range w.spools {
		if s != nil {
			s.Close()
		}
	}
	w.log.Close()
	w.record.Close()
}

// Done says that all is in the log, and nobody will open the task again.
func (w *Writer) Done() bool { return w.p.done }

// LogID is the log that was written to last; zero for none.
func (w *Writer) LogID() FileID { return w.p.log }

// Log returns the open log.
func (w *Writer) Log() Log { return w.log }

// TakeSpools takes the spools over; nil for a stream that there is not. One that is shorter than
// what the record says of it was emptied by Compact, which happens only when all of it is in the
// log.
func (w *Writer) TakeSpools(spools [2]*Spool) {
	w.spools = spools
	in := &w.p.intent
	for i, s := range spools {
		if s == nil {
			continue
		}
		if in.length > 0 && in.stream == i && s.size < in.to {
			*in = intent{}
			w.p.off[i], w.dirty = 0, true
		}
		if s.size < w.p.off[i] {
			w.p.off[i], w.dirty = 0, true
		}
		s.off = w.p.off[i]
	}
}

func (w *Writer) save() error {
	w.dirty = true
	if err := w.p.save(w.record); err != nil {
		return err
	}
	w.dirty = false
	return nil
}

// Waiting is how much of a stream's spool is not in the log.
func (w *Writer) Waiting(stream int) int64 {
	if s := w.spools[stream]; s != nil {
		return s.Waiting()
	}
	return 0
}

// Commit writes what the spool holds. With final an unfinished line, too.
func (w *Writer) Commit(stream int, final bool, b Buffer) error {
	s := w.spools[stream]
	for s.off < s.size {
		raw, err := s.read(b.Raw)
		if err != nil {
			return err
		}
		room, err := w.room(cap(b.Out))
		if err != nil {
			return err
		}
		full := room == 0
		if full {
			room = cap(b.Out)
		} else if err := w.writeNotice(); err != nil {
			return err
		}
		at := w.owner.Now()
		prefix := newPrefix(stream, at)
		out, used := appendLines(b.Out[:0:room], &prefix, raw, final && s.off+int64(len(raw)) == s.size)
		if used == 0 {
			return nil
		}
		if full {
			err = w.leaveOut(stream, used)
		} else {
			err = w.write(intent{stream: stream, to: s.off + int64(used), length: int64(len(out)), at: at.UnixNano()}, out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) write(in intent, out []byte) error {
	if w.log.File == nil {
		w.conclude(in)
		return nil
	}
	st, err := w.log.Stat()
	if err == nil && st.Removed {
		if err := w.owner.Removed(st.Size); err != nil {
			return err
		}
		st, err = w.log.Stat()
	}
	if err != nil {
		return err
	}
	in.before = st.Size
	w.p.intent = in
	if err := w.save(); err != nil {
		w.p.intent = intent{}
		return err
	}
	w.owner.Step("logger.intent")
	if err := w.log.Append(out); err != nil {
		return err
	}
	w.owner.Step("logger.written")
	w.conclude(in)
	return nil
}

// conclude: what the intent said is in the log.
func (w *Writer) conclude(in intent) {
	w.p.intent = intent{}
	if in.notice {
		w.p.leftOut = 0
		return
	}
	w.p.off[in.stream] = in.to
	if s := w.spools[in.stream]; s != nil {
		s.off = in.to
	}
}

// Resume completes the write that was begun last, by this Writer or by one before it.
func (w *Writer) Resume() error {
	if w.dirty {
		if err := w.save(); err != nil {
			return err
		}
	}
	in := w.p.intent
	if in.length == 0 {
		return nil
	}
	if w.log.File != nil {
		if err := w.complete(in); errors.Is(err, errdefs.ErrDataLoss) {
			w.owner.Lost(err)
		} else if err != nil {
			return err
		}
	}
	w.conclude(in)
	return nil
}

// complete writes what is missing of an intent. ErrDataLoss: it cannot be made again.
func (w *Writer) complete(in intent) error {
	st, err := w.log.Stat()
	if err != nil {
		return err
	}
	have := max(0, st.Size-in.before) // less than before: somebody has truncated it
	if have >= in.length {
		return nil
	}
	out, err := w.again(in)
	if err != nil {
		return err
	}
	return w.log.Append(out[have:])
}

// again makes the bytes of an intent once more. ErrDataLoss: they cannot be made again.
func (w *Writer) again(in intent) ([]byte, error) {
	if in.notice {
		return notice(w.p.leftOut, in.time()), nil
	}
	s := w.spools[in.stream]
	raw := make([]byte, in.to-s.off)
	if err := readFull(s.file, raw, s.off); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	prefix := newPrefix(in.stream, in.time())
	out, used := appendLines(make([]byte, 0, in.length), &prefix, raw, true)
	if used != len(raw) || int64(len(out)) != in.length {
		return nil, fmt.Errorf("spool at %d..%d is not what was to be written: %w", s.off, in.to, errdefs.ErrDataLoss)
	}
	return out, nil
}

// Compact gives back the room of what is in the log.
func (w *Writer) Compact(stream int) error {
	s := w.spools[stream]
	switch {
	case s == nil:
	case s.off == s.size && s.size >= ResetAt:
		if err := s.empty(); err != nil {
			return err
		}
		w.owner.Step("spool.truncated")
		w.p.off[stream] = 0
		if err := w.save(); err != nil {
			return err
		}
		w.owner.Step("spool.reset")
	case s.off-s.hole >= PunchAt:
		if err := w.save(); err != nil { // the intent is over: nobody will read the hole
			return err
		}
		w.owner.Step("logger.committed")
		s.punch()
		w.owner.Step("spool.punched")
	}
	return nil
}

// Finish notes that all is in the log.
func (w *Writer) Finish() error {
	if err := w.writeNotice(); err != nil {
		return err
	}
	w.owner.Step("logger.drained")
	w.p.done = true
	if err := w.save(); err != nil {
		w.p.done = false
		return err
	}
	w.owner.Step("logger.done")
	return nil
}
