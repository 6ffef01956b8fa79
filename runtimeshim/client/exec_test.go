package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

func process(args ...string) map[string]any {
	return map[string]any{"args": args, "cwd": "/", "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0}}
}

func asJSON(t *testing.T, v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// exec runs args in a task and returns what they print.
func (h *host) exec(ctx context.Context, id string, args ...string) (code int32, stdout, stderr string, err error) {
	h.t.Helper()
	var out [2]bytes.Buffer
	var ends [2]*os.File
	var copying sync.WaitGroup
	for i := range ends {
		r, w, perr := os.Pipe()
		if perr != nil {
			h.t.Fatal(perr)
		}
		ends[i] = w
		copying.Go(func() {
			defer r.Close()
			io.Copy(&out[i], r)
		})
	}
	code, err = h.client.Exec(ctx, runtimeshim.Exec{ID: id, Runtime: h.runc, Process: asJSON(h.t, process(args...)), Stdout: ends[0], Stderr: ends[1]})
	unixfd.CloseAll(ends[:])
	copying.Wait()
	return code, out[0].String(), out[1].String(), err
}

func (h *host) idle(id string) runtimeshim.Task {
	return h.start(h.params(id, []string{"/bin/sleep", "1000000"}))
}

func TestExec(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	ctx := context.Background()
	code, out, errOut, err := h.exec(ctx, "c", sh("echo out; echo err >&2; exit 42")...)
	if code != 42 || out != "out\n" || errOut != "err\n" || err != nil {
		t.Errorf("got %d %q %q %v", code, out, errOut, err)
	}
	if code, _, _, err := h.exec(ctx, "c", sh("kill -9 $$")...); code != 137 || err != nil {
		t.Errorf("killed: %d %v", code, err)
	}
	if _, _, _, err := h.exec(ctx, "c", "/bin/nope"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "nope") {
		t.Errorf("missing program: %v", err)
	}
	if _, _, _, err := h.exec(ctx, "nobody", "/bin/true"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no task: %v", err)
	}
	if _, _, _, err := h.exec(ctx, "c", "/etc"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("a directory as program: %v", err)
	}
	if code, _, _, err := h.exec(ctx, "c", "/bin/true"); code != 0 || err != nil {
		t.Errorf("true: %d %v", code, err)
	}
	h.wantNoExecFiles("c")
}

func (h *host) wantNoExecFiles(id string) {
	h.t.Helper()
	h.eventually("files of execs are gone", func() bool {
		left, _ := filepath.Glob(filepath.Join(h.state, "shim", id, "exec-*"))
		return len(left) == 0
	})
}

func TestExecStdin(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	in, feed, _ := os.Pipe()
	r, out, _ := os.Pipe()
	go func() {
		io.WriteString(feed, "hello")
		feed.Close()
	}()
	go func() {
		_, err := h.client.Exec(context.Background(), runtimeshim.Exec{ID: "c", Runtime: h.runc, Process: asJSON(t, process("/bin/cat")), Stdin: in, Stdout: out})
		if err != nil {
			t.Error(err)
		}
		in.Close()
		out.Close()
	}()
	if got, err := io.ReadAll(r); string(got) != "hello" || err != nil {
		t.Errorf("got %q %v", got, err)
	}
}

// TestExecLeavesBackgroundChild: a background child that keeps the output open does not delay Exec.
func TestExecLeavesBackgroundChild(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	r, w, _ := os.Pipe()
	defer r.Close()
	code, err := h.client.Exec(context.Background(), runtimeshim.Exec{ID: "c", Runtime: h.runc, Process: asJSON(t, process(sh("sleep 1000000 & exit 5")...)), Stdout: w})
	w.Close()
	if code != 5 || err != nil {
		t.Errorf("got %d %v", code, err)
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	ctx, cancel := context.WithCancel(context.Background())
	r, w, _ := os.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := h.client.Exec(ctx, runtimeshim.Exec{ID: "c", Runtime: h.runc,
			Process: asJSON(t, process(sh("sleep 1000000 & echo up; sleep 1000000")...)), Stdout: w})
		w.Close()
		done <- err
	}()
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q %v", line, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled exec: %v", err)
	}
	// ReadAll returns when the process group is dead.
	if rest, err := io.ReadAll(r); len(rest) != 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	h.wantNoExecFiles("c")
}

