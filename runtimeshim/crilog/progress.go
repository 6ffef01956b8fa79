package crilog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// progress records how far the output of a task is written; it is stored in the file progress of
// the task folder. It survives SIGKILL, but not a power cut, which the container does not survive
// either.
//
// Two slots are written alternately. A save that is interrupted leaves the other slot intact, and
// work can resume from any recorded state, so nothing more is needed.
type progress struct {
	seq  uint64
	done bool // finished: everything is in the log, and the task will not be opened again
	// off, per stream: everything before this offset in the spool is in the log or left out.
	off     [2]int64
	log     FileID // the log that is being written
	leftOut int64  // bytes of output that are left out and not yet reported in the log
	intent  intent
}

// intent is one write to the log that may have happened. It ends when it is replaced: the next save
// implies that the write is complete.
type intent struct {
	length int64 // bytes of formatted text; 0 = no intent
	stream int
	to     int64 // end of the source in the spool; it begins at off
	before int64 // size of the log before the write
	notice bool  // the line that reports leftOut; stream and to are unused
	// at is the time stamp of the lines in Unix ns, so that the same bytes can be formatted again.
	at int64
}

func (i intent) time() time.Time { return time.Unix(0, i.at) }

const (
	progressFormat = 1
	progressSlot   = 512
	progressSize   = 13 * 8
)

func (p *progress) encode(b []byte) {
	flags := uint64(p.intent.stream) << 8
	if p.done {
		flags |= 1
	}
	if p.intent.notice {
		flags |= 2
	}
	in := p.intent
	for i, v := range [...]uint64{
		progressFormat, p.seq, flags, uint64(p.off[0]), uint64(p.off[1]), p.log.Dev, p.log.Ino,
		uint64(in.length), uint64(in.to), uint64(in.before), uint64(in.at), uint64(p.leftOut),
	} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	sum := crc32.ChecksumIEEE(b[:progressSize-8])
	binary.LittleEndian.PutUint64(b[progressSize-8:progressSize], uint64(sum))
}

func (p *progress) decode(b []byte) bool {
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	if u(0) != progressFormat || u(12) != uint64(crc32.ChecksumIEEE(b[:progressSize-8])) {
		return false
	}
	flags := u(2)
	*p = progress{
		seq: u(1), done: flags&1 != 0, off: [2]int64{int64(u(3)), int64(u(4))}, log: FileID{u(5), u(6)},
		leftOut: int64(u(11)),
		intent: intent{
			length: int64(u(7)), stream: int(flags>>8) & 1, to: int64(u(8)),
			before: int64(u(9)), at: int64(u(10)), notice: flags&2 != 0,
		},
	}
	return true
}

// load reads the newest intact slot. In a new file it writes both slots, so that a later save needs
// no new disk space.
func (p *progress) load(f File) error {
	var buf [2 * progressSlot]byte
	n, err := f.ReadAt(buf[:], 0)
	if err == io.EOF {
		err = nil
	}
	if err == nil && n < len(buf) {
		_, err = f.WriteAt(buf[:], 0)
	}
	if err != nil {
		return err
	}
	for slot := range 2 {
		var q progress
		if q.decode(buf[slot*progressSlot:][:progressSize]) && q.seq > p.seq {
			*p = q
		}
	}
	return nil
}

// save writes the next slot.
func (p *progress) save(f File) error {
	var b [progressSize]byte
	p.seq++
	p.encode(b[:])
	if _, err := f.WriteAt(b[:], int64(p.seq&1)*progressSlot); err != nil {
		p.seq-- // use the same slot again: the other one is intact
		return fmt.Errorf("record progress: %w", err)
	}
	return nil
}
