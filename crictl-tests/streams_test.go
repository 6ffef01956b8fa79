package crictltests

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// protocols are what clients speak to the URL that Exec and Attach answer with: kubelet and crictl SPDY or the newer WebSocket, older web
// consoles the older one, in which a client cannot say that its input is over.
var protocols = map[string]func(address string) (remotecommand.Executor, error){
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

// endingInput are the protocols in which input has an end.
var endingInput = []string{"SPDY", "WebSocket v5"}

// session is a client at a streaming URL.
type session struct {
	stdin          io.Reader
	stdout, stderr buffer
	noStderr       bool
	tty            bool
	sizes          remotecommand.TerminalSizeQueue
}

// buffer may be read while it is written.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *buffer) wait(t testing.TB, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("output %q", want), func() error {
		return unless(strings.Contains(b.String(), want), "it is %q", b.String())
	})
}

func (s *session) stream(ctx context.Context, protocol, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience) // a stream that does not end is cut, and red
	defer cancel()
	through, err := lineFor(ctx, address)
	if err != nil {
		return err
	}
	e, err := protocols[protocol](through)
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Stdin: s.stdin, Stdout: &s.stdout, Tty: s.tty, TerminalSizeQueue: s.sizes}
	if !s.tty && !s.noStderr {
		o.Stderr = &s.stderr
	}
	return e.StreamWithContext(ctx, o)
}

// lineFor returns the URL by way of a line that is cut when ctx ends. A client of the library that is in the middle of sending never leaves
// by itself; a process that is killed does.
func lineFor(ctx context.Context, address string) (string, error) {
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

func (c *container) execURL(s *session, cmd ...string) string {
	c.Helper()
	r, err := c.runtime.Exec(context.Background(), &cri.ExecRequest{ContainerId: c.id, Cmd: cmd, Tty: s.tty,
		Stdin: s.stdin != nil, Stdout: true, Stderr: !s.tty && !s.noStderr})
	c.must(err)
	return r.Url
}

func (c *container) attachURL(s *session) string {
	c.Helper()
	r, err := c.runtime.Attach(context.Background(), &cri.AttachRequest{ContainerId: c.id, Tty: s.tty,
		Stdin: s.stdin != nil, Stdout: true, Stderr: !s.tty && !s.noStderr})
	c.must(err)
	return r.Url
}

// attach begins to stream, and returns how it ends and a way to leave.
func (c *container) attach(protocol string, s *session) (ended <-chan error, leave func()) {
	c.Helper()
	return begin(c, protocol, c.attachURL(s), s)
}

func begin(t testing.TB, protocol, address string, s *session) (ended <-chan error, leave func()) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- s.stream(ctx, protocol, address) }()
	return done, cancel
}

func await(t testing.TB, what string, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatalf("%s has not ended within %s", what, patience)
		return nil
	}
}

func exitCode(err error) int {
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	if err != nil {
		return -1
	}
	return 0
}