// TestExecIsGoneWithItsCaller: a command that was cancelled is not found by whoever looks afterwards.
func TestExecIsGoneWithItsCaller(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := h.client.Exec(ctx, runtimeshim.Exec{ID: "c", Process: asJSON(t, process("/bin/sleep", "1000000")), OnStarted: cancel})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("exec: %v", err)
		}
		if n := len(h.procs("c")); n != 1 {
			t.Fatalf("%d processes in the task, not 1", n)
		}
	}
}

func TestManyExecs(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			code, out, _, err := h.exec(context.Background(), "c", sh("echo "+strconv.Itoa(i)+"; exit "+strconv.Itoa(i))...)
			if code != int32(i) || out != strconv.Itoa(i)+"\n" || err != nil {
				t.Errorf("exec %d: %d %q %v", i, code, out, err)
			}
		})
	}
	all.Wait()
}

func TestExecOnTerminal(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	p := process(sh("stty size; read x; echo got $x; exit 4")...)
	p["terminal"], p["consoleSize"] = true, map[string]any{"height": 12, "width": 34}
	var text []byte
	reading := make(chan struct{})
	code, err := h.client.Exec(context.Background(), runtimeshim.Exec{ID: "c", Runtime: h.runc, Process: asJSON(t, p), OnTerminal: func(master *os.File) {
		io.WriteString(master, "word\n")
		go func() {
			defer close(reading)
			defer master.Close()
			text, _ = io.ReadAll(master)
		}()
	}})
	<-reading
	if code != 4 || err != nil || !strings.Contains(string(text), "12 34") || !strings.Contains(string(text), "got word") {
		t.Errorf("%d %v %q", code, err, text)
	}
}

// TestExecDiesWithTheShim: the process of an exec is killed when its shim dies.
func TestExecDiesWithTheShim(t *testing.T) {
	h := newHost(t)
	h.idle("c")
	r, w, _ := os.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := h.client.Exec(context.Background(), runtimeshim.Exec{ID: "c", Runtime: h.runc, Process: asJSON(t, process(sh("echo up; sleep 1000000")...)), Stdout: w})
		w.Close()
		done <- err
	}()
	bufio.NewReader(r).ReadString('\n')
	h.kill9("shim.lock")
	if err := <-done; !errdefs.IsUnavailable(err) {
		t.Errorf("exec over the death of the shim: %v", err)
	}
	io.ReadAll(r)
	h.wantNoExecFiles("c")
	if h.task("c").State != runtimeshim.StateRunning {
		t.Errorf("task is %+v", h.task("c"))
	}
}

func TestTerminalTask(t *testing.T) {
	h := newHost(t)
	st := h.params("tty", sh("stty size; echo ready; read x; echo got $x; seq 1 3000; exit 6"), withTerminal)
	st.Terminal, st.Stdin = true, true
	h.start(st)
	s, err := h.client.Streams(context.Background(), "tty")
	if err != nil || s.Terminal == nil || s.Stdin != nil {
		t.Fatalf("streams: %+v %v", s, err)
	}
	defer s.Close()
	h.eventually("ready", func() bool { return strings.Contains(strings.Join(h.logLines("tty"), " "), "ready") })
	if err := unix.IoctlSetWinsize(unixfd.Of(s.Terminal), unix.TIOCSWINSZ, &unix.Winsize{Row: 5, Col: 6}); err != nil {
		t.Error(err)
	}
	io.WriteString(s.Terminal, "word\n")
	h.wantExit("tty", 6)
	text := strings.ReplaceAll(strings.Join(h.logLines("tty"), "\n"), "\r", "")
	if !strings.Contains(text, "got word") || !strings.HasSuffix(text, "\n2999\n3000") {
		t.Errorf("log ends with %q", text[max(0, len(text)-60):])
	}
}

func TestStdin(t *testing.T) {
	h := newHost(t)
	for _, once := range []bool{false, true} {
		id := "cat" + strconv.FormatBool(once)
		st := h.params(id, sh("cat; exit 9"))
		st.Stdin, st.StdinOnce = true, once
		h.start(st)
		s, err := h.client.Streams(context.Background(), id)
		if err != nil || s.Stdin == nil || s.Terminal != nil {
			t.Fatalf("streams: %+v %v", s, err)
		}
		io.WriteString(s.Stdin, "line\n")
		s.Close()
		if once {
			h.wantExit(id, 9)
			continue
		}
		h.eventually("line is printed", func() bool { return len(h.logLines(id)) == 1 })
		if got := h.task(id); got.State != runtimeshim.StateRunning {
			t.Errorf("task is %+v, its stdin must be open", got)
		}
	}
}
