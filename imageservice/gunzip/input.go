package gunzip

import (
	"encoding/binary"
	"io"
)

const (
	inputSize = 64 << 10
	behind    = 8  // bytes before pos that stay, since align goes back to them
	ahead     = 16 // bytes after pos with which a step of huffman may refill twice
	padding   = 32 // zeros after the end of the source, so that it may do so there
)

// input reads a source by bits, the lowest of a byte first.
type input struct {
	src   io.Reader
	buf   [inputSize + padding]byte
	pos   int    // the next byte of buf that is not in bits
	end   int    // of the bytes in buf
	bits  uint64 // the next bits; those from count on are zero or those of buf[pos:]
	count uint   // number of bits that are taken from buf already
	eof   bool   // buf has the last of the source, and padding after it
	err   error  // of the source, for when buf is used up
}

// limit is the highest pos with which refill may be called twice.
func (in *input) limit() int {
	if in.eof {
		return in.end + padding - ahead
	}
	return in.end - ahead
}

// refilled is what count is at least after refill.
const refilled = 56

// refill takes as many whole bytes as bits has room for.
func (in *input) refill() {
	in.bits |= binary.LittleEndian.Uint64(in.buf[in.pos:]) << (in.count & 63)
	in.pos += int(63-in.count) >> 3
	in.count |= refilled
}

// fill reads on until refill may be called twice. It returns io.ErrUnexpectedEOF once more has
// been taken than the source has.
func (in *input) fill() error {
	for in.pos > in.limit() {
		if in.eof {
			return in.ended()
		}
		if keep := in.pos - behind; keep > 0 {
			in.end = copy(in.buf[:], in.buf[keep:in.end])
			in.pos = behind
		}
		n, err := in.src.Read(in.buf[in.end:inputSize])
		in.end += n
		if err != nil {
			in.eof, in.err = true, err
			clear(in.buf[in.end : in.end+padding])
		}
	}
	return in.overrun()
}

// overrun returns an error if more has been taken than the source has.
func (in *input) overrun() error {
	if in.eof && in.pos-int(in.count>>3) > in.end {
		return in.ended()
	}
	return nil
}

// ended is the error for a stream that goes on after the end of its source.
func (in *input) ended() error {
	if in.err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return in.err
}

// need makes count n at least, which is 48 at most.
func (in *input) need(n uint) error {
	if in.count >= n {
		return nil
	}
	if err := in.fill(); err != nil {
		return err
	}
	in.refill()
	if in.eof && (in.end-in.pos)*8+int(in.count) < int(n) {
		return in.ended()
	}
	return nil
}

// take returns the next n bits, for which need has been called.
func (in *input) take(n uint) uint {
	b := uint(in.bits & (1<<n - 1))
	in.bits >>= n
	in.count -= n
	return b
}

// align goes to the next whole byte.
func (in *input) align() {
	in.pos -= int(in.count >> 3)
	in.bits, in.count = 0, 0
}

// bytes returns the next n bytes, 10 at most, after align. With io.ErrUnexpectedEOF, it returns those
// that there are.
func (in *input) bytes(n int) ([]byte, error) {
	b := make([]byte, n)
	for done := 0; done < n; {
		got, err := in.read(b[done:])
		done += got
		if err != nil {
			return b[:done], err
		}
	}
	return b, nil
}

// read is an io.Reader after align, that returns io.ErrUnexpectedEOF at the end of the source.
func (in *input) read(p []byte) (int, error) {
	in.align()
	if in.pos >= in.end {
		if in.eof {
			return 0, in.ended()
		}
		if err := in.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.pos:max(in.pos, in.end)])
	in.pos += n
	return n, nil
}
