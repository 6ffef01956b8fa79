package oci

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/unixfd"
	"github.com/cribox/cribox/runtimeshim/wire"
)

// console is the socket on which a runtime sends the terminal that it has created.
type console struct {
	path string
	l    *net.UnixListener
}

// newConsole listens directly in the state folder, because the path must fit in sun_path.
func (d *Driver) newConsole() (*console, error) {
	c := &console{path: d.state.At(fmt.Sprintf("tty%d", d.counter.Add(1)))}
	var err error
	c.l, err = wire.Listen(c.path)
	return c, err
}

func (c *console) close() {
	c.l.Close()
	os.Remove(c.path)
}

// receive waits for the terminal's master until ctx ends. The master is non-blocking.
func (c *console) receive(ctx context.Context) (*os.File, error) {
	defer context.AfterFunc(ctx, func() { c.l.SetDeadline(time.Now()) })()
	conn, err := c.l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("wait for the terminal: %w", err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(wire.RequestWait))
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*wire.MaxFiles))
	_, n, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, fmt.Errorf("wait for the terminal: %w", err)
	}
	files := unixfd.Received(oob[:n])
	if len(files) != 1 {
		unixfd.CloseAll(files)
		return nil, fmt.Errorf("the runtime sent %d terminals instead of one", len(files))
	}
	return unixfd.Polled(files[0])
}

// RunWithConsole executes the command with a console socket and returns the terminal's master. The
// last argument of the command must be the id.
func (d *Driver) RunWithConsole(ctx context.Context, c Command) (*os.File, error) {
	console, err := d.newConsole()
	if err != nil {
		return nil, err
	}
	defer console.close()
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		tty *os.File
		err error
	}
	got := make(chan result, 1)
	go func() {
		tty, err := console.receive(wait)
		got <- result{tty, err}
	}()
	last := len(c.Args) - 1
	c.Args = append(c.Args[:last:last], "--console-socket", console.path, c.Args[last])
	if err := d.RunQuietly(ctx, c); err != nil {
		cancel()
		if r := <-got; r.tty != nil {
			r.tty.Close()
		}
		return nil, err
	}
	defer time.AfterFunc(wire.RequestWait, cancel).Stop()
	r := <-got
	return r.tty, r.err
}