func eachProtocol(t *testing.T, run func(t *testing.T, protocol string)) {
	for name := range protocols {
		t.Run(name, func(t *testing.T) { run(t, name) })
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle(), with(func(c *cri.ContainerConfig) { c.WorkingDir = "/tmp" }))
	eachProtocol(t, func(t *testing.T, protocol string) {
		for _, row := range []struct {
			script, stdin, stdout, stderr string
			code                          int
		}{
			{script: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
			{script: "exit 42", code: 42},
			{script: "kill -KILL $$", code: 137},
			{script: "cat; pwd; exit 3", stdin: "typed", stdout: "typed/tmp\n", code: 3},
			{script: "sleep 4401 & echo not waited for", stdout: "not waited for\n"},
			{script: "exec <&-; echo deaf", stdin: strings.Repeat("unheard ", 1<<17), stdout: "deaf\n"},
		} {
			s := &session{}
			if row.stdin != "" && !slices.Contains(endingInput, protocol) {
				continue
			} else if row.stdin != "" {
				s.stdin = strings.NewReader(row.stdin)
			}
			err := s.stream(context.Background(), protocol, c.execURL(s, "sh", "-c", row.script))
			if exitCode(err) != row.code || s.stdout.String() != row.stdout || s.stderr.String() != row.stderr {
				t.Errorf("%s: %v, stdout %q, stderr %q", row.script, err, s.stdout.String(), s.stderr.String())
			}
		}
		missing := &session{}
		err := missing.stream(context.Background(), protocol, c.execURL(missing, "/no/such/program"))
		if exitCode(err) != 127 || !strings.Contains(missing.stderr.String(), "/no/such/program") {
			t.Errorf("a program that is missing: %v, stderr %q", err, missing.stderr.String())
		}
	})
}

// TestExecManyBytes: what a command prints and takes arrives whole, however much it is.
func TestExecManyBytes(t *testing.T) {
	t.Parallel()
	c := newDaemon(t).runPod().run(idle())
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for _, protocol := range endingInput {
		s := &session{stdin: bytes.NewReader(data)}
		if err := s.stream(context.Background(), protocol, c.execURL(s, "cat")); err != nil {
			t.Fatalf("%s: %v", protocol, err)
		}
		if got := s.stdout.String(); sha256.Sum256([]byte(got)) != sha256.Sum256(data) {
			t.Errorf("%s: %d bytes came back of %d, or others", protocol, len(got), len(data))
		}
	}
}

// window is a terminal of one size after the other.
type window chan remotecommand.TerminalSize

func (w window) Next() *remotecommand.TerminalSize {
	s, more := <-w
	if !more {
		return nil
	}
	return &s
}

func TestExecTerminal(t *testing.T) {
	t.Parallel()
	c := newDaemon(t).runPod().run(idle())
	eachProtocol(t, func(t *testing.T, protocol string) {
		sizes := make(window, 1)
		defer close(sizes)
		typed, keyboard := io.Pipe()
		defer keyboard.Close()
		s := &session{tty: true, stdin: typed, sizes: sizes}
		sizes <- remotecommand.TerminalSize{Width: 91, Height: 47}
		ended, _ := begin(t, protocol, c.execURL(s, "sh", "-c", "tty; until stty size | grep '47 91'; do usleep 10000; done; read a; echo got $a; test -t 0 && exit 5"), s)
		s.stdout.wait(t, "47 91\r\n")
		fmt.Fprintln(keyboard, "keys")
		if err := await(t, "the command", ended); exitCode(err) != 5 {
			t.Errorf("%v\n%q", err, s.stdout.String())
		}
		if out := s.stdout.String(); !strings.Contains(out, "/dev/pts/") || !strings.HasSuffix(out, "got keys\r\n") {
			t.Errorf("%q", out)
		}
	})
}

// TestExecClientLeaves: a command whose client is gone ends, also one that does not read what its client has sent.
func TestExecClientLeaves(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(idle())
	before := d.ledger()
	eachProtocol(t, func(t *testing.T, protocol string) {
		for name, s := range map[string]*session{"quiet": {}, "typed ahead": {stdin: ahead()}, "terminal": {tty: true, stdin: ahead()}} {
			ended, leave := begin(t, protocol, c.execURL(s, "sh", "-c", "trap '' HUP TERM; echo begun; exec sleep 4402"), s)
			s.stdout.wait(t, "begun")
			leave()
			if err := await(t, name, ended); err == nil {
				t.Errorf("%s: a client that left was told that all is well", name)
			}
			d.wantNoProcess(c, "4402")
		}
	})
	d.wantFlat(before)
}

// ahead is more input than a pipe holds, less than a connection does, and no end of it.
func ahead() io.Reader {
	open, _ := io.Pipe()
	return io.MultiReader(bytes.NewReader(make([]byte, 160<<10)), open)
}

// TestSEC39StreamURL: it cannot be guessed, works once, and only on this machine.
func TestSEC39StreamURL(t *testing.T) {
	t.Parallel()
	c := newDaemon(t).runPod().run(idle())
	s := &session{}
	first, second := c.execURL(s, "true"), c.execURL(s, "true")
	u, err := url.Parse(first)
	if err != nil {
		t.Fatal(err)
	}
	if ip := net.ParseIP(u.Hostname()); !ip.IsLoopback() {
		t.Errorf("%s is not on the loopback", first)
	}
	token := u.Path[strings.LastIndex(u.Path, "/")+1:]
	if len(token) < 22 || strings.Contains(second, token) { // 128 bits
		t.Errorf("tokens of %s and %s", first, second)
	}
	if err := s.stream(context.Background(), "SPDY", first); err != nil {
		t.Fatal(err)
	}
	for what, address := range map[string]string{
		"used": first, "cut": second[:len(second)-1], "made up": u.Scheme + "://" + u.Host + "/exec/x", "none": u.Scheme + "://" + u.Host + "/",
	} {
		r, err := http.Post(address, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusNotFound {
			t.Errorf("a URL that is %s: %s", what, r.Status)
		}
	}
}

func TestAttach(t *testing.T) {
	t.Parallel()
	c := newDaemon(t).runPod().run(shell("i=0; while :; do i=$((i+1)); echo out $i; echo err $i >&2; usleep 20000; done"))
	c.waitLog("out 2")
	eachProtocol(t, func(t *testing.T, protocol string) {
		s := &session{}
		ended, leave := c.attach(protocol, s)
		s.stdout.wait(t, "\nout ")
		s.stderr.wait(t, "\nerr ")
		if strings.Contains(s.stdout.String(), "out 1\n") || strings.Contains(s.stdout.String(), "err") {
			t.Errorf("stdout begins before the client, or is mixed: %q", s.stdout.String())
		}
		leave()
		await(t, "the client", ended)
	})
	// A logger that dies, or is ended, takes nobody's client with it.
	s := &session{}
	ended, _ := c.attach("SPDY", s)
	s.stdout.wait(t, "\nout ")
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		c.endRole("logger", signal)
		seen := len(s.stdout.String())
		eventually(t, fmt.Sprintf("output of the next logger after %s", signal), func() error {
			return unless(len(s.stdout.String()) > seen, "nothing new")
		})
	}
	c.stop(0)
	if err := await(t, "the client", ended); err != nil {
		t.Errorf("the container ended: %v", err)
	}
}

// TestAttachLastWords: a client has everything that the container printed before it ended, and the log has it too.
func TestAttachLastWords(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	for name, option := range map[string]containerOption{
		"with a log": func(*cri.ContainerConfig) {}, "without": func(c *cri.ContainerConfig) { c.LogPath = "" },
	} {
		c := d.runPod().run(shell("read go; seq 1 50000; exit 3"), option, with(func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }))
		s := &session{stdin: strings.NewReader("go\n")}
		ended, _ := c.attach("SPDY", s)
		if err := await(t, "the client", ended); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if out := s.stdout.String(); !strings.HasPrefix(out, "1\n2\n") || !strings.HasSuffix(out, "\n50000\n") || strings.Count(out, "\n") != 50000 {
			t.Errorf("%s: %d lines", name, strings.Count(out, "\n"))
		}
		if st := c.waitExit(); st.ExitCode != 3 {
			t.Errorf("%s: exit code %d", name, st.ExitCode)
		}
	}
}

