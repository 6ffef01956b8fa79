package streams

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/crictl-tests/harness"
)

// endingInput are the protocols in which input has an end.
var endingInput = []string{"SPDY", "WebSocket v5"}

func eachProtocol(t *testing.T, run func(t *testing.T, protocol string)) {
	for name := range harness.Protocols {
		t.Run(name, func(t *testing.T) { run(t, name) })
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle(), harness.With(func(c *cri.ContainerConfig) { c.WorkingDir = "/tmp" }))
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
			s := &harness.Session{}
			if row.stdin != "" && !slices.Contains(endingInput, protocol) {
				continue
			} else if row.stdin != "" {
				s.Stdin = strings.NewReader(row.stdin)
			}
			err := s.Stream(context.Background(), protocol, c.ExecURL(s, "sh", "-c", row.script))
			if harness.ExitCode(err) != row.code || s.Stdout.String() != row.stdout || s.Stderr.String() != row.stderr {
				t.Errorf("%s: %v, stdout %q, stderr %q", row.script, err, s.Stdout.String(), s.Stderr.String())
			}
		}
		missing := &harness.Session{}
		err := missing.Stream(context.Background(), protocol, c.ExecURL(missing, "/no/such/program"))
		if harness.ExitCode(err) != 127 || !strings.Contains(missing.Stderr.String(), "/no/such/program") {
			t.Errorf("a program that is missing: %v, stderr %q", err, missing.Stderr.String())
		}
	})
}

// TestExecNatively: a command without a terminal that the runtime does not execute has its input, both outputs and its exit code.
func TestExecNatively(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle()).UntilNative()
	before := d.ByRuntime()
	for _, protocol := range endingInput {
		s := &harness.Session{Stdin: strings.NewReader("typed")}
		err := s.Stream(t.Context(), protocol, c.ExecURL(s, "sh", "-c", "cat; echo err >&2; exit 42"))
		if harness.ExitCode(err) != 42 || s.Stdout.String() != "typed" || s.Stderr.String() != "err\n" {
			t.Errorf("%s: %v, stdout %q, stderr %q", protocol, err, s.Stdout.String(), s.Stderr.String())
		}
	}
	if after := d.ByRuntime(); after != before {
		t.Errorf("the runtime has executed %d commands", after-before)
	}
}

// TestExecManyBytes: what a command prints and takes arrives whole, however much it is.
func TestExecManyBytes(t *testing.T) {
	t.Parallel()
	c := harness.NewDaemon(t).RunPod().Run(harness.Idle())
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for _, protocol := range endingInput {
		s := &harness.Session{Stdin: bytes.NewReader(data)}
		if err := s.Stream(context.Background(), protocol, c.ExecURL(s, "cat")); err != nil {
			t.Fatalf("%s: %v", protocol, err)
		}
		if got := s.Stdout.String(); sha256.Sum256([]byte(got)) != sha256.Sum256(data) {
			t.Errorf("%s: %d bytes came back of %d, or others", protocol, len(got), len(data))
		}
	}
}

func TestExecTerminal(t *testing.T) {
	t.Parallel()
	c := harness.NewDaemon(t).RunPod().Run(harness.Idle())
	eachProtocol(t, func(t *testing.T, protocol string) {
		sizes := make(harness.Window, 1)
		defer close(sizes)
		typed, keyboard := io.Pipe()
		defer keyboard.Close()
		s := &harness.Session{Tty: true, Stdin: typed, Sizes: sizes}
		sizes <- remotecommand.TerminalSize{Width: 91, Height: 47}
		ended, _ := harness.BeginStream(t, protocol, c.ExecURL(s, "sh", "-c", "tty; until stty size | grep '47 91'; do usleep 10000; done; read a; echo got $a; test -t 0 && exit 5"), s)
		s.Stdout.Wait(t, "47 91\r\n")
		fmt.Fprintln(keyboard, "keys")
		if err := harness.AwaitStream(t, "the command", ended); harness.ExitCode(err) != 5 {
			t.Errorf("%v\n%q", err, s.Stdout.String())
		}
		if out := s.Stdout.String(); !strings.Contains(out, "/dev/pts/") || !strings.HasSuffix(out, "got keys\r\n") {
			t.Errorf("%q", out)
		}
	})
}

