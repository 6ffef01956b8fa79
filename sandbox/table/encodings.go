package table

import "sync/atomic"

// Encodings caches the encoded form of what never changes of a pod or container: the request.
type Encodings struct {
	Attributes Encoded // of statistics
}

// Encoded is encoded when it is asked for first.
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
