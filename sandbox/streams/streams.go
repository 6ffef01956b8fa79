package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/internal/guard"
	"github.com/cribox/cribox/sandbox/spec"
	"github.com/cribox/cribox/sandbox/table"
)

// Streams are a client's ends of a process. A nil one is not wanted. Everything that waits for them
// ends with the context of the call, which is the client's connection.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size // of a terminal
}

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// Exec runs a command in a container with the client's streams and returns its exit code (CRI
// Exec). A command that cannot be started is an exit code of 126 or 127 with the reason on the
// client's error stream. When the client leaves, the command is killed with its process group.
// Output of a child that the command left behind is not waited for.
func (ss *Sessions) Exec(ctx context.Context, id string, cmd []string, tty bool, client Streams) (int32, error) {
	request, err := ss.execFor(id, cmd, tty)
	if err != nil {
		return 0, err
	}
	run := ss.execPipes
	if tty {
		run = ss.execTerminal
	}
	code, err := run(ctx, request, client)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err == nil {
		return code, nil
	}
	r, err := notStarted(err)
	if err == nil {
		client.complain(r.Stderr)
	}
	return r.ExitCode, err
}

// CheckExec says why a command could not be run now: ErrNotFound, ErrFailedPrecondition,
// ErrInvalidArgument.
func (ss *Sessions) CheckExec(id string, cmd []string, tty bool) error {
	_, err := ss.execFor(id, cmd, tty)
	return err
}

func (ss *Sessions) execFor(id string, cmd []string, tty bool) (command, error) {
	c, err := ss.table.FindContainer(id)
	if err != nil {
		return command{}, err
	}
	return ss.execRequest(c, cmd, tty)
}

// complain tells the client what the command could not.
func (s Streams) complain(text []byte) {
	out := s.Stderr
	if out == nil {
		out = s.Stdout
	}
	if out != nil {
		_, _ = out.Write(text) // who left does not read it
	}
}

func (ss *Sessions) execPipes(ctx context.Context, c command, client Streams) (int32, error) {
	stdin, err := feed(c.as, client.Stdin)
	if err != nil {
		return 0, err
	}
	defer stdin.Close()
	out, err := outputPipes(c.as, client)
	if err != nil {
		return 0, err
	}
	defer out.close()
	c.Stdin, c.Stdout, c.Stderr = stdin, out.stdout(), out.stderr()
	c.Session = true
	code, err := ss.shim.Exec(ctx, c.Exec)
	if err == nil {
		out.finish()
	}
	return code, err
}

// feed returns the end of a pipe into which the client's input is copied, nil without a client. It
// ends when the client has no more; the copying goroutine ends with the client or at its first byte
// after the returned end was closed.
func feed(as spec.Owner, client io.Reader) (*os.File, error) {
	if client == nil {
		return nil, nil
	}
	r, w, err := pipe(1, as)
	if err != nil {
		return nil, err
	}
	go func() {
		defer w.Close()
		guard.Run(context.Background(), "input of a client", func() {
			_, _ = io.Copy(w, client) // a process that reads no more is none of the client's errors
		})
	}()
	return r, nil
}

// pair are the pipes of stdout and stderr; nil where the client wants none.
type pair [2]*outputPipe

func outputPipes(as spec.Owner, client Streams) (pair, error) {
	var p pair
	for i, to := range []io.Writer{client.Stdout, client.Stderr} {
		if to == nil {
			continue
		}
		var err error
		if p[i], err = newOutputPipe(as, sendTo(to)); err != nil {
			p.close()
			return pair{}, err
		}
	}
	return p, nil
}

// sendTo returns a sink that goes on, and drops everything, when the client is gone: the process
// must not wait for nobody.
func sendTo(client io.Writer) func([]byte) {
	gone := false
	return func(b []byte) {
		if !gone {
			_, err := client.Write(b)
			gone = err != nil
		}
	}
}

func (p pair) stdout() *os.File { return p[0].end() }
func (p pair) stderr() *os.File { return p[1].end() }

func (o *outputPipe) end() *os.File {
	if o == nil {
		return nil
	}
	return o.w
}

func (p pair) finish() {
	for _, o := range p {
		if o != nil {
			o.finish()
		}
	}
}

func (p pair) close() {
	for _, o := range p {
		if o != nil {
			o.close()
		}
	}
}

// lastOutput is how long a terminal may take to give what the process printed before it ended. The
// kernel hangs it up when the process, which leads its session, ends: only a kernel that is stuck
// takes so long.
const lastOutput = 2 * time.Second

func (ss *Sessions) execTerminal(ctx context.Context, c command, client Streams) (int32, error) {
	var tty *os.File
	read := make(chan struct{})
	var ended atomic.Bool
	c.OnTerminal = func(master *os.File) {
		tty = master
		go guard.Run(ctx, "size of a terminal", func() { resize(ctx, tty, client.Resize) })
		go func() {
			defer close(read)
			guard.Run(ctx, "output to a client", func() { show(tty, sendTo(orDiscard(client.Stdout)), &ended) })
		}()
		if client.Stdin != nil {
			go guard.Run(ctx, "input of a client", func() { _, _ = io.Copy(tty, client.Stdin) })
		}
	}
	c.Session = true
	code, err := ss.shim.Exec(ctx, c.Exec)
	if tty == nil {
		return code, err
	}
	defer tty.Close()
	ended.Store(true)
	tty.SetReadDeadline(time.Now().Add(lastOutput))
	<-read
	return code, err
}

