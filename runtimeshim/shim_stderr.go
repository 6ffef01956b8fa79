package runtimeshim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a runtime prints to stderr is often the only word about why it failed: of an option that it
// does not know, or when it could not open its log.

// errPipe is the stderr of a runtime whose words nobody else reads.
type errPipe struct {
	r    *os.File
	w    *os.File // for the runtime. Open for reading too: who keeps it is never sent SIGPIPE
	done chan struct{}
	stop sync.Once
	said []byte // the end of it; of the reading goroutine until done
}

const mostSaid = 64 << 10

// newErrPipe makes the pipe, owned by whom the process that inherits it runs as, and begins to read.
func newErrPipe(uid, gid int) (*errPipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe for stderr of the runtime: %w", err)
	}
	defer unix.Close(fds[1])
	p := &errPipe{r: os.NewFile(uintptr(fds[0]), "stderr"), done: make(chan struct{})}
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fds[1]), os.O_RDWR, 0)
	if err == nil {
		p.w = w
		err = w.Chown(uid, gid)
	}
	if err != nil {
		closeAll([]*os.File{p.r, p.w})
		return nil, fmt.Errorf("pipe for stderr of the runtime: %w", err)
	}
	go p.read()
	return p, nil
}

func (p *errPipe) read() {
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

func (p *errPipe) keep(b []byte) {
	p.said = append(p.said, b...)
	p.said = p.said[max(0, len(p.said)-mostSaid):]
}

// text is what was printed until now. Nothing is read afterwards.
func (p *errPipe) text() string {
	p.stop.Do(func() {
		p.r.SetReadDeadline(time.Now())
		<-p.done
		chunk := make([]byte, mostSaid)
		for range 4 { // more than the pipe holds: somebody goes on printing
			n, err := unix.Read(fdOf(p.r), chunk)
			if n <= 0 || err != nil {
				return
			}
			p.keep(chunk[:n])
		}
	})
	return string(p.said)
}

func (p *errPipe) close() {
	p.text()
	closeAll([]*os.File{p.r, p.w})
}

// runQuietly is run of a command whose stderr goes nowhere else.
func (d *driver) runQuietly(ctx context.Context, c ociCommand) error {
	errs, err := newErrPipe(0, 0)
	if err != nil {
		return err
	}
	defer errs.close()
	c.stdio[2], c.said = errs.w, errs.text
	return d.run(ctx, c)
}

// spoolWait is how long the logger may take to read what a runtime that failed has printed.
const spoolWait = time.Second

// spooled is the end of what went into a task's stderr, which is the runtime's too: the logger has
// it in a file. "" when the logger is slow, or the task has no log.
func spooled(d taskDir, fifo *os.File) string {
	for end := time.Now().Add(spoolWait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if left, err := unix.IoctlGetInt(fdOf(fifo), unix.TIOCINQ); err != nil || left == 0 {
			break
		}
	}
	f, err := os.OpenFile(d.at("stderr.spool"), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > mostSaid {
		if _, err := f.Seek(-mostSaid, io.SeekEnd); err != nil {
			return ""
		}
	}
	raw, _ := io.ReadAll(io.LimitReader(f, mostSaid))
	return string(bytes.Trim(raw, "\x00")) // a hole
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
