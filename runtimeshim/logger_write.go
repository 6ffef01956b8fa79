package runtimeshim

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// From the spool into the log. The order that no kill can confuse:
//
//	intent   progress says: the log has `before` bytes, `length` more follow, made
//	         from the spool up to `to` at time `at`
//	write    appended to the log
//	         (the next save of progress says that it is complete)
//
// Whoever finds an intent compares the size of the log with it and writes what
// is missing, which is the same bytes again (see appendCRI). The same code
// serves after a kill, a full disk and an I/O error.

func (t *logTask) save() error {
	t.dirty = true
	if err := t.p.save(t.record); err != nil {
		return err
	}
	t.dirty = false
	return nil
}

// commit writes what the spool holds. With final an unfinished line, too.
func (t *logTask) commit(i int, final bool) error {
	s := t.streams[i]
	if s.file < 0 || s.off == s.size {
		return nil
	}
	if err := t.findFolder(); err != nil {
		return err
	}
	b, err := t.l.buffers.get()
	if err != nil {
		return err
	}
	defer t.l.buffers.put(b)
	for s.off < s.size {
		raw, err := s.read(b.raw)
		if err != nil {
			return fmt.Errorf("read the spool: %w", err)
		}
		room, err := t.room(cap(b.out))
		if err != nil {
			return err
		}
		full := room == 0
		if full {
			room = cap(b.out)
		} else if err := t.tell(); err != nil {
			return err
		}
		at := time.Now()
		prefix := newCRIPrefix(i, at)
		out, used := appendCRI(b.out[:0:room], &prefix, raw, final && s.off+int64(len(raw)) == s.size)
		if used == 0 {
			return nil
		}
		if full {
			if err := t.leaveOut(i, used); err != nil {
				return err
			}
			continue
		}
		err = t.write(intent{stream: i, to: s.off + int64(used), length: int64(len(out)), at: at.UnixNano()}, out)
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *logTask) write(in intent, out []byte) error {
	if t.log.fd < 0 {
		t.conclude(in)
		return nil
	}
	st, err := fstat(t.log.fd)
	if err != nil {
		return err
	}
	if st.Nlink == 0 {
		if st, err = t.followPath(st); err != nil {
			return err
		}
	}
	in.before = st.Size
	t.p.intent = in
	if err := t.save(); err != nil {
		t.p.intent = intent{}
		return err
	}
	t.l.step("logger.intent")
	if err := writeFull(t.log.fd, out); err != nil {
		return fmt.Errorf("write log %s: %w", t.path, err)
	}
	t.l.step("logger.written")
	t.conclude(in)
	return nil
}

// conclude: what the intent said is in the log.
func (t *logTask) conclude(in intent) {
	t.p.intent = intent{}
	if in.notice {
		t.p.leftOut = 0
		return
	}
	t.p.off[in.stream] = in.to
	if s := t.streams[in.stream]; s != nil {
		s.off = in.to
	}
}

// settle completes the write that was begun last, by us or by a logger before us.
func (t *logTask) settle() error {
	if t.dirty {
		if err := t.save(); err != nil {
			return err
		}
	}
	in := t.p.intent
	if in.length == 0 {
		return nil
	}
	if t.log.fd >= 0 {
		if err := t.complete(in); errors.Is(err, errdefs.ErrDataLoss) {
			t.logger().WithError(err).Error("lines are lost")
		} else if err != nil {
			return err
		}
	}
	t.conclude(in)
	return nil
}

// complete writes what is missing of an intent. ErrDataLoss: cannot be made again.
func (t *logTask) complete(in intent) error {
	st, err := fstat(t.log.fd)
	if err != nil {
		return err
	}
	have := max(0, st.Size-in.before) // less than before: somebody has truncated it
	if have >= in.length {
		return nil
	}
	out, err := t.again(in)
	if err != nil {
		return err
	}
	if err := writeFull(t.log.fd, out[have:]); err != nil {
		return fmt.Errorf("write log %s: %w", t.path, err)
	}
	return nil
}

// again makes the bytes of an intent once more. ErrDataLoss: they cannot be made again.
func (t *logTask) again(in intent) ([]byte, error) {
	if in.notice {
		return notice(t.p.leftOut, in.time()), nil
	}
	s := t.streams[in.stream]
	raw, err := preadFull(s.file, make([]byte, in.to-s.off), s.off)
	if err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	prefix := newCRIPrefix(in.stream, in.time())
	out, used := appendCRI(make([]byte, 0, in.length), &prefix, raw, true)
	if used != len(raw) || int64(len(out)) != in.length {
		return nil, fmt.Errorf("spool at %d..%d is not what was to be written: %w", s.off, in.to, errdefs.ErrDataLoss)
	}
	return out, nil
}

// compact gives back the room of what is in the log.
func (t *logTask) compact(i int) error {
	s := t.streams[i]
	switch {
	case s.file < 0:
	case s.off == s.size && s.size >= resetAt:
		if err := s.empty(); err != nil {
			return err
		}
		t.l.step("spool.truncated")
		t.p.off[i] = 0
		if err := t.save(); err != nil {
			return err
		}
		t.l.step("spool.reset")
	case s.off-s.hole >= punchAt:
		if err := t.save(); err != nil { // the intent is over: nobody will read the hole
			return err
		}
		t.l.step("logger.committed")
		s.punch()
		t.l.step("spool.punched")
	}
	return nil
}

// followPath: the log we write has no name any more. If another file has taken
// its name, the kubelet has undone a rotation whose answer it did not get: the
// lines written since belong into that file. If none has, the log was deleted,
// and we go on until reopen.
func (t *logTask) followPath(st unix.Stat_t) (unix.Stat_t, error) {
	f, err := findLogFile(t.path)
	if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrInvalidArgument) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if st.Size <= mostMoved {
		if err := copyLog(f.fd, t.log.fd, st.Size); err != nil {
			closeFD(&f.fd)
			return st, fmt.Errorf("write log %s: %w", t.path, err)
		}
	}
	if err := t.adopt(f); err != nil {
		return st, err
	}
	return fstat(f.fd)
}

const mostMoved = 16 << 20 // more than a rotation that was undone at once can have got

// copyLog appends size bytes, all or nothing.
func copyLog(to, from int, size int64) error {
	st, err := fstat(to)
	if err != nil {
		return err
	}
	buf, err := preadFull(from, make([]byte, size), 0)
	if err == nil {
		err = writeFull(to, buf)
	}
	if err != nil {
		return errors.Join(err, unix.Ftruncate(to, st.Size))
	}
	return nil
}

// adopt goes on in f, which is ours to close from now on, also on error. No
// intent may be open.
func (t *logTask) adopt(f logFile) error {
	old := t.log
	t.log, t.p.log = f, f.id
	if old.fd != f.fd {
		closeFD(&old.fd)
	}
	return t.save()
}
