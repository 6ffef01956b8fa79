package crilog

import "io"

// killed is the panic value of the file operation at which the Writer is killed.
type killed struct{}

// disk counts the operations on its files, and kills the Writer at one of them.
type disk struct {
	ops    int
	killAt int  // 0 = never
	half   bool // half of that operation is done
}

// op is called before an operation. part, unless nil, does half of the operation.
func (d *disk) op(part func()) {
	d.ops++
	if d.ops != d.killAt {
		return
	}
	if d.half && part != nil {
		part()
	}
	panic(killed{})
}

// memory is a File that remains when its Writer is killed.
type memory struct {
	d    *disk
	data []byte
	hole int64 // everything before it is lost
}

func (m *memory) Close() error { return nil }

func (m *memory) Stat() (Stat, error) { m.d.op(nil); return Stat{Size: int64(len(m.data))}, nil }

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	m.d.op(nil)
	if off > int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(b, m.data[off:])
	for i := off; i < min(m.hole, off+int64(n)); i++ {
		b[i-off] = 0
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt at a kill leaves the bytes outside the range unchanged.
func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	for int64(len(m.data)) < off+int64(len(b)) {
		m.data = append(m.data, 0)
	}
	m.d.op(func() { copy(m.data[off:], b[:len(b)/2]) })
	return copy(m.data[off:], b), nil
}

func (m *memory) Append(b []byte) error {
	m.d.op(func() { m.data = append(m.data, b[:len(b)/2]...) })
	m.data = append(m.data, b...)
	return nil
}

// Truncate is atomic, like a splice into a file: the kernel does all of it or nothing.
func (m *memory) Truncate(size int64) error {
	m.d.op(nil)
	m.data, m.hole = m.data[:size], min(m.hole, size)
	return nil
}

func (m *memory) Punch(end int64) { m.d.op(nil); m.hole = max(m.hole, end) }