// show gives the client what the terminal prints, until nobody has its other end any more (EIO).
// Once the process has ended, every read has lastOutput of its own: a client that was slow before
// it has not used that up.
func show(tty *os.File, client func([]byte), ended *atomic.Bool) {
	chunk := make([]byte, 32<<10)
	for {
		if ended.Load() {
			tty.SetReadDeadline(time.Now().Add(lastOutput))
		}
		n, err := tty.Read(chunk)
		if n > 0 {
			client(chunk[:n])
		}
		if err != nil {
			return
		}
	}
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// resize follows the client's window until it has none any more.
func resize(ctx context.Context, tty *os.File, sizes <-chan Size) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case s, more := <-sizes:
			if !more {
				return
			}
			_ = raw.Control(func(fd uintptr) { // closed: the process ended, and the sizes are read all the same
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
			})
		case <-ctx.Done():
			return
		}
	}
}

// Attach connects the client's streams with those of a running container, and returns when the
// container has ended or the client has left (CRI Attach). Output begins now. What the client does
// with its input is what the container was made for: with stdin_once the container's stdin ends
// with the first client's, otherwise it stays open for the next one; without stdin the client's is
// not read. A client whose own input has ended leaves an open stdin that is no terminal: it has
// what was printed until then, and the container goes on.
func (ss *Sessions) Attach(ctx context.Context, id string, client Streams) error {
	c, err := ss.table.FindContainer(id)
	if err != nil {
		return err
	}
	if err := ss.mustRun(c); err != nil {
		return err
	}
	if c.Config.GetTty() {
		client.Stderr = nil // a terminal has one output
	}
	if client.Stdout == nil && client.Stderr == nil {
		client.Stdout = io.Discard // its end is the container's
	}
	out, err := outputPipes(spec.Owner{}, client)
	if err != nil {
		return err
	}
	defer out.close()
	leave, ended := context.WithCancel(ctx)
	defer ended()
	return ss.follow(ctx, leave, c, out, func() error { return ss.talk(ctx, c, client, ended) })
}

// CheckAttach says why nobody can attach to a container now: ErrNotFound, ErrFailedPrecondition,
// ErrInvalidArgument when the client means to find a terminal and there is none, or the other way
// round (CRI AttachRequest.tty).
func (ss *Sessions) CheckAttach(id string, tty bool) error {
	c, err := ss.table.FindContainer(id)
	if err != nil {
		return err
	}
	if err := ss.mustRun(c); err != nil {
		return err
	}
	if tty != c.Config.GetTty() {
		return fmt.Errorf("tty is %t, but that of container %s is %t: %w",
			tty, c.ID, c.Config.GetTty(), errdefs.ErrInvalidArgument)
	}
	return nil
}

// follow copies a container's output until it ends. begun is called once, when the output that an
// input causes will be seen. A logger that died is asked again: the next one knows of nobody who
// was attached. When leave ends it is over, too.
func (ss *Sessions) follow(ctx, leave context.Context, c *table.ContainerEntry, out pair, begun func() error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first := true
	for {
		err := ss.shim.Attach(ctx, leave, c.ID, out.stdout(), out.stderr(), func() {
			if first {
				first = false
				if err := begun(); err != nil {
					cancel(err)
				}
			}
		})
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		// also when the logger did not live to hand over the last words
		case leave.Err() != nil && !errors.Is(err, errdefs.ErrAborted):
			out.finish()
			return nil
		case errors.Is(err, errdefs.ErrUnavailable) && ss.mustRun(c) == nil:
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		case err == nil || !first && errors.Is(err, errdefs.ErrFailedPrecondition):
			out.finish()
			return nil
		default:
			return err
		}
	}
}

// talk gives the container what the client types, and its terminal the client's size. over is
// called when the client's input has ended and the container's stays open for another.
func (ss *Sessions) talk(ctx context.Context, c *table.ContainerEntry, client Streams, over func()) error {
	if client.Stdin == nil && !c.Config.GetTty() {
		return nil
	}
	ends, err := ss.shim.Streams(ctx, c.ID)
	if errors.Is(err, errdefs.ErrFailedPrecondition) || errors.Is(err, errdefs.ErrNotFound) {
		return nil // it has just ended
	}
	if err != nil {
		return err
	}
	if ends.Terminal != nil {
		context.AfterFunc(ctx, func() { ends.Terminal.Close() })
		go guard.Run(ctx, "size of a terminal", func() { resize(ctx, ends.Terminal, client.Resize) })
	}
	to := ends.Stdin
	if to == nil {
		to = ends.Terminal
	} else {
		context.AfterFunc(ctx, func() { to.Close() })
	}
	if client.Stdin != nil && to != nil {
		go func() {
			err := guard.Call(context.Background(), "input of a client",
				func() error { _, err := io.Copy(to, client.Stdin); return err })
			if to == ends.Terminal {
				return
			}
			to.Close()
			if !c.Config.GetStdinOnce() && !errors.Is(err, unix.EPIPE) { // EPIPE: it is the container that wants no more
				over()
			}
		}()
	}
	return nil
}
