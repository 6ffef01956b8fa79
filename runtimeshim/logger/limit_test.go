package logger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cribox/cribox/runtimeshim"
	"github.com/cribox/cribox/runtimeshim/crilog"
	"github.com/cribox/cribox/runtimeshim/statedir"
	"github.com/cribox/cribox/runtimeshim/unixfd"
)

// limited sets a size limit for the log of the node's task, before the logger opens it.
func (n *node) limited(limit int64) {
	n.t.Helper()
	if err := statedir.WriteJSON(n.state.Task("c").Log(), statedir.LogRecord{Format: statedir.Format, Path: n.log, Limit: limit}); err != nil {
		n.t.Fatal(err)
	}
}

var noticeLine = regexp.MustCompile(`(?m)^\S+ stderr F \[(\d+) bytes of output are left out here: [^\n]*\n`)

// waitRead returns when everything printed on stdout is read, and is in the log or left out.
func (n *node) waitRead() {
	n.t.Helper()
	waitFor(n.t, "output to be read", func() bool {
		left, err := unix.IoctlGetInt(n.fifos[0], unix.TIOCINQ)
		w, err2 := crilog.NewWriter(crilog.Owner{}, 0, n.file("progress"))
		spool, err3 := crilog.OpenSpool(n.file("stdout.spool"))
		if err := errors.Join(err, err2, err3); err != nil {
			n.t.Fatal(err)
		}
		defer w.Close()
		w.TakeSpools([2]*crilog.Spool{spool})
		return left == 0 && w.Waiting(0) == 0
	})
}

