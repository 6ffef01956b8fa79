// Package gunzip decompresses gzip (RFC 1952, with the DEFLATE of RFC 1951), about twice as fast as
// the libraries written in Go: decompressing is most of what the pull of a large layer costs. What a
// stream unpacks to is compared with a digest by the caller, so a fault here can refuse an image but
// cannot change one.
//
// The package accepts and refuses exactly the streams that compress/gzip does; its tests compare both.
package gunzip

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

var (
	// ErrHeader means that a member of the stream, the first or a later one, does not begin as gzip does.
	ErrHeader = errors.New("gunzip: wrong header")
	// ErrChecksum means that a member unpacks to something else than its compressor had.
	ErrChecksum = errors.New("gunzip: wrong checksum")
	// ErrCorrupt means that the compressed bytes have no meaning.
	ErrCorrupt = errors.New("gunzip: corrupt input")
)

// Reader decompresses a stream of one or more members, one after the other.
type Reader struct {
	in    input
	out   window
	codes codes

	decode func() error // decodes some of the current block
	final  bool         // that block is its member's last one
	stored int          // bytes left of a block that is not compressed
	size   uint32       // of what the member has unpacked to so far, modulo 2^32
	sum    uint32       // its CRC-32
	err    error        // what Read returns when out is empty
}

// NewReader returns a Reader of r, of which it has read the first header. The error is io.EOF if r is
// empty. The Reader may read more of r than it needs.
func NewReader(r io.Reader) (*Reader, error) {
	z := &Reader{in: input{src: r}}
	if err := z.header(); err != nil {
		return nil, err
	}
	return z, nil
}

// Read implements io.Reader. The error is io.EOF only at the end of a stream that is whole and has
// the right checksums.
func (z *Reader) Read(p []byte) (int, error) {
	for z.out.unread() == 0 {
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.more()
	}
	return z.out.read(p), nil
}

// more decodes into the window, until it is full or a member ends.
func (z *Reader) more() (err error) {
	z.out.slide()
	from := z.out.end
	for err == nil && !z.out.full() {
		if z.decode != nil {
			err = z.decode()
		} else if z.final {
			break
		} else {
			err = z.block()
		}
	}
	fresh := z.out.buf[from:z.out.end]
	z.size += uint32(len(fresh))
	z.sum = crc32.Update(z.sum, crc32.IEEETable, fresh)
	if err == nil && z.final && z.decode == nil {
		if err = z.trailer(); err == nil {
			err = z.header() // of the next member
		}
	}
	return err
}

// Flags of a header.
const (
	flagSum     = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4
)

// maxText is the longest name or comment, with the byte that ends it.
const maxText = 512

// header reads the header of a member. It returns io.EOF if there is none.
func (z *Reader) header() error {
	z.in.align()
	b, err := z.in.bytes(10)
	if err == io.ErrUnexpectedEOF && len(b) == 0 {
		return io.EOF
	}
	if err != nil {
		return err
	}
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return ErrHeader
	}
	flags := b[3]
	sum := crc32.ChecksumIEEE(b)
	take := func(n int) ([]byte, error) {
		b, err := z.in.bytes(n)
		sum = crc32.Update(sum, crc32.IEEETable, b)
		return b, err
	}
	if flags&flagExtra != 0 {
		b, err := take(2)
		for n := 0; err == nil && n < int(binary.LittleEndian.Uint16(b)); n++ {
			_, err = take(1)
		}
		if err != nil {
			return err
		}
	}
	for _, text := range []byte{flagName, flagComment} {
		for n := 0; flags&text != 0; n++ {
			if n == maxText {
				return ErrHeader
			}
			b, err := take(1)
			if err != nil {
				return err
			}
			if b[0] == 0 {
				break
			}
		}
	}
	if flags&flagSum != 0 {
		want := uint16(sum)
		b, err := z.in.bytes(2)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != want {
			return ErrHeader
		}
	}
	z.size, z.sum, z.final = 0, 0, false
	z.out.first = z.out.end
	return nil
}

// trailer checks what the member has unpacked to.
func (z *Reader) trailer() error {
	z.in.align()
	b, err := z.in.bytes(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != z.sum || binary.LittleEndian.Uint32(b[4:]) != z.size {
		return ErrChecksum
	}
	return nil
}

// block reads the begin of a block, and sets decode.
func (z *Reader) block() error {
	if err := z.in.need(3); err != nil {
		return err
	}
	z.final = z.in.take(1) == 1
	switch z.in.take(2) {
	case 0:
		z.in.align()
		b, err := z.in.bytes(4)
		if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(b)
		if n != ^binary.LittleEndian.Uint16(b[2:]) {
			return ErrCorrupt
		}
		z.stored, z.decode = int(n), z.copyStored
	case 1:
		z.codes.fixed()
		z.decode = z.huffman
	case 2:
		if err := z.codes.read(&z.in); err != nil {
			return err
		}
		z.decode = z.huffman
	default:
		return ErrCorrupt
	}
	return nil
}

// copyStored copies bytes that are not compressed.
func (z *Reader) copyStored() error {
	n, err := z.in.read(z.out.buf[z.out.end : z.out.end+min(z.stored, z.out.room())])
	z.out.end += n
	if z.stored -= n; z.stored == 0 {
		z.decode = nil
	}
	return err
}
