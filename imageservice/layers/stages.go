package layers

import (
	"hash"
	"io"
	"sync"
)

// stages reads ahead: one goroutine decompresses a layer and another hashes it, while the caller
// extracts what both are done with. A layer then takes as long as the slowest of the three instead
// of their sum, if processors are free. At most stageBuffers*stageBuffer bytes are between them.
type stages struct {
	hashed chan piece  // to the caller
	free   chan []byte // used buffers
	stop   chan struct{}
	both   sync.WaitGroup
	now    piece  // what the caller reads
	whole  []byte // the buffer of now
}

const (
	stageBuffers = 4
	stageBuffer  = 256 << 10
)

// piece is a part of the stream. The last one has an error, io.EOF after a complete stream.
type piece struct {
	b   []byte
	err error
}

// startStages reads r until it returns an error. panicked turns what a panic of r was raised with
// into an error. The caller must call end.
func startStages(r io.Reader, h hash.Hash, panicked func(reason any) error) *stages {
	s := &stages{hashed: make(chan piece), free: make(chan []byte, stageBuffers), stop: make(chan struct{})}
	for range stageBuffers {
		s.free <- make([]byte, stageBuffer)
	}
	plain := make(chan piece)
	s.both.Add(2)
	go func() {
		defer s.both.Done()
		defer close(plain)
		defer func() {
			if reason := recover(); reason != nil {
				s.pass(plain, piece{err: panicked(reason)})
			}
		}()
		for last := false; !last; {
			select {
			case b := <-s.free:
				n, err := fill(r, b)
				last = !s.pass(plain, piece{b[:n], err}) || err != nil
			case <-s.stop:
				return
			}
		}
	}()
	go func() {
		defer s.both.Done()
		defer close(s.hashed)
		for p := range plain {
			h.Write(p.b)
			if !s.pass(s.hashed, p) {
				return
			}
		}
	}()
	return s
}

// pass hands a piece on. It returns false when nobody wants it any more.
func (s *stages) pass(to chan<- piece, p piece) bool {
	select {
	case to <- p:
		return true
	case <-s.stop:
		return false
	}
}

// Read implements io.Reader. Everything that it has returned is hashed.
func (s *stages) Read(p []byte) (int, error) {
	for len(s.now.b) == 0 {
		if s.now.err != nil {
			return 0, s.now.err
		}
		if s.whole != nil {
			s.free <- s.whole[:cap(s.whole)]
		}
		next, ok := <-s.hashed
		if !ok {
			return 0, io.ErrUnexpectedEOF // end was called
		}
		s.now, s.whole = next, next.b
	}
	n := copy(p, s.now.b)
	s.now.b = s.now.b[n:]
	return n, nil
}

// end stops both goroutines and waits for them, a read of the source in progress included.
func (s *stages) end() {
	close(s.stop)
	s.both.Wait()
}
