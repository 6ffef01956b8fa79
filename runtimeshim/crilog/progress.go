package crilog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// progress says how far the output of a task has come; it is the file
// progress in the task folder. It outlives SIGKILL, not a power cut (neither
// does the container).
//
// Two slots are written in turn. A save that was cut short leaves the slot
// before it, and every state is one from which the work can be taken up
// again, so nothing more is needed.
type progress struct {
	seq     uint64
	done    bool     // finished: all is in the log, nobody will open the task again
	off     [2]int64 // offset in the spool of each stream up to which all is in the log or left out
	log     FileID   // the log that is being written
	leftOut int64    // bytes of output that are not in the log, and of which it does not tell yet
	intent  intent
}

// intent is one write to the log that may have happened. It ends by being
// replaced: the next save implies that the write before it was complete.
type intent struct {
	length int64 // formatted bytes; 0 = no intent
	stream int
	to     int64 // offset in the spool behind the source; it begins at off
	before int64 // size of the log before the write
	notice bool  // it is the line that tells of leftOut; no stream, and to is 0
	at     int64 // time stamp of the lines, Unix ns: the same bytes can be made again
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

// load reads the newest whole slot. The room of both is reserved in a new file: a save must not
// meet a full disk.
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
		p.seq-- // again into the same slot: the other one is good
		return fmt.Errorf("record progress: %w", err)
	}
	return nil
}
