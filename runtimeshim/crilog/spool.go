package crilog

import "fmt"

// Spool is one output stream between the FIFO that a task prints to and its
// log. Only its size tells what was taken from the FIFO, so whoever appends to
// the file calls Grow.
//
//	0 ........ hole ........ off ........ size
//	  given back     in the log   waiting
type Spool struct {
	file File
	size int64 // of the file
	off  int64 // what is before it is in the log, or in the log's current intent
	hole int64 // what is before it takes no room any more
}

const (
	ResetAt = 64 << 10 // a spool that is wholly in the log is emptied from this size on
	PunchAt = 1 << 20  // one that ends in an unfinished line gives back its head
)

// OpenSpool takes the file over, also on error.
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

// Size is how many bytes the file has.
func (s *Spool) Size() int64 { return s.size }

// Waiting is how much of it is not in the log.
func (s *Spool) Waiting() int64 { return s.size - s.off }

// Grow says that n bytes were appended to the file.
func (s *Spool) Grow(n int64) { s.size += n }

// Last returns the newest n bytes.
func (s *Spool) Last(n int) ([]byte, error) {
	b := make([]byte, n)
	if err := readFull(s.file, b, s.size-int64(n)); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	return b, nil
}

// read fills buf from off on and returns the part that was filled.
func (s *Spool) read(buf []byte) ([]byte, error) {
	buf = buf[:min(int64(len(buf)), s.size-s.off)]
	if err := readFull(s.file, buf, s.off); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	return buf, nil
}

// empty truncates the file. Only when all of it is in the log; the caller
// records the new offset before the next Grow.
func (s *Spool) empty() error {
	if err := s.file.Truncate(0); err != nil {
		return fmt.Errorf("empty the spool: %w", err)
	}
	s.size, s.off, s.hole = 0, 0, 0
	return nil
}

// punch gives back the room of what is in the log. The caller has recorded
// before that no intent needs it.
func (s *Spool) punch() {
	s.hole = s.off
	s.file.Punch(s.off &^ 4095)
}
