package crilog

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cribox/cribox/internal/step"
)

// Owner has the callbacks of a Writer. All but Step must be set.
type Owner struct {
	Step step.Hook // called after each side effect; nil = none
	Now  func() time.Time
	// Removed is called before a write if the log, of size bytes, has no name any more. It may call
	// Adopt with the file that is at the log's path now.
	Removed func(size int64) error
	Full    func()      // the log has reached its limit
	Lost    func(error) // lines are lost for good
}

// Writer writes two spools to one log. It is not safe for concurrent use. After an error it behaves
// as if it had been killed: call Resume to continue.
type Writer struct {
	owner  Owner
	limit  int64 // of the log in bytes; 0 = none
	record File
	spools [2]*Spool
	log    Log

	p     progress
	dirty bool // p must be saved before anything else is done
}

// Buffer is memory that a Writer uses during a call: Raw for what it reads; Out, of at least
// MaxLine bytes, for what it writes.
type Buffer struct{ Raw, Out []byte }

// NewWriter reads from record how far an earlier Writer got. It takes ownership of record, and
// closes it on error.
func NewWriter(owner Owner, limit int64, record File) (*Writer, error) {
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

// Done reports whether everything is in the log, and the task will not be opened again.
func (w *Writer) Done() bool { return w.p.done }

// LogID returns the id of the last log written to; zero if there is none.
func (w *Writer) LogID() FileID { return w.p.log }

// Log returns the open log.
func (w *Writer) Log() Log { return w.log }

// TakeSpools takes ownership of the spools; nil for a stream that does not exist. A spool that is
// shorter than recorded was truncated by Compact, which happens only when all of it is in the log.
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

// Waiting returns how many bytes of a stream's spool are not in the log yet.
func (w *Writer) Waiting(stream int) int64 {
	if s := w.spools[stream]; s != nil {
		return s.Waiting()
	}
	return 0
}

// Commit writes what is in the spool to the log; with final, also an unfinished line.
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
	w.owner.Step.Pass("logger.intent")
	if err := w.log.Append(out); err != nil {
		return err
	}
	w.owner.Step.Pass("logger.written")
	w.conclude(in)
	return nil
}

// conclude updates the state after an intent is written.
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

// Resume completes the last write that this Writer or an earlier one has begun.
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

// complete writes what is missing of an intent. ErrDataLoss: its bytes cannot be formatted again.
func (w *Writer) complete(in intent) error {
	st, err := w.log.Stat()
	if err != nil {
		return err
	}
	have := max(0, st.Size-in.before) // negative if somebody has truncated the log
	if have >= in.length {
		return nil
	}
	out, err := w.again(in)
	if err != nil {
		return err
	}
	return w.log.Append(out[have:])
}

// again formats the bytes of an intent once more. ErrDataLoss when that does not give the recorded
// length.
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
		return nil, fmt.Errorf("bytes %d..%d of the spool do not match the recorded write: %w",
			s.off, in.to, errdefs.ErrDataLoss)
	}
	return out, nil
}

// Compact frees the disk space of what is in the log.
func (w *Writer) Compact(stream int) error {
	s := w.spools[stream]
	switch {
	case s == nil:
	case s.off == s.size && s.size >= ResetAt:
		if err := s.empty(); err != nil {
			return err
		}
		w.owner.Step.Pass("spool.truncated")
		w.p.off[stream] = 0
		if err := w.save(); err != nil {
			return err
		}
		w.owner.Step.Pass("spool.reset")
	case s.off-s.hole >= PunchAt:
		// The save ends the intent, so that nobody reads what is punched out.
		if err := w.save(); err != nil {
			return err
		}
		w.owner.Step.Pass("logger.committed")
		s.punch()
		w.owner.Step.Pass("spool.punched")
	}
	return nil
}

// Finish records that everything is in the log.
func (w *Writer) Finish() error {
	if err := w.writeNotice(); err != nil {
		return err
	}
	w.owner.Step.Pass("logger.drained")
	w.p.done = true
	if err := w.save(); err != nil {
		w.p.done = false
		return err
	}
	w.owner.Step.Pass("logger.done")
	return nil
}
