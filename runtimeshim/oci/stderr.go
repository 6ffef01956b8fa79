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

// Stderr is a pipe for the stderr of a runtime, if nothing else reads that.
type Stderr struct {
	r *os.File
	// W is the runtime's end. It is also open for reading, so that a process that keeps it never
	// gets SIGPIPE.
	W    *os.File
	done chan struct{}
	stop sync.Once
	said []byte // the end of the output; used by the reading goroutine until done
}

// MostSaid is how many bytes of the end of a runtime's stderr are kept for the error.
const MostSaid = 64 << 10

// NewStderr creates the pipe, owned by the user of the process that inherits it, and starts to
// read.
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

// Text returns the output so far and stops reading.
func (p *Stderr) Text() string {
	p.stop.Do(func() {
		p.r.SetReadDeadline(time.Now())
		<-p.done
		chunk := make([]byte, MostSaid)
		for range 4 { // more than the pipe holds: somebody keeps printing
			n, err := unix.Read(unixfd.Of(p.r), chunk)
			if n <= 0 || err != nil {
				return
			}
			p.keep(chunk[:n])
		}
	})
	return string(p.said)
}

// Close stops reading and closes the pipe.
func (p *Stderr) Close() {
	p.Text()
	unixfd.CloseAll([]*os.File{p.r, p.W})
}

// RunQuietly is Run for a command whose stderr is used only for its error.
func (d *Driver) RunQuietly(ctx context.Context, c Command) error {
	errs, err := NewStderr(0, 0)
	if err != nil {
		return err
	}
	defer errs.Close()
	c.Stdio[2], c.Said = errs.W, errs.Text
	return d.Run(ctx, c)
}

// lastWords returns the most informative line: that of a crash, or otherwise the last one.
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
