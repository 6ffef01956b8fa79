package gunzip

import "encoding/binary"

// distanceMost is how many bits a distance may have: of its code, and after it.
const distanceMost = maxLength + 13

// huffman decodes a block, until its end or until the window is full.
//
// One step decodes up to three literals, of 11 bits each at most, or what comes after two of them: the
// 56 bits of a refill are enough for two literals and a length, and those of another for a distance.
func (z *Reader) huffman() error {
	for !z.out.full() {
		if err := z.in.fill(); err != nil {
			return err
		}
		ended, err := z.steps()
		if err == nil {
			err = z.in.overrun()
		}
		if err != nil {
			return err
		}
		if ended {
			z.decode = nil
			return nil
		}
	}
	return nil
}

// steps decodes as long as there are input and room. It works on copies of what changes with each
// symbol, so that these are in registers.
func (z *Reader) steps() (ended bool, err error) { //nolint:funlen // in parts it is slower
	in, buf := &z.in, &z.out.buf
	literals, distances := &z.codes.literal, &z.codes.distance
	bits, count, pos, end := in.bits, in.count, in.pos, z.out.end
	limit, stop, first := in.limit(), windowSize-spare, z.out.first
	for end < stop && pos <= limit {
		bits |= binary.LittleEndian.Uint64(in.buf[pos:]) << (count & 63)
		pos += int(63-count) >> 3
		count |= refilled

		e := literals[bits&(1<<literalBits-1)]
		if e&literal != 0 {
			bits, count = bits>>(e&63), count-uint(e&allMask)
			buf[end&windowMask] = byte(e >> valueShift)
			end++
			e = literals[bits&(1<<literalBits-1)]
			if e&literal != 0 {
				bits, count = bits>>(e&63), count-uint(e&allMask)
				buf[end&windowMask] = byte(e >> valueShift)
				end++
				e = literals[bits&(1<<literalBits-1)]
			}
		}
		if e&longer != 0 {
			e = literals[(uint64(e>>valueShift)+bits>>literalBits&(1<<(e&63)-1))&(literalSize-1)]
		}
		if e&literal != 0 {
			bits, count = bits>>(e&63), count-uint(e&allMask)
			buf[end&windowMask] = byte(e >> valueShift)
			end++
			continue
		}
		if e&special != 0 {
			bits, count = bits>>(e&63), count-uint(e&allMask)
			if ended = e&ends != 0; !ended {
				err = ErrCorrupt
			}
			break
		}
		length := int(e>>valueShift) + int(bits&(1<<(e&63)-1)>>(e>>codeShift&codeMask))
		bits, count = bits>>(e&63), count-uint(e&allMask)

		if count < distanceMost {
			bits |= binary.LittleEndian.Uint64(in.buf[pos:]) << (count & 63)
			pos += int(63-count) >> 3
			count |= refilled
		}
		e = distances[bits&(1<<distanceBits-1)]
		if e&longer != 0 {
			e = distances[(uint64(e>>valueShift)+bits>>distanceBits&(1<<(e&63)-1))&(distanceSize-1)]
		}
		if e&special != 0 {
			err = ErrCorrupt
			break
		}
		distance := int(e>>valueShift) + int(bits&(1<<(e&63)-1)>>(e>>codeShift&codeMask))
		bits, count = bits>>(e&63), count-uint(e&allMask)
		if distance > end-first {
			err = ErrCorrupt
			break
		}
		again(buf, end, distance, length)
		end += length
	}
	in.bits, in.count, in.pos, z.out.end = bits, count, pos, end
	return ended, err
}