// TestAttachStdin: with stdin_once the container's input ends with its first client's; without, the next client goes on.
func TestAttachStdin(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	p := d.runPod()
	for _, protocol := range endingInput {
		once := p.run(shell("cat; echo end of stdin"), with(func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }))
		s := &session{stdin: strings.NewReader("one\n")}
		ended, _ := once.attach(protocol, s)
		if err := await(t, "the client", ended); err != nil || s.stdout.String() != "one\nend of stdin\n" {
			t.Errorf("%s: %v, %q", protocol, err, s.stdout.String())
		}
	}
	open := p.run(shell("cat; echo end of stdin"), with(func(c *cri.ContainerConfig) { c.Stdin = true }))
	for i, word := range []string{"first\n", "second\n", "third\n"} {
		typed, keyboard := io.Pipe()
		s := &session{stdin: typed}
		ended, _ := open.attach(endingInput[i%len(endingInput)], s)
		fmt.Fprint(keyboard, word)
		s.stdout.wait(t, word)
		keyboard.Close()
		if err := await(t, "the client", ended); err != nil {
			t.Errorf("%s: %v", word, err)
		}
		if strings.Contains(s.stdout.String(), "end of stdin") {
			t.Errorf("stdin ended with a client: %q", s.stdout.String())
		}
	}
	if st := open.status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", st.State)
	}
}

