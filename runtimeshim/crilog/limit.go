package crilog

import (
	"fmt"
	"time"
)

// A log may have a limit, so that one container cannot fill the disk before
// its log is rotated. A log is full when the longest line might not fit any
// more. What a container prints from then on is left out: it is read and
// counted, and the container does not wait. Attached clients get it all the
// same. Once there is room again (a rotation, a truncation), or the task has
// ended, or the log is left for another, one line says how much is missing.
//
// The count is in the same slot of progress as the offsets, so a kill neither
// forgets a byte nor counts one twice. The line is an intent as every other
// write.

// noticeRoom is more than a notice takes.
const noticeRoom = 256

// notice is the line in place of n bytes of output. The same bytes for the same n and time.
func notice(n int64, at time.Time) []byte {
	prefix := newPrefix(1, at)
	return fmt.Appendf(prefix[:], "[%d bytes of output are left out here: the log had reached its size limit]\n", n)
}

// room returns how many bytes, at most the given number, may be appended to
// the log; 0 when it is full, else at least MaxLine.
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
	w.owner.Step("logger.leftout")
	w.spools[stream].off = w.p.off[stream]
	return nil
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
