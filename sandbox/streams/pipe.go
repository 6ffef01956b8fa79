package streams

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/spec"
)

// outputPipe carries one output stream of a process from a pipe to whoever wants it.
type outputPipe struct {
	r, w *os.File
	sink func([]byte) // called from one goroutine; while it does not return, the process waits
	done chan struct{}
}

// newOutputPipe makes the pipe and begins to read. The end that the process gets, w, blocks, as
// programs expect of their output.
func newOutputPipe(as spec.Owner, sink func([]byte)) (*outputPipe, error) {
	r, w, err := pipe(0, as)
	if err != nil {
		return nil, err
	}
	o := &outputPipe{r: r, w: w, sink: sink, done: make(chan struct{})}
	go guard.Run(context.Background(), "output of a command", o.read)
	return o, nil
}

// pipe makes a pipe whose end ours (0 reads, 1 writes) can be waited for with a deadline; the other
// one blocks.
func pipe(ours int, as spec.Owner) (r, w *os.File, err error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe for a process: %w", err)
	}
	if err := errors.Join(unix.SetNonblock(ends[ours], true), unix.Fchown(ends[1], as.UID, as.GID)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pipe for a process: %w", err), unix.Close(ends[0]), unix.Close(ends[1]))
	}
	return os.NewFile(uintptr(ends[0]), "pipe"), os.NewFile(uintptr(ends[1]), "pipe"), nil
}

const smallChunk, largeChunk = 512, 32 << 10

func (o *outputPipe) read() {
	defer close(o.done)
	chunk := make([]byte, smallChunk) // most commands print next to nothing
	for {
		n, err := o.r.Read(chunk)
		if n > 0 {
			o.sink(chunk[:n])
		}
		if n == len(chunk) && n < largeChunk {
			chunk = make([]byte, largeChunk)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.drain(chunk)
		}
		if err != nil {
			return
		}
	}
}

// drain takes what is in the pipe at this moment, and neither waits for more nor follows a child
// that goes on writing.
func (o *outputPipe) drain(chunk []byte) {
	o.r.SetReadDeadline(time.Time{})
	raw, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		for left > 0 && err == nil {
			var n int
			n, err = unix.Read(int(fd), chunk[:min(left, len(chunk))])
			if n > 0 {
				o.sink(chunk[:n])
			}
			left -= max(n, 0)
			if n == 0 {
				break
			}
		}
		return true
	})
	if err != nil {
		return // closed; what was read is with the sink
	}
}

// finish returns when the sink has what was written before the process ended. All of that is in the
// pipe by then; a child that holds the pipe open is not waited for.
func (o *outputPipe) finish() {
	o.w.Close()
	o.r.SetReadDeadline(time.Now())
	<-o.done
}

// close ends the pipe; what the sink does not have is dropped. After finish it does nothing.
func (o *outputPipe) close() {
	o.w.Close()
	o.r.Close()
	<-o.done
}
