package runtimeshim

import (
	"fmt"
	"time"
)

// A log may have a limit, so that one container cannot fill the disk before
// its log is rotated. A log is full when the longest line might not fit any
// more. What a container prints from then on is left out: it is read, it is
// counted, and it does not wait. Whoever is attached gets it all the same.
// Once there is room again (a rotation, a truncation), or the task has ended,
// or the log is left for another, one line says how much is missing.
//
// How much that is stands in the same slot of progress as the offsets, so a
// kill neither forgets a byte nor counts one twice. The line is an intent as
// every other write.

// noticeRoom is more than a notice takes.
const noticeRoom = 256

// notice is the line in place of n bytes of output. The same bytes for the same n and time.
func notice(n int64, at time.Time) []byte {
	prefix := newCRIPrefix(1, at)
	return fmt.Appendf(prefix[:], "[%d bytes of output are left out here: the log had reached its size limit]\n", n)
}

// room returns how many bytes, at most the given number, may be appended to
// the log; 0 when it is full, else at least maxRecord.
func (t *logTask) room(most int) (int, error) {
	if t.limit == 0 || t.log.fd < 0 {
		return most, nil
	}
	st, err := fstat(t.log.fd)
	if err != nil {
		return 0, err
	}
	left := t.limit - st.Size - noticeRoom
	if left < int64(maxRecord) {
		return 0, nil
	}
	return int(min(left, int64(most))), nil
}

// leaveOut counts the next n bytes of a stream instead of writing them.
func (t *logTask) leaveOut(i, n int) error {
	if t.p.leftOut == 0 {
		t.logger().Warn("log has reached its size limit; output is left out until it is rotated")
	}
	before := t.p
	t.p.off[i] += int64(n)
	t.p.leftOut += int64(n)
	if err := t.save(); err != nil {
		t.p = before
		return err
	}
	t.l.step("logger.leftout")
	t.streams[i].off = t.p.off[i]
	return nil
}

// tell writes how much was left out, if anything was.
func (t *logTask) tell() error {
	if t.p.leftOut == 0 {
		return nil
	}
	at := time.Now()
	line := notice(t.p.leftOut, at)
	return t.write(intent{notice: true, length: int64(len(line)), at: at.UnixNano()}, line)
}