// TestExecClientLeaves: a command whose client is gone ends, also one that does not read what its client has sent.
func TestExecClientLeaves(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(harness.Idle())
	before := d.Ledger()
	eachProtocol(t, func(t *testing.T, protocol string) {
		for name, s := range map[string]*harness.Session{"quiet": {}, "typed ahead": {Stdin: harness.UnendingInput()}, "terminal": {Tty: true, Stdin: harness.UnendingInput()}} {
			ended, leave := harness.BeginStream(t, protocol, c.ExecURL(s, "sh", "-c", "trap '' HUP TERM; echo begun; exec sleep 4402"), s)
			s.Stdout.Wait(t, "begun")
			leave()
			if err := harness.AwaitStream(t, name, ended); err == nil {
				t.Errorf("%s: a client that left was told that all is well", name)
			}
			d.WantNoProcess(c, "4402")
		}
	})
	d.WantFlat(before)
}

// TestSEC39StreamURL: it cannot be guessed, works once, and only on this machine.
func TestSEC39StreamURL(t *testing.T) {
	t.Parallel()
	c := harness.NewDaemon(t).RunPod().Run(harness.Idle())
	s := &harness.Session{}
	first, second := c.ExecURL(s, "true"), c.ExecURL(s, "true")
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
	if err := s.Stream(context.Background(), "SPDY", first); err != nil {
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
	c := harness.NewDaemon(t).RunPod().Run(harness.Shell("i=0; while :; do i=$((i+1)); echo out $i; echo err $i >&2; usleep 20000; done"))
	c.WaitLog("out 2")
	eachProtocol(t, func(t *testing.T, protocol string) {
		s := &harness.Session{}
		ended, leave := c.Attach(protocol, s)
		s.Stdout.Wait(t, "\nout ")
		s.Stderr.Wait(t, "\nerr ")
		if strings.Contains(s.Stdout.String(), "out 1\n") || strings.Contains(s.Stdout.String(), "err") {
			t.Errorf("stdout begins before the client, or is mixed: %q", s.Stdout.String())
		}
		leave()
		harness.AwaitStream(t, "the client", ended)
	})
	// A logger that dies, or is ended, takes nobody's client with it.
	s := &harness.Session{}
	ended, _ := c.Attach("SPDY", s)
	s.Stdout.Wait(t, "\nout ")
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		c.EndRole("logger", signal)
		seen := len(s.Stdout.String())
		harness.Eventually(t, fmt.Sprintf("output of the next logger after %s", signal), func() error {
			return harness.Unless(len(s.Stdout.String()) > seen, "nothing new")
		})
	}
	c.Stop(0)
	if err := harness.AwaitStream(t, "the client", ended); err != nil {
		t.Errorf("the container ended: %v", err)
	}
}

// TestAttachLastWords: a client has everything that the container printed before it ended, and the log has it too.
func TestAttachLastWords(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	for name, option := range map[string]harness.ContainerOption{
		"with a log": func(*cri.ContainerConfig) {}, "without": func(c *cri.ContainerConfig) { c.LogPath = "" },
	} {
		c := d.RunPod().Run(harness.Shell("read go; seq 1 50000; exit 3"), option, harness.With(func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }))
		s := &harness.Session{Stdin: strings.NewReader("go\n")}
		ended, _ := c.Attach("SPDY", s)
		if err := harness.AwaitStream(t, "the client", ended); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if out := s.Stdout.String(); !strings.HasPrefix(out, "1\n2\n") || !strings.HasSuffix(out, "\n50000\n") || strings.Count(out, "\n") != 50000 {
			t.Errorf("%s: %d lines", name, strings.Count(out, "\n"))
		}
		if st := c.WaitExit(); st.ExitCode != 3 {
			t.Errorf("%s: exit code %d", name, st.ExitCode)
		}
	}
}

