package oci

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// Stderr is the stderr of a runtime whose words nobody else reads.
type Stderr struct {
	r    *os.File
	W    *os.File // for the runtime. Open for reading too: who keeps it is never sent SIGPIPE
	done chan struct{}
	stop sync.Once
	said []byte // the end of it; of the reading goroutine until done
}

const MostSaid = 64 << 10

// NewStderr makes the pipe, owned by whom the process that inherits it runs as, and begins to read.
func NewStderr(uid, gid int) (*Stderr, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe for stderr of the runtime: %w", err)
	}
	defer unix.Close(fds[1])
	p := &Stderr{r: os.NewFile(uintptr(fds[0]), "stderr"), done: make(chan struct{})}
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fds[1]), os.O_RDWR, 0)
	if err == nil {
		p.W = w
		err = w.Chown(uid, gid)
	}
	if err != nil {
		unixfd.CloseAll([]*os.File{p.r, p.W})
		return nil, fmt.Errorf("pipe for stderr of the runtime: %w", err)
	}
	go p.read()
	return p, nil
}

func (p *Stderr) read() {
	defer close(p.done)
	chunk := make([]byte, 4096)
	for {
		n, err := p.r.Read(chunk)
		p.keep(chunk[:n])
		if err != nil {
			return
		}
	}
}

func (p *Stderr) keep(b []byte) {
	p.said = append(p.said, b...)
	p.said = p.said[max(0, len(p.said)-MostSaid):]
}

// Text is what was printed until now. Nothing is read afterwards.
func (p *Stderr) Text() string {
	p.stop.Do(func() {
		p.r.SetReadDeadline(time.Now())
		<-p.done
		chunk := make([]byte, MostSaid)
		for range 4 { // more than the pipe holds: somebody goes on printing
			n, err := unix.Read(unixfd.Of(p.r), chunk)
			if n <= 0 || err != nil {
				return
			}
			p.keep(chunk[:n])
		}
	})
	return string(p.said)
}

// Close ends the reading.
func (p *Stderr) Close() {
	p.Text()
	unixfd.CloseAll([]*os.File{p.r, p.W})
}

// RunQuietly is run of a command whose stderr goes nowhere else.
func (d *Driver) RunQuietly(ctx context.Context, c Command) error {
	errs, err := NewStderr(0, 0)
	if err != nil {
		return err
	}
	defer errs.Close()
	c.Stdio[2], c.Said = errs.W, errs.Text
	return d.Run(ctx, c)
}

// lastWords is the line that says most: that of a crash, or else the last one.
func lastWords(text string) string {
	last := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			last = line
			break
		}
		if line != "" {
			last = line
		}
	}
	return strings.ToValidUTF8(last[max(0, len(last)-4096):], "?")
}