// file opens a file of the node's task.
func (n *node) file(name string) crilog.File {
	n.t.Helper()
	path := n.state.Task("c").At(name)
	fd, err := unixfd.Open(path, unix.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	return &diskFile{fd, path}
}

// leftOut removes the notices from the logs, oldest log first. It returns the bytes that they
// count, their number, and what remains of each stream.
func (n *node) leftOut(limit int64, logs ...string) (bytesOut, notices int, streams [2]string) {
	n.t.Helper()
	for _, path := range logs {
		raw, err := os.ReadFile(path)
		if err != nil {
			n.t.Fatal(err)
		}
		if int64(len(raw)) > limit {
			n.t.Errorf("%s has %d bytes, its limit is %d", path, len(raw), limit)
		}
		for _, m := range noticeLine.FindAllSubmatch(raw, -1) {
			count, _ := strconv.Atoi(string(m[1]))
			bytesOut, notices = bytesOut+count, notices+1
		}
		got, err := crilog.Parse(noticeLine.ReplaceAll(raw, nil))
		if err != nil {
			n.t.Fatal(err)
		}
		for i := range streams {
			streams[i] += string(got[i])
		}
	}
	return bytesOut, notices, streams
}

// TestLoggerLimit: a full log grows no further, the container does not block, and one line says how
// much is missing: at the end of a rotated log, or at the end of the last log.
func TestLoggerLimit(t *testing.T) {
	n := newNode(t)
	n.limited(runtimeshim.MinLogLimit)
	n.startLogger("")
	n.must("open")
	var all [2]string
	print := func(stream int, text string) {
		n.print(stream, text)
		all[stream] += text
	}
	flood := strings.Repeat(strings.Repeat("f", 99)+"\n", 3000)
	print(0, "one\n"+flood) // returns only if it is read
	print(1, "two\n")
	n.waitRead() // because a rotation does not read everything that is in the FIFO
	old := n.log + ".1"
	if err := os.Rename(n.log, old); err != nil {
		t.Fatal(err)
	}
	n.must("reopen")
	print(0, "three\n")
	n.waitLog(n.log, "three")
	if raw, _ := os.ReadFile(old); !bytes.Contains(raw[bytes.LastIndexByte(raw[:len(raw)-1], '\n')+1:], []byte("bytes of output are left out here")) {
		t.Errorf("the rotated log does not end in a notice: %.200q", raw[max(0, len(raw)-300):])
	}
	if raw, _ := os.ReadFile(n.log); noticeLine.Match(raw) {
		t.Errorf("the new log tells of what the old one did: %.200q", raw)
	}
	print(0, flood+"tail without end")
	n.must("finish")
	missing, notices, got := n.leftOut(runtimeshim.MinLogLimit, old, n.log)
	if have, want := len(got[0])+len(got[1])+missing, len(all[0])+len(all[1]); have != want || notices != 2 {
		t.Errorf("%d bytes are there or left out by %d notices, %d were printed", have, notices, want)
	}
	if !strings.HasPrefix(got[0], "one\nfff") || !strings.Contains(got[0], "f\nthree\nf") {
		t.Errorf("stdout: %.100q ... %.100q", got[0], got[0][len(got[0])/2:])
	}
}

// TestLoggerLimitTruncated: if a log is truncated instead of rotated, the notice comes first.
func TestLoggerLimitTruncated(t *testing.T) {
	n := newNode(t)
	n.limited(runtimeshim.MinLogLimit)
	n.startLogger("")
	n.must("open")
	n.print(0, strings.Repeat("before\n", 50_000))
	n.waitRead()
	if err := os.Truncate(n.log, 0); err != nil {
		t.Fatal(err)
	}
	n.print(0, "after\n")
	n.waitLog(n.log, "after")
	n.must("finish")
	raw, err := os.ReadFile(n.log)
	if err != nil || noticeLine.FindIndex(raw) == nil || noticeLine.FindIndex(raw)[0] != 0 || !bytes.HasSuffix(raw, []byte("stdout F after\n")) {
		t.Errorf("log: %.300q, %v", raw, err)
	}
}

// TestLoggerLimitKilledAtSteps: the logger is killed when a log becomes full, and when its notice
// is written.
func TestLoggerLimitKilledAtSteps(t *testing.T) {
	flood := strings.Repeat("a line of the flood\n", 20_000)
	for _, step := range []string{"logger.leftout:1", "logger.leftout:2", "spool.truncated:1", "spool.reset:1", "logger.intent:2", "logger.written:2",
		"logger.drained:1", "logger.done:1"} {
		n := newNode(t)
		if _, err := unix.FcntlInt(uintptr(n.fifos[0]), unix.F_SETPIPE_SZ, 1<<20); err != nil {
			t.Skip("small FIFOs only:", err)
		}
		n.limited(runtimeshim.MinLogLimit)
		n.print(0, flood)
		n.startLogger(step)
		n.must("open")
		n.must("finish")
		if !n.wasKilled() {
			t.Errorf("the logger did not pass %s", step)
		}
		missing, notices, got := n.leftOut(runtimeshim.MinLogLimit, n.log)
		if len(got[0])+missing != len(flood) || notices != 1 || !strings.HasPrefix(flood, got[0]) || got[1] != "" {
			t.Errorf("killed at %s: %d bytes are there, %d left out by %d notices; %d were printed", step, len(got[0]), missing, notices, len(flood))
		}
	}
}

// wasKilled reports whether a second logger was started.
func (n *node) wasKilled() bool { return slices.Contains(n.logger.Env, "CRIBOX_TEST_STEP=") }

// TestLoggerLimitKilled: whenever the logger is killed, each byte is in a log, or counted by a
// notice, once.
func TestLoggerLimitKilled(t *testing.T) {
	const limit = 4 * runtimeshim.MinLogLimit
	n := newNode(t)
	n.limited(limit)
	n.startLogger("")
	n.must("open")
	p := n.startPrinter()
	var logs []string
	steps := []string{"logger.leftout", "logger.intent", "logger.written", "spool.truncated", "spool.reset", "logger.spliced", "logger.reopened", "logger.created"}
	for i := range killCount(60) {
		n.stopLogger()
		n.startLogger(fmt.Sprintf("%s:%d", steps[i%len(steps)], 1+i%5))
		waitFor(t, "the log to be full, or half so", func() bool {
			n.must("open") // starts another logger if a step has killed the last one
			return logSize(n.log) > limit/2
		})
		old := filepath.Join(n.logs, fmt.Sprintf("0.log.%03d", i))
		if err := os.Rename(n.log, old); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, old)
		n.must("reopen")
	}
	stdout, stderr := p.stop()
	n.must("finish")
	missing, notices, got := n.leftOut(limit, append(logs, n.log)...)
	t.Logf("%d MB, of which %d MB in %d notices", (len(stdout)+len(stderr))>>20, missing>>20, notices)
	if have, want := len(got[0])+len(got[1])+missing, len(stdout)+len(stderr); have != want || notices == 0 {
		t.Errorf("%d bytes are there or left out by %d notices, %d were printed: %d too many", have, notices, want, have-want)
	}
	wantLines(t, "stdout", got[0], stdout)
	wantLines(t, "stderr", got[1], stderr)
}

// wantLines checks that every whole line was printed, and that the order is the same.
func wantLines(t *testing.T, stream, got, printed string) {
	t.Helper()
	at := map[string]int{}
	for i, line := range strings.Split(printed, "\n") {
		if line != "" {
			at[line] = i
		}
	}
	last, torn, whole := 0, 0, 0
	for _, line := range strings.Split(got, "\n") {
		i, ok := at[line]
		switch {
		case line == "":
		case !ok:
			torn++
		case i <= last && whole > 0:
			t.Errorf("%s: line %d comes after line %d", stream, i, last)
			return
		default:
			last, whole = i, whole+1
		}
	}
	if torn*5 > whole {
		t.Errorf("%s: %d lines are torn, %d whole", stream, torn, whole)
	}
}