// TestAttachStdin: with stdin_once the container's input ends with its first client's; without, the next client goes on.
func TestAttachStdin(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	p := d.RunPod()
	for _, protocol := range endingInput {
		once := p.Run(harness.Shell("cat; echo end of stdin"), harness.With(func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }))
		s := &harness.Session{Stdin: strings.NewReader("one\n")}
		ended, _ := once.Attach(protocol, s)
		if err := harness.AwaitStream(t, "the client", ended); err != nil || s.Stdout.String() != "one\nend of stdin\n" {
			t.Errorf("%s: %v, %q", protocol, err, s.Stdout.String())
		}
	}
	open := p.Run(harness.Shell("cat; echo end of stdin"), harness.With(func(c *cri.ContainerConfig) { c.Stdin = true }))
	for i, word := range []string{"first\n", "second\n", "third\n"} {
		typed, keyboard := io.Pipe()
		s := &harness.Session{Stdin: typed}
		ended, _ := open.Attach(endingInput[i%len(endingInput)], s)
		fmt.Fprint(keyboard, word)
		s.Stdout.Wait(t, word)
		keyboard.Close()
		if err := harness.AwaitStream(t, "the client", ended); err != nil {
			t.Errorf("%s: %v", word, err)
		}
		if strings.Contains(s.Stdout.String(), "end of stdin") {
			t.Errorf("stdin ended with a client: %q", s.Stdout.String())
		}
	}
	if st := open.Status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", st.State)
	}
}

// TestAttachLeaveStdinOpen: `kubectl run --attach --stdin --leave-stdin-open` ends when the client's input has, with all that was printed
// until then; a session at a terminal goes on.
func TestAttachLeaveStdinOpen(t *testing.T) {
	t.Parallel()
	p := harness.NewDaemon(t).RunPod()
	for name, option := range map[string]harness.ContainerOption{
		"with a log": func(*cri.ContainerConfig) {}, "without": func(c *cri.ContainerConfig) { c.LogPath = "" },
	} {
		c := p.Run(harness.Shell("read go; seq 1 20000; echo printed >/printed; read more; echo never"), option, harness.With(func(c *cri.ContainerConfig) { c.Stdin = true }))
		typed, keyboard := io.Pipe()
		s := &harness.Session{Stdin: typed}
		ended, _ := c.Attach("SPDY", s)
		fmt.Fprintln(keyboard, "go")
		waitFile(c, "/printed")
		keyboard.Close()
		if err := harness.AwaitStream(t, "the client", ended); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := strings.Count(s.Stdout.String(), "\n"); n != 20000 {
			t.Errorf("%s: %d lines of 20000", name, n)
		}
		if st := c.Status(); st.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("%s: the container is %s", name, st.State)
		}
	}
	tty := p.Run(harness.Shell("cat; echo over"), harness.With(func(c *cri.ContainerConfig) { c.Tty, c.Stdin = true, true }))
	s := &harness.Session{Tty: true, Stdin: strings.NewReader("word\n")}
	ended, leave := tty.Attach("SPDY", s)
	s.Stdout.Wait(t, "word")
	tty.Stop(0)
	if err := harness.AwaitStream(t, "the client", ended); err != nil {
		t.Errorf("the session at a terminal: %v", err)
	}
	leave()
}

func TestAttachTerminal(t *testing.T) {
	t.Parallel()
	c := harness.NewDaemon(t).RunPod().Run(harness.Shell("while read a; do test \"$a\" = size && stty size; echo got $a; done"),
		harness.With(func(c *cri.ContainerConfig) { c.Tty, c.Stdin = true, true }))
	eachProtocol(t, func(t *testing.T, protocol string) {
		sizes := make(harness.Window, 1)
		defer close(sizes)
		typed, keyboard := io.Pipe()
		defer keyboard.Close()
		s := &harness.Session{Tty: true, Stdin: typed, Sizes: sizes}
		ended, leave := c.Attach(protocol, s)
		sizes <- remotecommand.TerminalSize{Width: 93, Height: 41}
		harness.Eventually(t, "the new size", func() error {
			fmt.Fprintln(keyboard, "size")
			return harness.Unless(strings.Contains(s.Stdout.String(), "41 93\r\n"), "%q", s.Stdout.String())
		})
		leave()
		harness.AwaitStream(t, "the client", ended)
	})
}

// TestAttachThenKill: a client that is attached when the daemon dies does not harm the container, whose log has every line.
func TestAttachThenKill(t *testing.T) {
	t.Parallel()
	d := harness.NewDaemon(t)
	c := d.RunPod().Run(d.Tool("print", "-lines", "4000", "-every", "1ms"))
	s := &harness.Session{}
	ended, _ := c.Attach("SPDY", s)
	harness.Eventually(t, "output", func() error { return harness.Unless(s.Stdout.String() != "", "none") })
	d.Restart()
	harness.AwaitStream(t, "the client", ended)
	c.WaitExit()
	c.WantNumbers(c.FinalLog(), "stdout", 4000)
}
