package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/procfd"
)

// pipeOf returns a pipe: a read end that supports deadlines, and the write end for Attach.
func pipeOf(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// attach returns once output is being copied; the channel receives the result of Attach.
func (h *host) attach(id string, out, errs *os.File) <-chan error {
	h.t.Helper()
	attached, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	h.t.Cleanup(cancel)
	go func() { ended <- h.client.Attach(ctx, nil, id, out, errs, func() { close(attached) }) }()
	select {
	case <-attached:
	case err := <-ended:
		h.t.Fatalf("attach to %s: %v", id, err)
	}
	return ended
}

// send writes text to the task's stdin.
func (h *host) send(id, text string) {
	h.t.Helper()
	s, err := h.client.Streams(context.Background(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s.Stdin, text); err != nil {
		h.t.Fatal(err)
	}
}

// TestAttachedButNotReading: a client that does not read blocks the task for a while and is then
// cut off. The task continues, and its log has every line.
func TestAttachedButNotReading(t *testing.T) {
	t.Setenv("CRIBOX_TEST_TAP_PATIENCE", "1s")
	h := newHost(t)
	st := h.params("a", sh("read go; exec seq 100000"))
	st.Stdin = true
	h.start(st)
	_, w := pipeOf(t)
	ended := h.attach("a", w, nil)
	h.send("a", "go\n")
	if err := <-ended; !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("attach ended: %v", err)
	}
	h.wantExit("a", 0)
	h.eventually("the whole log", func() bool { return len(h.logLines("a")) == 100000 })
	h.wantCounted("a", 100000)
}

// TestAttachedHalfReading: a client that reads only one of its two streams is cut off, and Attach
// returns at once, not when the task exits.
func TestAttachedHalfReading(t *testing.T) {
	t.Setenv("CRIBOX_TEST_TAP_PATIENCE", "1s")
	h := newHost(t)
	st := h.params("a", sh("read go; seq 100000 >&2; echo over; read go"))
	st.Stdin = true
	h.start(st)
	r, out := pipeOf(t)
	_, errs := pipeOf(t)
	ended := h.attach("a", out, errs)
	out.Close()
	h.send("a", "go\n")
	if err := <-ended; !errors.Is(err, errdefs.ErrAborted) {
		t.Errorf("attach ended: %v", err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // the stream that was read has ended too
		t.Error(err)
	}
	h.send("a", "go\n")
	h.wantExit("a", 0)
}

// TestAttachedTwice: two clients of one stream get the same output, each at its own pace. One that
// leaves does not disturb the other.
func TestAttachedTwice(t *testing.T) {
	h := newHost(t)
	st := h.params("a", sh("read go; exec seq 30000"))
	st.Stdin = true
	h.start(st)
	first, w1 := pipeOf(t)
	second, w2 := pipeOf(t)
	third, w3 := pipeOf(t)
	ended := h.attach("a", w1, nil)
	h.attach("a", w2, nil)
	h.attach("a", w3, nil)
	third.Close()
	w1.Close()
	w2.Close()
	h.send("a", "go\n")
	counts := make(chan int, 2)
	for _, r := range []*os.File{first, second} {
		go func() {
			n := 0
			for lines := bufio.NewScanner(r); lines.Scan(); n++ {
			}
			counts <- n
		}()
	}
	for range 2 {
		if n := <-counts; n != 30000 {
			t.Errorf("%d lines of 30000", n)
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("attach ended: %v", err)
	}
	h.wantExit("a", 0)
	if err := h.client.Attach(context.Background(), nil, "a", w3, nil, func() {}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("attach to an ended task: %v", err)
	}
}

// stopLogger stops the logger with SIGSTOP; goOn continues it.
func (h *host) stopLogger() (goOn func()) {
	h.t.Helper()
	f, err := procfd.Open(h.lockPid("logger.lock"))
	must(h.t, err)
	must(h.t, procfd.Signal(f, unix.SIGSTOP))
	pid, err := procfd.PidOf(f)
	must(h.t, err)
	h.eventually("logger stands still", func() bool {
		st, err := procfd.ReadStat(pid)
		return err == nil && st.State == 'T'
	})
	goOn = func() { _ = procfd.Signal(f, unix.SIGCONT); f.Close() }
	h.t.Cleanup(goOn)
	return goOn
}

// TestTerminalEndsWhileTheLoggerStandsStill: the task exits while terminal and FIFO are full. Later
// every line is in the log.
func TestTerminalEndsWhileTheLoggerStandsStill(t *testing.T) {
	for _, kill := range []string{"", "shim.exit.written"} {
		t.Run("kill at "+kill, func(t *testing.T) {
			t.Setenv("CRIBOX_TEST_KILL_AT", kill)
			h := newHost(t)
			h.pod("pod")
			mark := filepath.Join(filepath.Dir(h.state), "n")
			must(t, os.WriteFile(mark, nil, 0o666))
			// It prints until a write blocks because nobody reads; then the counter stops.
			st := h.params("tty", sh("stty -opost; read go; i=1; while :; do echo $i; echo $i >/tmp/n; i=$((i+1)); done"), withTerminal, bind(mark, "/tmp/n"))
			st.Terminal, st.Pod = true, "pod"
			task := h.start(st)
			goOn := h.stopLogger()
			h.typeLine("tty", "go\n")
			last, same := "", 0
			h.eventually("it waits for a reader", func() bool {
				now, _ := os.ReadFile(mark)
				if text := strings.TrimSpace(string(now)); text != "" {
					if text != last {
						last, same = text, 0
					} else {
						same++
					}
				}
				return same > 40
			})
			f, err := procfd.Open(task.Pid)
			must(t, err)
			defer f.Close()
			must(t, procfd.Signal(f, unix.SIGKILL))
			h.eventually("the end is written down", func() bool { return exists(filepath.Join(h.state, "shim/tty/exit")) })
			h.eventually("the shim tells the end", func() bool { return h.task("tty").Exit != nil })
			goOn()
			h.waitExit("tty")
			n, _ := strconv.Atoi(last)
			lines := h.logLines("tty")
			if len(lines) > 0 && strings.HasPrefix(lines[0], "go") { // the terminal's echo
				lines = lines[1:]
			}
			for i, line := range lines {
				if i < n && strings.TrimSpace(line) != strconv.Itoa(i+1) {
					t.Fatalf("line %d is %q", i+1, line)
				}
			}
			if len(lines) < n {
				t.Errorf("%d of %d lines are lost", n-len(lines), n)
			}
		})
	}
}

// bind bind-mounts a file of the host.
func bind(from, to string) specOption {
	return func(spec map[string]any) {
		spec["mounts"] = append(spec["mounts"].([]map[string]any),
			map[string]any{"destination": to, "type": "bind", "source": from, "options": []string{"bind", "rw"}})
	}
}

// typeLine writes text to the task's terminal.
func (h *host) typeLine(id, text string) {
	h.t.Helper()
	s, err := h.client.Streams(h.t.Context(), id)
	must(h.t, err)
	defer s.Close()
	_, err = s.Terminal.WriteString(text)
	must(h.t, err)
}
