package gunzip

import "encoding/binary"

const (
	history    = 32 << 10 // the longest distance of a copy
	windowSize = 256 << 10
	windowMask = windowSize - 1
	word       = 8 // bytes that are copied at once
	// spare is what one step of huffman may write beyond the place that room leaves: two literals, the
	// longest copy, and what the last word of that has too much.
	spare = 2 + maxCopy + word
)

// window holds what is decoded: bytes that may be copied from, and after them those to be read.
type window struct {
	buf   [windowSize]byte
	next  int // the first byte to be read
	end   int // of what is decoded
	first int // where the member begins, or is 0 if that has been slid out
}

func (w *window) unread() int { return w.end - w.next }

func (w *window) room() int { return windowSize - spare - w.end }

func (w *window) full() bool { return w.room() <= 0 }

func (w *window) read(p []byte) int {
	n := copy(p, w.buf[w.next:w.end])
	w.next += n
	return n
}

// slide makes room, once all is read.
func (w *window) slide() {
	if by := w.end - history; by > 0 && w.room() < windowSize/2 {
		copy(w.buf[:history], w.buf[by:w.end])
		w.first = max(0, w.first-by)
		w.next, w.end = history, history
	}
}

// again appends length bytes of those that begin distance before end, each of which may be one that
// this has appended. The caller has checked the distance, and leaves spare bytes.
func again(buf *[windowSize]byte, end, distance, length int) {
	stop := end + length
	if distance < word {
		// What repeats each distance bytes also repeats each multiple of it, once as much is there.
		multiple := (word + distance - 1) / distance * distance
		for ready := end - distance + multiple; end < min(ready, stop); end++ {
			buf[end&windowMask] = buf[(end-distance)&windowMask]
		}
		distance = multiple
	}
	for ; end < stop; end += word {
		binary.LittleEndian.PutUint64(buf[end&windowMask:], binary.LittleEndian.Uint64(buf[(end-distance)&windowMask:]))
	}
}
