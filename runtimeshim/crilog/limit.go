package crilog

import (
	"fmt"
	"time"
)

// A log may have a size limit, so that one container cannot fill the disk before its log is
// rotated. A log is full when the longest line might not fit any more. From then on output is left
// out: it is read and counted, but not written. The container does not block, and attached clients
// still receive it. When there is space again (after a rotation or truncation), when the task has
// ended, or before the log is replaced, one line is written that says how many bytes are missing.
//
// The count is stored in the same progress slot as the offsets, so a kill neither loses nor repeats
// a byte of it. The line is written with an intent like any other.

// noticeRoom is kept free for notices, at least two of them: one before the log is replaced, and one
// when the task has ended and the log was not replaced after all.
const noticeRoom = 256

// notice returns the line that replaces n bytes of output. Same n and time, same bytes.
func notice(n int64, at time.Time) []byte {
	prefix := newPrefix(1, at)
	return fmt.Appendf(prefix[:], "[%d bytes of output are left out here: the log had reached its size limit]\n", n)
}

// room returns how many bytes, up to most, may be appended to the log: 0 when it is full, otherwise
// at least MaxLine.
func (w *Writer) room(most int) (int, error) {
	if w.limit == 0 || w.log.File == nil {
		return most, nil
	}
	st, err := w.log.Stat()
	if err != nil {
		return 0, err
	}
	left := w.limit - st.Size - noticeRoom
	if left < int64(MaxLine) {
		return 0, nil
	}
	return int(min(left, int64(most))), nil
}

// leaveOut counts the next n bytes of a stream instead of writing them.
func (w *Writer) leaveOut(stream, n int) error {
	if w.p.leftOut == 0 {
		w.owner.Full()
	}
	before := w.p
	w.p.off[stream] += int64(n)
	w.p.leftOut += int64(n)
	if err := w.save(); err != nil {
		w.p = before
		return err
	}
	w.owner.Step.Pass("logger.leftout")
	w.spools[stream].off = w.p.off[stream]
	return nil
}

// noticeBeforeLeaving writes a notice if another one fits after it. A logger that is killed between
// the notice and the new log comes here again and again; what it then leaves out is counted in the
// new log.
func (w *Writer) noticeBeforeLeaving() error {
	if w.limit > 0 && w.log.File != nil {
		st, err := w.log.Stat()
		if err != nil {
			return err
		}
		if st.Size+2*int64(len(notice(w.p.leftOut, w.owner.Now()))) > w.limit {
			return nil
		}
	}
	return w.writeNotice()
}

// writeNotice writes how much was left out, if anything was.
func (w *Writer) writeNotice() error {
	if w.p.leftOut == 0 {
		return nil
	}
	at := w.owner.Now()
	line := notice(w.p.leftOut, at)
	return w.write(intent{notice: true, length: int64(len(line)), at: at.UnixNano()}, line)
}
