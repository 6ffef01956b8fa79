package shim

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/helper"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// pump moves the output of a terminal into the FIFO that the logger reads, with splice(2): each
// byte is either in the terminal or in the FIFO, never in our memory, so killing the shim loses
// none.
type pump struct {
	tty, fifo *os.File
	done      chan struct{}
	stopOnce  sync.Once
}

// newPump starts a pump into the FIFO at path. The caller still owns tty.
func newPump(tty *os.File, path string) (*pump, error) {
	fifo, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	p := &pump{tty: tty, fifo: fifo, done: make(chan struct{})}
	go p.run()
	return p, nil
}

func (p *pump) run() {
	defer helper.Survive()
	defer close(p.done)
	in, err1 := p.tty.SyscallConn()
	out, err2 := p.fifo.SyscallConn()
	if err1 != nil || err2 != nil {
		return
	}
	for {
		full := false
		err := in.Read(func(fd uintptr) bool {
			for {
				switch n, err := p.splice(int(fd)); {
				case n > 0, errors.Is(err, unix.EINTR):
				case errors.Is(err, unix.EAGAIN) && !unixfd.Ready(unixfd.Of(p.fifo), unix.POLLOUT):
					full = true
					return true
				default:
					// Nothing to read. EIO means that nobody has the other end open now, but
					// somebody may open it again. The poller reports either.
					return false
				}
			}
		})
		if err != nil {
			return
		}
		if full && out.Write(func(fd uintptr) bool { return unixfd.Ready(int(fd), unix.POLLOUT) }) != nil {
			return
		}
	}
}

func (p *pump) splice(fd int) (int64, error) {
	n, err := unix.Splice(fd, nil, unixfd.Of(p.fifo), nil, 64<<10, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	return n, err
}

const (
	terminalHolds = 64 << 10 // more than the buffers of a terminal hold (pty: 8 KiB and 4 KiB)
	widerPipe     = 1 << 20  // holds what was in the terminal, even if the logger reads nothing
	// lastOutput is how long the logger may take to read from a FIFO that cannot be enlarged.
	lastOutput = 2 * time.Second
)

// finish is called after the end of the task: it moves the remaining output of the terminal and
// stops. It enlarges the FIFO, so that this works even if nobody reads the FIFO. False when output
// is lost.
func (p *pump) finish(limit time.Duration) bool {
	p.stop()
	// if this fails, the FIFO keeps its size
	_, _ = unix.FcntlInt(uintptr(unixfd.Of(p.fifo)), unix.F_SETPIPE_SZ, widerPipe)
	moved := int64(0)
	for end := time.Now().Add(limit); moved < terminalHolds; {
		n, err := p.splice(unixfd.Of(p.tty))
		switch {
		case n > 0:
			moved += n
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && unixfd.Readable(unixfd.Of(p.tty)):
			if time.Now().After(end) {
				return false
			}
			time.Sleep(2 * time.Millisecond) // the FIFO is full
		default:
			return true
		}
	}
	return true // more output than the buffers hold comes from a process that outlived the task
}

// stop ends the goroutine; afterwards nothing is moved.
func (p *pump) stop() {
	p.stopOnce.Do(func() {
		p.tty.SetReadDeadline(time.Now())
		p.fifo.SetWriteDeadline(time.Now())
		<-p.done
	})
}

func (p *pump) close() {
	p.stop()
	p.fifo.Close()
}
