package runtimeshim

import (
	"os"
	"runtime/debug"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Shim and logger live long and write to a file that nobody rotates.

// survive is deferred in goroutines that are about one task: a panic there must not end the parent of
// all the others.
func survive() {
	if p := recover(); p != nil {
		log.L.Errorf("panic: %v\n%s", p, debug.Stack())
	}
}

// mostLog is the size of a log from which on it is emptied.
const mostLog = 256 << 10

// boundLog keeps our log, which is stderr, from growing without end.
func boundLog() { log.L.Logger.SetOutput(boundedLog{os.Stderr}) }

// boundedLog empties its file when it is large. Anything else than a file is left alone.
type boundedLog struct{ f *os.File }

func (l boundedLog) Write(b []byte) (int, error) {
	if st, err := fstat(fdOf(l.f)); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > mostLog {
		_ = unix.Ftruncate(fdOf(l.f), 0) // it is open for appending
	}
	return l.f.Write(b)
}
