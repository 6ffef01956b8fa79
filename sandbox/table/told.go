package table

import "sync/atomic"

// Told holds what a request is told as, in bytes. A request never changes: what is listed every
// second is encoded once.
type Told struct {
	Item       Encoded // of a list
	Attributes Encoded // of statistics
}

// Encoded is made when it is asked for first.
type Encoded struct{ made atomic.Pointer[[]byte] }

// Bytes returns what make has returned, now or earlier. Nobody changes it.
func (e *Encoded) Bytes(make func() []byte) []byte {
	if b := e.made.Load(); b != nil {
		return *b
	}
	b := make()
	e.made.Store(&b)
	return b
}
