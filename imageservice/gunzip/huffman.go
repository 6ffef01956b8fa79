package gunzip

import "math/bits"

const (
	maxCopy   = 258 // bytes of the longest copy
	maxLength = 15  // bits of the longest code
	literals  = 286 // symbols for bytes, the end of a block and lengths
	distances = 30

	literalBits  = 11 // looked up at once
	distanceBits = 8
	orderBits    = 7

	// A table has an entry for each value of its first bits. Where these begin longer codes, of which
	// there are two at least, one for each value of the bits after them follows.
	literalSize  = 8192 // a power of two, from 1<<11 + 286/2<<(15-11) on
	distanceSize = 4096 // and from 1<<8 + 30/2<<(15-8) on
)

// An entry of a table, from its highest bit down:
//
//	1 bit    whether it is a literal
//	15 bits  the literal, the shortest length or distance, or where the entries of longer codes begin
//	1 bit    whether it is special: neither of the literals, lengths and distances below
//	1 bit    special: there are longer codes
//	1 bit    special: it ends the block; a special entry that is neither has no meaning
//	5 bits   bits of the code
//	8 bits   bits of the code and those that are added to the length or distance; for longer codes, how
//	         many more bits tell them apart
//
// The shortest lengths and distances are below 2^15.
const (
	literal = 1 << 31
	special = 1 << 15
	longer  = 1 << 14
	ends    = 1 << 13

	valueShift = 16
	codeShift  = 8
	codeMask   = 1<<5 - 1
	allMask    = 1<<8 - 1
	valueMask  = 1<<15 - 1
)

// codes are the Huffman codes of a block.
type codes struct {
	literal  [literalSize]uint32
	distance [distanceSize]uint32
	order    [1 << orderBits]uint32 // those that the lengths of the codes are written with
	lengths  [literals + 2 + distances + 2]uint8
	isFixed  bool
}

// meaning is an entry without its code: what a symbol stands for, and how many bits follow.
type meaning struct {
	value uint32 // of the upper 16 bits, or special with its flags
	extra uint8
}

var (
	literalMeanings  [literals + 2]meaning
	distanceMeanings [distances + 2]meaning
	orderMeanings    [19]meaning
)

func init() {
	for i := range 256 {
		literalMeanings[i] = meaning{literal | uint32(i)<<valueShift, 0}
	}
	literalMeanings[256] = meaning{special | ends, 0}
	length, extra := 3, 0
	for i := 257; i < 285; i++ {
		if i >= 265 && (i-265)%4 == 0 {
			extra++
		}
		literalMeanings[i] = meaning{uint32(length) << valueShift, uint8(extra)}
		length += 1 << extra
	}
	literalMeanings[285] = meaning{maxCopy << valueShift, 0}
	literalMeanings[286], literalMeanings[287] = meaning{special, 0}, meaning{special, 0}
	distance := 1
	for i := range distances {
		extra := max(0, i/2-1)
		distanceMeanings[i] = meaning{uint32(distance) << valueShift, uint8(extra)}
		distance += 1 << extra
	}
	distanceMeanings[30], distanceMeanings[31] = meaning{special, 0}, meaning{special, 0}
	for i := range orderMeanings {
		orderMeanings[i] = meaning{uint32(i) << valueShift, 0}
	}
}

// fixed sets the codes of RFC 1951, section 3.2.6.
func (c *codes) fixed() {
	if c.isFixed {
		return
	}
	for i := range c.lengths[:literals+2] {
		switch {
		case i < 144:
			c.lengths[i] = 8
		case i < 256:
			c.lengths[i] = 9
		case i < 280:
			c.lengths[i] = 7
		default:
			c.lengths[i] = 8
		}
	}
	build(c.literal[:], literalBits, c.lengths[:literals+2], literalMeanings[:])
	for i := range distances + 2 {
		c.lengths[i] = 5
	}
	build(c.distance[:], distanceBits, c.lengths[:distances+2], distanceMeanings[:])
	c.isFixed = true
}

