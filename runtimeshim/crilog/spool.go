package crilog

import "fmt"

// Spool is the file between the FIFO of one output stream and the log. Its size is the only record
// of what was taken from the FIFO, so whoever appends to the file must call Grow.
//
//	0 ........ hole ........ off ........ size
//	   freed      in the log   waiting
type Spool struct {
	file File
	size int64 // of the file
	off  int64 // everything before it is in the log, or in the log's current intent
	hole int64 // everything before it uses no disk space any more
}

const (
	ResetAt = 64 << 10 // from this size on, a spool that is completely in the log is truncated
	PunchAt = 1 << 20  // from this size on, the part that is in the log is punched out
)

// OpenSpool takes ownership of the file, and closes it on error.
func OpenSpool(f File) (*Spool, error) {
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Spool{file: f, size: st.Size}, nil
}

// Close closes the file.
func (s *Spool) Close() { s.file.Close() }

// Size returns the size of the file in bytes.
func (s *Spool) Size() int64 { return s.size }

// Waiting returns the number of bytes that are not in the log yet.
func (s *Spool) Waiting() int64 { return s.size - s.off }

// Grow must be called after n bytes were appended to the file.
func (s *Spool) Grow(n int64) { s.size += n }

// Last returns the newest n bytes.
func (s *Spool) Last(n int) ([]byte, error) {
	b := make([]byte, n)
	if err := readFull(s.file, b, s.size-int64(n)); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	return b, nil
}

// read fills buf, as far as possible, from off on and returns the filled part.
func (s *Spool) read(buf []byte) ([]byte, error) {
	buf = buf[:min(int64(len(buf)), s.size-s.off)]
	if err := readFull(s.file, buf, s.off); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	return buf, nil
}

// empty truncates the file. All of it must be in the log, and the caller must record the new offset
// before the next Grow.
func (s *Spool) empty() error {
	if err := s.file.Truncate(0); err != nil {
		return fmt.Errorf("empty the spool: %w", err)
	}
	s.size, s.off, s.hole = 0, 0, 0
	return nil
}

// punch frees the disk space of what is in the log. The caller must first record that no intent
// needs it.
func (s *Spool) punch() {
	s.hole = s.off
	s.file.Punch(s.off &^ 4095)
}