// TestAttachLeaveStdinOpen: `kubectl run --attach --stdin --leave-stdin-open` ends when the client's input has, with all that was printed
// until then; a session at a terminal goes on.
func TestAttachLeaveStdinOpen(t *testing.T) {
	t.Parallel()
	p := newDaemon(t).runPod()
	for name, option := range map[string]containerOption{
		"with a log": func(*cri.ContainerConfig) {}, "without": func(c *cri.ContainerConfig) { c.LogPath = "" },
	} {
		c := p.run(shell("read go; seq 1 20000; echo printed >/printed; read more; echo never"), option, with(func(c *cri.ContainerConfig) { c.Stdin = true }))
		typed, keyboard := io.Pipe()
		s := &session{stdin: typed}
		ended, _ := c.attach("SPDY", s)
		fmt.Fprintln(keyboard, "go")
		c.waitFile("/printed")
		keyboard.Close()
		if err := await(t, "the client", ended); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := strings.Count(s.stdout.String(), "\n"); n != 20000 {
			t.Errorf("%s: %d lines of 20000", name, n)
		}
		if st := c.status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s: the container is %s", name, st.State)
		}
	}
	tty := p.run(shell("cat; echo over"), with(func(c *cri.ContainerConfig) { c.Tty, c.Stdin = true, true }))
	s := &session{tty: true, stdin: strings.NewReader("word\n")}
	ended, leave := tty.attach("SPDY", s)
	s.stdout.wait(t, "word")
	tty.stop(0)
	if err := await(t, "the client", ended); err != nil {
		t.Errorf("the session at a terminal: %v", err)
	}
	leave()
}

func TestAttachTerminal(t *testing.T) {
	t.Parallel()
	c := newDaemon(t).runPod().run(shell("while read a; do test \"$a\" = size && stty size; echo got $a; done"),
		with(func(c *cri.ContainerConfig) { c.Tty, c.Stdin = true, true }))
	eachProtocol(t, func(t *testing.T, protocol string) {
		sizes := make(window, 1)
		defer close(sizes)
		typed, keyboard := io.Pipe()
		defer keyboard.Close()
		s := &session{tty: true, stdin: typed, sizes: sizes}
		ended, leave := c.attach(protocol, s)
		sizes <- remotecommand.TerminalSize{Width: 93, Height: 41}
		eventually(t, "the new size", func() error {
			fmt.Fprintln(keyboard, "size")
			return unless(strings.Contains(s.stdout.String(), "41 93\r\n"), "%q", s.stdout.String())
		})
		leave()
		await(t, "the client", ended)
	})
}

// TestAttachThenKill: a client that is attached when the daemon dies does not harm the container, whose log has every line.
func TestAttachThenKill(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	c := d.runPod().run(d.tool("print", "-lines", "4000", "-every", "1ms"))
	s := &session{}
	ended, _ := c.attach("SPDY", s)
	eventually(t, "output", func() error { return unless(s.stdout.String() != "", "none") })
	d.restart()
	await(t, "the client", ended)
	c.waitExit()
	c.wantNumbers(c.finalLog(), "stdout", 4000)
}