// order is the order in which the lengths of the codes for lengths are written.
var order = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// read reads the codes that a block begins with, RFC 1951, section 3.2.7.
func (c *codes) read(in *input) error {
	c.isFixed = false
	if err := in.need(14); err != nil {
		return err
	}
	nl, nd, no := int(in.take(5))+257, int(in.take(5))+1, int(in.take(4))+4
	if nl > literals || nd > distances {
		return ErrCorrupt
	}
	var lengths [len(order)]uint8
	for _, symbol := range order[:no] {
		if err := in.need(3); err != nil {
			return err
		}
		lengths[symbol] = uint8(in.take(3))
	}
	if !build(c.order[:], orderBits, lengths[:], orderMeanings[:]) {
		return ErrCorrupt
	}
	for i := 0; i < nl+nd; {
		n, length, err := c.run(in, i)
		if err != nil {
			return err
		}
		if i+n > nl+nd {
			return ErrCorrupt
		}
		for range n {
			c.lengths[i] = length
			i++
		}
	}
	if !build(c.literal[:], literalBits, c.lengths[:nl], literalMeanings[:]) ||
		!build(c.distance[:], distanceBits, c.lengths[nl:nl+nd], distanceMeanings[:]) {
		return ErrCorrupt
	}
	return nil
}

// run reads the length of one or more codes, the first of which is that of c.lengths[i].
func (c *codes) run(in *input, i int) (n int, length uint8, err error) {
	e, err := c.next(in)
	if err != nil {
		return 0, 0, err
	}
	switch symbol := e >> valueShift; symbol {
	case 16:
		if i == 0 {
			return 0, 0, ErrCorrupt
		}
		n, err = repeats(in, 3, 2)
		return n, c.lengths[i-1], err
	case 17:
		n, err = repeats(in, 3, 3)
		return n, 0, err
	case 18:
		n, err = repeats(in, 11, 7)
		return n, 0, err
	default:
		return 1, uint8(symbol), nil
	}
}

// next returns the entry of the next code of a length. It may ask for more bits than the block has:
// eight bytes follow it.
func (c *codes) next(in *input) (uint32, error) {
	if err := in.need(orderBits); err != nil {
		return 0, err
	}
	e := c.order[in.bits&(1<<orderBits-1)]
	if e&special != 0 {
		return 0, ErrCorrupt
	}
	in.take(uint(e & allMask))
	return e, nil
}

func repeats(in *input, least int, extra uint) (int, error) {
	if err := in.need(extra); err != nil {
		return 0, err
	}
	return least + int(in.take(extra)), nil
}

// build makes the table of a canonical Huffman code, of which lengths are the bits of each symbol's
// code and 0 means none. It returns false if there are too many codes or too few. No code at all, and
// a single one of one bit, are allowed for what is not used, or hardly.
func build(table []uint32, first uint, lengths []uint8, meanings []meaning) bool {
	codes, ok := canonical(lengths)
	for i := range 1 << first {
		table[i] = special | 1<<codeShift
	}
	if !ok {
		return false
	}
	free, more := 1<<first, max(codes.longest, first)-first
	for symbol, length := range lengths {
		if length == 0 {
			continue
		}
		n := uint(length)
		code := int(bits.Reverse16(codes.take(length)) >> (16 - n))
		e := meanings[symbol].entry(length)
		if n <= first {
			for i := code; i < 1<<first; i += 1 << n {
				table[i] = e
			}
			continue
		}
		begins := &table[code&(1<<first-1)]
		if *begins&longer == 0 {
			*begins = uint32(free)<<valueShift | special | longer | uint32(first)<<codeShift | uint32(more)
			free += 1 << more
		}
		rest := table[*begins>>valueShift:][:1<<more]
		for i := code >> first; i < len(rest); i += 1 << (n - first) {
			rest[i] = e
		}
	}
	return true
}

// entry is that of a table for a code of this length.
func (m meaning) entry(length uint8) uint32 {
	return m.value | uint32(length)<<codeShift | uint32(length+m.extra)
}

// numbering gives the codes of each length their values: those of a length follow each other, and
// shorter ones come first.
type numbering struct {
	next    [maxLength + 1]uint16
	longest uint
}

// canonical returns the numbering for codes of these lengths, and whether one is possible.
func canonical(lengths []uint8) (n numbering, ok bool) {
	var count [maxLength + 1]int
	for _, length := range lengths {
		count[length]++
	}
	code := 0
	for length := 1; length <= maxLength; length++ {
		n.next[length] = uint16(code)
		if count[length] != 0 {
			n.longest = uint(length)
		}
		if code += count[length]; code > 1<<length {
			return n, false
		}
		code <<= 1
	}
	whole := code == 1<<(maxLength+1)
	none := count[0] == len(lengths)
	single := n.longest == 1 && count[1] == 1
	return n, whole || none || single
}

func (n *numbering) take(length uint8) uint16 {
	code := n.next[length]
	n.next[length]++
	return code
}
