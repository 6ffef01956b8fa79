package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// WaitListening waits until somebody listens at the port.
func (p *Pod) WaitListening(port int) {
	p.Helper()
	Eventually(p, "a listener at port "+strconv.Itoa(port), func() error { return Unless(p.HasSocket(port, "0A"), "nobody listens") })
}

// HasSocket looks for a socket of the pod's network with this local port and state, as the kernel
// numbers states.
func (p *Pod) HasSocket(port int, state string) bool {
	p.Helper()
	local := fmt.Sprintf(":%04X", port)
	for _, file := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.ProcessesOf(p.ID)[0].Pid, file))
		p.Must(err)
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], local) && f[3] == state {
				return true
			}
		}
	}
	return false
}

// Protocols are what clients speak to the URL that Exec and Attach answer with: kubelet and crictl
// SPDY or the newer WebSocket, older web consoles the older one, in which a client cannot say that
// its input is over.
var Protocols = map[string]func(address string) (remotecommand.Executor, error){
	"SPDY": func(address string) (remotecommand.Executor, error) {
		u, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	},
	"WebSocket": func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", address, "v4.channel.k8s.io")
	},
	"WebSocket v5": func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", address)
	},
}

// Session is a client at a streaming URL.
type Session struct {
	Stdin          io.Reader
	Stdout, Stderr Buffer
	noStderr       bool
	Tty            bool
	Sizes          remotecommand.TerminalSizeQueue
}

// Buffer may be read while it is written.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write adds to what was printed.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String is what was printed so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Wait waits until the text has been printed.
func (b *Buffer) Wait(t testing.TB, want string) {
	t.Helper()
	Eventually(t, fmt.Sprintf("output %q", want), func() error {
		return Unless(strings.Contains(b.String(), want), "it is %q", b.String())
	})
}

// Stream connects the session with a stream's URL until either side ends.
func (s *Session) Stream(ctx context.Context, protocol, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*Patience) // a stream that does not end is cut, and red
	defer cancel()
	through, err := LineFor(ctx, address)
	if err != nil {
		return err
	}
	e, err := Protocols[protocol](through)
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Stdin: s.Stdin, Stdout: &s.Stdout, Tty: s.Tty, TerminalSizeQueue: s.Sizes}
	if !s.Tty && !s.noStderr {
		o.Stderr = &s.Stderr
	}
	return e.StreamWithContext(ctx, o)
}

// LineFor returns the URL by way of a line that is cut when ctx ends. A client of the library that
// is in the middle of sending never leaves by itself; a process that is killed does.
func LineFor(ctx context.Context, address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	target := u.Host
	u.Host = l.Addr().String()
	go func() {
		defer l.Close()
		near, err := l.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		far, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer far.Close()
		defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
		go func() {
			_, _ = io.Copy(far, near)
			far.Close()
		}()
		_, _ = io.Copy(near, far)
	}()
	return u.String(), nil
}

// ExecURL asks for the URL of an exec.
func (c *Container) ExecURL(s *Session, cmd ...string) string {
	c.Helper()
	r, err := c.Runtime.Exec(context.Background(), &cri.ExecRequest{ContainerId: c.ID, Cmd: cmd, Tty: s.Tty,
		Stdin: s.Stdin != nil, Stdout: true, Stderr: !s.Tty && !s.noStderr})
	c.Must(err)
	return r.Url
}

func (c *Container) attachURL(s *Session) string {
	c.Helper()
	r, err := c.Runtime.Attach(context.Background(), &cri.AttachRequest{ContainerId: c.ID, Tty: s.Tty,
		Stdin: s.Stdin != nil, Stdout: true, Stderr: !s.Tty && !s.noStderr})
	c.Must(err)
	return r.Url
}

// Attach begins to stream, and returns how it ends and a way to leave.
func (c *Container) Attach(protocol string, s *Session) (ended <-chan error, leave func()) {
	c.Helper()
	return BeginStream(c, protocol, c.attachURL(s), s)
}

// BeginStream starts a session in the background; leave ends it from the side of the client.
func BeginStream(t testing.TB, protocol, address string, s *Session) (ended <-chan error, leave func()) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- s.Stream(ctx, protocol, address) }()
	return done, cancel
}

// AwaitStream waits for the end of a session and returns its error.
func AwaitStream(t testing.TB, what string, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(Patience):
		t.Fatalf("%s has not ended within %s", what, Patience)
		return nil
	}
}

// ExitCode is the exit code that the end of an exec tells.
func ExitCode(err error) int {
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	if err != nil {
		return -1
	}
	return 0
}

// Window is a terminal of one size after the other.
type Window chan remotecommand.TerminalSize

// Next returns the next size, and nil when there is none.
func (w Window) Next() *remotecommand.TerminalSize {
	s, more := <-w
	if !more {
		return nil
	}
	return &s
}

// UnendingInput is more input than a pipe holds, less than a connection does, and no end of it.
func UnendingInput() io.Reader {
	open, _ := io.Pipe()
	return io.MultiReader(bytes.NewReader(make([]byte, 160<<10)), open)
}
