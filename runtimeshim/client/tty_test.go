package client

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim/procfd"
)

// stopLogger stops the logger, and returns what lets it go on.
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

// wantLines: the log has 1..n, and of a terminal a carriage return with each.
func (h *host) wantLines(id string, n int) {
	h.t.Helper()
	lines := h.logLines(id)
	for i := range min(len(lines), n) {
		if strings.TrimSpace(lines[i]) != strconv.Itoa(i+1) {
			h.t.Fatalf("line %d of %s is %q", i+1, id, lines[i])
		}
	}
	if len(lines) != n {
		h.t.Errorf("%s has %d lines, want %d", id, len(lines), n)
	}
}

// TestTerminalEndsWhileTheLoggerStandsStill: the task ends when terminal and FIFO are full. Every line is in the log later.
func TestTerminalEndsWhileTheLoggerStandsStill(t *testing.T) {
	for _, kill := range []string{"", "shim.exit.written"} {
		t.Run("kill at "+kill, func(t *testing.T) {
			t.Setenv("CRIBOX_TEST_KILL_AT", kill)
			h := newHost(t)
			h.pod("pod")
			mark := filepath.Join(filepath.Dir(h.state), "n")
			must(t, os.WriteFile(mark, nil, 0o666))
			// It prints until a write would block for want of a reader, which is found out by the counter that stands still.
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

// bind mounts a file of the host.
func bind(from, to string) specOption {
	return func(spec map[string]any) {
		spec["mounts"] = append(spec["mounts"].([]map[string]any),
			map[string]any{"destination": to, "type": "bind", "source": from, "options": []string{"bind", "rw"}})
	}
}

// typeLine is what a client types at a terminal.
func (h *host) typeLine(id, text string) {
	h.t.Helper()
	s, err := h.client.Streams(h.t.Context(), id)
	must(h.t, err)
	defer s.Close()
	_, err = s.Terminal.WriteString(text)
	must(h.t, err)
}
